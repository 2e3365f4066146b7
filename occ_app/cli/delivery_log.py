"""The log of deliveries, for `occ hub webhooks log` and `occ hub notify log`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from occ_app.cli import output
from occ_app.hub import deliveries


def show(sent: Iterable[deliveries.Delivery], name: str, titles: tuple[str, str, str], *, as_json: bool) -> None:
    """Print deliveries as a table, or as the list `name` of a JSON object.

    The first three columns of the table have these titles.
    """
    records = list(map(_record, sent))
    if as_json:
        output.echo(json.dumps({name: records}))
        return
    output.table([(*titles, "EXECUTION", "STATE", "TRIED", "NEXT TRY", "LAST ANSWER"), *map(_row, records)])


def short(event: str) -> str:
    """Return the name of an event without its first part, which is the same for all."""
    return event.partition(".")[2]


def _record(delivery: deliveries.Delivery) -> dict[str, Any]:
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


def _row(entry: Mapping[str, Any]) -> tuple[str, ...]:
    answer = entry["problem"] or ("" if entry["status"] is None else str(entry["status"]))
    return (
        *(entry["deliveryId"], entry["webhookId"], short(entry["event"]), entry["executionId"] or ""),
        *(entry["state"], str(entry["attempts"]), entry["nextAt"] or "", answer),
    )
