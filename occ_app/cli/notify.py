"""occ hub notify: the notifications of owners.

It works on the database; a test needs the running hub.
"""

from __future__ import annotations

import json
import re
import time
from typing import Any
from urllib.parse import urlsplit

import click

from occ_app import errors
from occ_app.cli import delivery_log, job_store, output
from occ_app.cli.remote import running_hub
from occ_app.config import config as configuration
from occ_app.config.settings import mail_address, secret
from occ_app.database.database import Database
from occ_app.hub import channels, deliveries, keys, webhooks
from occ_app.slack import tokens

_TEST_SECONDS = 30.0


@click.group()
def notify() -> None:
    """Notify owners of runs that need them, and of runs that ended.

    \b
    Examples:
      occ hub notify add ntfy https://ntfy.sh/my-secret-topic --owner ada
      occ hub notify list
    """


@notify.command()
@click.argument("kind", type=click.Choice([channels.NTFY, channels.EMAIL, channels.SLACK, channels.APPRISE]))
@click.argument("address")
@click.option("--owner", metavar="NAME", help="Notify of this owner's runs.  [default: of all runs]")
@click.option("--only", type=click.Choice(channels.CLASSES), help="Notify of these alone.  [default: of both]")
@click.option("--name", metavar="NAME", help="Name in lists.  [default: the host or the address]")
@click.option("--token", metavar="TOKEN", help="Access token of an ntfy server, or @FILE.")
def add(kind: str, address: str, owner: str | None, only: str | None, name: str | None, token: str | None) -> None:
    """Add a channel: ntfy, e-mail, Slack or apprise.

    E-mail needs OCC_HUB_SMTP_URL, Slack `occ hub slack connect`. Apprise is an
    optional part of OCC.

    \b
    Examples:
      occ hub notify add ntfy https://ntfy.sh/my-secret-topic --owner ada
      occ hub notify add email ada@example.com --owner ada --only needs-you
    """
    if token is not None and kind != channels.NTFY:
        raise click.UsageError("--token is for ntfy alone.")
    stored, shown = _address(kind, address, token)
    rows = job_store.hub_database()
    owner_id = None if owner is None else keys.owner_named(rows, owner)
    classes = channels.CLASSES if only is None else (only,)
    made = channels.add(rows, kind, name or shown, stored, owner_id=owner_id, classes=classes)
    output.echo(made.channel_id)
    if kind == channels.EMAIL and configuration.load_hub().smtp_url is None:
        output.warn("OCC_HUB_SMTP_URL is not set; set it and start the hub again, then mail is sent.")


def _address(kind: str, address: str, token: str | None) -> tuple[dict[str, Any], str]:
    """Return the stored form of an address, and the form that lists show.

    Raises ConfigError.
    """
    if kind == channels.EMAIL:
        try:
            return {"to": mail_address(address)}, address
        except ValueError as error:
            raise errors.ConfigError(f"{address!r} is no mail address: {error}.") from None
    if kind == channels.SLACK:
        if not re.fullmatch(r"[UW][A-Z0-9]{2,20}", address):
            raise errors.ConfigError(
                f"{address!r} is no id of a Slack user; copy it from the profile, as in U012AB3CD."
            )
        if tokens.load(configuration.load_hub()) is None:
            raise errors.ConfigError("The hub is not connected to Slack; run `occ hub slack connect` first.")
        return {"user": address}, address
    if kind == channels.APPRISE:
        try:
            import apprise
        except ImportError:
            message = "Apprise is not installed here: pip install 'online-claude-code[apprise]', then add it again."
            raise errors.ConfigError(message) from None
        if not apprise.Apprise().add(address):
            raise errors.ConfigError("Apprise does not know this URL; its documentation lists the forms.")
        return {"url": address}, address.partition(":")[0]
    parts = urlsplit(webhooks.check_url(address))
    if not parts.path.strip("/") or parts.query:
        raise errors.ConfigError(f"{address} names no topic; it must look like https://ntfy.sh/my-topic.")
    try:
        return {"url": address, "token": None if token is None else secret(token)}, parts.hostname or ""
    except ValueError as error:
        raise errors.ConfigError(f"--token cannot be used: {error}.") from None


@notify.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def list_channels(as_json: bool) -> None:
    """List all channels; addresses and secrets are not shown.

    \b
    Example:
      occ hub notify list
    """
    listed = channels.listing(job_store.hub_database())
    if as_json:
        fields = {"channelId": "channel_id", "kind": "kind", "name": "name", "owner": "owner", "classes": "classes"}
        names = {**fields, "createdAt": "created_at"}
        reply = [{key: getattr(one, name) for key, name in names.items()} for one in listed]
        output.echo(json.dumps({"channels": reply}))
        return
    lines = [
        (one.channel_id, one.kind, one.owner or "(all)", ",".join(one.classes), one.created_at[:10], one.name)
        for one in listed
    ]
    output.table([("ID", "KIND", "OWNER", "OF", "CREATED", "NAME"), *lines])


@notify.command()
@click.argument("channel_id", metavar="ID")
def remove(channel_id: str) -> None:
    """Remove a channel and drop its pending notifications.

    \b
    Example:
      occ hub notify remove channel-1f2e3d
    """
    channels.remove(job_store.hub_database(), channel_id)
    output.echo(f"{channel_id} is removed.")


@notify.command()
@click.argument("channel_id", metavar="ID")
def test(channel_id: str) -> int:
    """Send a test notification by a channel and print the result.

    The running hub sends it, as it sends all others.

    \b
    Example:
      occ hub notify test channel-1f2e3d
    """
    rows = job_store.hub_database()
    running_hub()
    return _followed(rows, deliveries.add_test(rows, channel_id))


def _followed(rows: Database, delivery_id: str) -> int:
    """Print the result of a delivery once its first attempt is over.

    Returns the exit code.
    """
    deadline = time.monotonic() + _TEST_SECONDS
    while time.monotonic() < deadline:
        sent = deliveries.find(rows, delivery_id)
        if sent is None or sent.state == "delivered":
            output.echo("It was delivered." if sent else "It is gone: its channel was removed.")
            return 0 if sent else 1
        if sent.problem is not None:
            output.echo(f"It was not delivered: {sent.problem}. `occ hub notify log` lists further attempts.", err=True)
            return 1
        time.sleep(0.2)
    output.echo(f"There is no result after {_TEST_SECONDS:g} s; `occ hub notify log` shows it later.", err=True)
    return 1


@notify.command()
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="At most this many.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def log(limit: int, as_json: bool) -> None:
    """List notifications, newest first, with their results.

    \b
    Example:
      occ hub notify log --limit 20
    """
    sent = deliveries.log(job_store.hub_database(), limit, of_channels=True)
    delivery_log.show(sent, "notifications", ("NOTIFICATION", "CHANNEL", "OF"), as_json=as_json)
