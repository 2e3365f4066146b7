"""occ hub webhooks: URLs that receive events of executions.

It works on the database, also while the hub is down.
"""

from __future__ import annotations

import json
from urllib.parse import urlsplit

import click

from occ_app.cli import job_store, output
from occ_app.cli.delivery_log import short, show
from occ_app.hub import deliveries
from occ_app.hub import webhooks as rows


@click.group()
def webhooks() -> None:
    """Send a request to your URLs when executions start, wait or end.

    \b
    Examples:
      occ hub webhooks add https://example.com/occ
      occ hub webhooks log
    """


@webhooks.command()
@click.argument("url")
@click.option("--key", metavar="NAME", help="Send only executions of this client's key.  [default: all]")
@click.option(
    "--event",
    "events",
    multiple=True,
    type=click.Choice(rows.EVENTS),
    metavar="EVENT",
    default=[rows.FINISHED],
    help=f"Send this event; repeat for more.  [default: {rows.FINISHED}]",
)
def add(url: str, key: str | None, events: tuple[str, ...]) -> None:
    """Add a URL to notify of executions that end, or of other events.

    The events are execution.started, execution.needs_approval,
    execution.approved and execution.finished.

    Prints the webhook's id and its signing secret, which is not shown again.

    \b
    Examples:
      occ hub webhooks add https://example.com/occ --key phone
      occ hub webhooks add https://example.com/occ --event execution.started
    """
    webhook, secret = rows.add(job_store.hub_database(), url, key, events)
    output.echo(f"id      {webhook.webhook_id}\nsecret  {secret}")
    host = urlsplit(url).hostname or ""
    if url.startswith("http://") and host not in ("127.0.0.1", "::1", "localhost"):
        output.warn("Without https:// prompts and outcomes can be read on the network.")


@webhooks.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def list_webhooks(as_json: bool) -> None:
    """List all webhooks; secrets are not shown.

    \b
    Example:
      occ hub webhooks list
    """
    webhooks_of_hub = rows.listing(job_store.hub_database())
    if as_json:
        reply = [
            {"webhookId": w.webhook_id, "url": w.url, "key": w.key, "events": w.events, "createdAt": w.created_at}
            for w in webhooks_of_hub
        ]
        output.echo(json.dumps({"webhooks": reply}))
        return
    lines = [
        (w.webhook_id, w.key or "(all)", w.created_at[:10], ",".join(map(short, w.events)), w.url)
        for w in webhooks_of_hub
    ]
    output.table([("ID", "KEY", "CREATED", "EVENTS", "URL"), *lines])


@webhooks.command()
@click.argument("webhook_id", metavar="ID")
def remove(webhook_id: str) -> None:
    """Remove a webhook and drop its pending deliveries.

    \b
    Example:
      occ hub webhooks remove webhook-1f2e3d
    """
    rows.remove(job_store.hub_database(), webhook_id)
    output.echo(f"{webhook_id} is removed.")


@webhooks.command()
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="At most this many.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def log(limit: int, as_json: bool) -> None:
    """List deliveries, newest first, with their results.

    \b
    Example:
      occ hub webhooks log --limit 20
    """
    titles = ("DELIVERY", "WEBHOOK", "EVENT")
    show(deliveries.log(job_store.hub_database(), limit), "deliveries", titles, as_json=as_json)
