"""occ hub pair | sessions: devices that are logged in to the hub's pages."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import click

from occ_app.cli import output
from occ_app.cli.hub_address import address, is_local, qr
from occ_app.cli.remote import hub_client, running_hub
from occ_app.home import daemon
from occ_app.system.foreign_text import visible_line


@click.command()
@click.option("--owner", metavar="OWNER", help="The owner of the session.  [default: the one of this hub's operator]")
@click.option(
    "--role",
    type=click.Choice(["owner", "viewer", "admin"]),
    default="owner",
    show_default=True,
    help="owner: uses what its owner has; viewer: reads it; admin: manages the hub and pairs other devices.",
)
def pair(owner: str | None, role: str) -> None:
    """Print a link and a QR code that log a device in once.

    The code in it is valid for 10 minutes. `occ hub sessions` lists the devices that are logged in.

    \b
    Examples:
      occ hub pair
      occ hub pair --owner ada --role viewer
    """
    running = running_hub()
    reply = hub_client().call("POST", "/pairings", {"role": role, "owner": owner})
    print_link(running, reply)


def _session(pairing: Mapping[str, Any]) -> str:
    """Return a session's owner and role: "as ada, with the role viewer"."""
    return f"as {visible_line(pairing['owner'])}, with the role {pairing['role']}"


def print_link(running: daemon.Daemon, pairing: Mapping[str, Any]) -> None:
    """Print the link of a one-time code alone on standard output.

    The rest goes to standard error.
    """
    link = f"{address(running)}{pairing['path']}"
    if not is_local(link):
        output.raw_note(qr(link))
    output.echo(link)
    output.note(f"It logs one device in {_session(pairing)}, once, within 10 minutes. Keep it as safe as a key.")
    if is_local(link):
        output.note("Only this machine reaches this address; `occ up --lan` or --public-url opens it to a phone.")
    elif running.self_signed:
        output.note(
            "The certificate was made here, so the browser warns of it. Compare its fingerprint before you go on:\n"
            f"  {running.fingerprint}"
        )


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print what GET /sessions answers.")
@click.pass_context
def sessions(context: click.Context, as_json: bool) -> None:
    """List the devices that are logged in to the pages.

    \b
    Examples:
      occ hub sessions
      occ hub sessions revoke session-0f3a5c7b9d1e
    """
    if context.invoked_subcommand is not None:
        return
    reply = hub_client().call("GET", "/sessions")
    if as_json:
        output.echo(json.dumps(reply))
        return
    rows = [
        (
            each["id"],
            visible_line(each["device"] or "-"),
            visible_line(each["owner"] or "-"),
            each["role"],
            "one-time code" if each["key"] is None else f"key {visible_line(each['key'])}",
            f"{output.since(each['usedAt'])} ago",
            each["expiresAt"][:10],
        )
        for each in reply["sessions"]
    ]
    output.table([("ID", "DEVICE", "OWNER", "ROLE", "OPENED BY", "LAST USE", "UNTIL"), *rows])


@sessions.command()
@click.argument("session")
def revoke(session: str) -> None:
    """Log a device out.

    The devices that were paired from it are logged out too.

    \b
    Example:
      occ hub sessions revoke session-0f3a5c7b9d1e
    """
    hub_client().call("DELETE", f"/sessions/{quote(session, safe='')}")
    output.echo(f"{session} is logged out.")
