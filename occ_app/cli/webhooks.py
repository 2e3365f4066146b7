"""occ hub webhooks: URLs that receive events of executions; works on the database, also while the hub is down."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import click

from occ_app import errors
from occ_app.cli import output
from occ_app.config import config as configuration
from occ_app.database import schema
from occ_app.database.database import Database
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
    webhook, secret = rows.add(database(), url, key, events)
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
    webhooks_of_hub = rows.listing(database())
    if as_json:
        reply = [
            {"webhookId": w.webhook_id, "url": w.url, "key": w.key, "events": w.events, "createdAt": w.created_at}
            for w in webhooks_of_hub
        ]
        output.echo(json.dumps({"webhooks": reply}))
        return
    lines = [
        (w.webhook_id, w.key or "(all)", w.created_at[:10], ",".join(_short(name) for name in w.events), w.url)
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
    rows.remove(database(), webhook_id)
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
    records = list(map(record, deliveries.log(database(), limit)))
    if as_json:
        output.echo(json.dumps({"deliveries": records}))
        return
    header = ("DELIVERY", "WEBHOOK", "EVENT", "EXECUTION", "STATE", "TRIED", "NEXT TRY", "LAST ANSWER")
    output.table([header, *map(row, records)])


def record(delivery: deliveries.Delivery) -> dict[str, Any]:
    return {
        "deliveryId": delivery.delivery_id,
        "webhookId": delivery.webhook_id,
        "event": delivery.event,
        "executionId": delivery.execution_id,
        "state": delivery.state,
        "attempts": delivery.attempts,
        "status": delivery.status,
        "problem": delivery.problem,
        "nextAt": delivery.next_at,
        "createdAt": delivery.created_at,
        "finishedAt": delivery.finished_at,
    }


def row(entry: Mapping[str, Any]) -> tuple[str, ...]:
    answer = entry["problem"] or ("" if entry["status"] is None else str(entry["status"]))
    return (
        *(entry["deliveryId"], entry["webhookId"], _short(entry["event"]), entry["executionId"] or ""),
        *(entry["state"], str(entry["attempts"]), entry["nextAt"] or "", answer),
    )


def _short(event: str) -> str:
    return event.partition(".")[2]


def database() -> Database:
    config = configuration.load_hub()
    if not config.database.exists():
        raise errors.NotRunning(f"There is no database in {config.home}; `occ hub start` makes one.")
    return schema.opened(config.database)
