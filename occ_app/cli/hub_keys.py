"""`occ hub keys`: create, list, rotate and revoke the keys of a hub."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from typing import Any

import click

from occ_app.cli import output
from occ_app.cli.hub_address import address
from occ_app.cli.remote import hub_client, quoted, running_hub
from occ_app.system.foreign_text import visible_line


@click.group()
def keys() -> None:
    """Create, list, rotate and revoke keys.

    A key is for a machine, a person or a program.

    \b
    Examples:
      occ hub keys list
      occ hub keys create laptop --for agent
    """


@keys.command()
@click.argument("name")
@click.option(
    "--for",
    "kind",
    type=click.Choice(["agent", "client"]),
    required=True,
    help="Kind of its holder.",
)
@click.option("--admin", is_flag=True, help="The same as --role admin.")
@click.option(
    "--role",
    type=click.Choice(["owner", "viewer", "admin"]),
    help="owner: uses what its owner has; viewer: reads it; admin: uses everything and manages the hub."
    "  [default: owner]",
)
@click.option("--owner", metavar="OWNER", help="The owner it belongs to.  [default: a new one of the key's name]")
@click.option(
    "--most", type=click.IntRange(1), metavar="N", help="Machines it registers, or executions it has at once."
)
@click.option("--days", type=click.FloatRange(min=0, min_open=True), metavar="DAYS", help="How long it is valid.")
def create(
    name: str,
    kind: str,
    admin: bool,
    role: str | None,
    owner: str | None,
    most: int | None,
    days: float | None,
) -> None:
    """Create a key and print it; it is not shown again.

    Everything that a key makes belongs to its owner, and all keys of one owner see the same.

    \b
    Examples:
      occ hub keys create laptop --for agent
      occ hub keys create phone --for client --owner ada
    """
    if admin and role not in (None, "admin"):
        raise click.UsageError(f"--admin and --role {role} exclude each other; leave one of them out.")
    role = "admin" if admin else role or "owner"
    if role != "owner" and kind == "agent":
        raise click.UsageError(f"The role {role} is for a client's key; leave it out, or use --for client.")
    body = {
        "name": name,
        "for": kind,
        "admin": role == "admin",
        "role": role,
        "owner": owner,
        "most": most,
        "days": days,
    }
    reply = hub_client().call("POST", "/keys", {field: value for field, value in body.items() if value is not None})
    _print_key(reply, kind)
    if owner is None and reply["owner"] != name:
        output.note(f"it belongs to the new owner {visible_line(reply['owner'])}; --owner {name} adds a key to {name}")


_PERMISSIONS = (
    "Runs there edit files in their workspace and do nothing else. With OCC_PERMISSIONS=ask before occ start, a run may"
    " also use Bash and other tools once a person has allowed the call; allowing Bash is having an account on that"
    " machine. docs/security.md explains plan, edit, ask and full."
)


def _print_key(reply: dict[str, Any], kind: str) -> None:
    """Print a key alone on standard output.

    The command that uses it goes to standard error.
    """
    output.echo(reply["key"])
    running = running_hub()
    url = address(running)
    key = (
        reply["key"] if sys.stdout.isatty() else "KEY"
    )  # a script that captures the key does not want it on the screen
    pin = running.pin
    if kind == "agent":
        trust = f" --remote-pin {pin}" if pin else ""
        output.note(f"on the machine:\n  OCC_API_KEY={key} occ start --remote-url {url}{trust}")
        output.note(_PERMISSIONS)
    else:
        trust = f" --pin {pin}" if pin else ""
        output.note(f'where you work:\n  OCC_TOKEN={key} occ run --url {url}{trust} "…"')


@keys.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print what GET /keys answers.")
def list_keys(as_json: bool) -> None:
    """List all keys; secrets are not shown.

    \b
    Example:
      occ hub keys list
    """
    reply = hub_client().call("GET", "/keys")
    if as_json:
        output.echo(json.dumps(reply))
        return
    rows = [
        (
            key["name"],
            key["for"] + (f", {key['role']}" if key["role"] != "owner" else ""),
            visible_line(key["owner"]),
            "" if key["most"] is None else str(key["most"]),
            key["createdAt"][:10],
            _until(key),
        )
        for key in reply["keys"]
    ]
    output.table([("NAME", "FOR", "OWNER", "MOST", "CREATED", "UNTIL"), *rows])


def _until(key: dict[str, Any]) -> str:
    """Return the day it expires, or why it is no longer accepted."""
    if key["revokedAt"]:
        return "revoked"
    if key["expiresAt"] is None:
        return ""
    over = datetime.fromisoformat(key["expiresAt"]) <= datetime.now(UTC)
    return "expired" if over else str(key["expiresAt"][:10])


@keys.command()
@click.argument("name")
@click.option("--days", type=click.FloatRange(min=0, min_open=True), metavar="DAYS", help="How long it is valid.")
def rotate(name: str, days: float | None) -> None:
    """Replace a key's secret and print the new one; it is not shown again.

    The old secret is refused at once. The key keeps its workspaces, runs and webhooks, and machines that have
    registered with it stay registered; give them the new key before they register again.

    \b
    Example:
      occ hub keys rotate laptop
    """
    reply = hub_client().call("POST", f"/keys/{quoted(name)}/rotate", {} if days is None else {"days": days})
    _print_key(reply, reply["for"])


@keys.command()
@click.argument("name")
def revoke(name: str) -> None:
    """Refuse a key from now on.

    The machines that registered with it are refused too.

    \b
    Example:
      occ hub keys revoke phone
    """
    hub_client().call("POST", f"/keys/{quoted(name)}/revoke")
    output.echo(f"{name} is refused from now on.")
