"""The outcome of an execution from its machine's final event."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from occ_app.client.event_checks import RawEvent
from occ_app.executions.records import Execution, Outcome, countable
from occ_app.system import timestamps
from occ_app.system.timestamps import iso, iso_now

_LAST_WITHOUT_TOTALS = (2, 1, 197)  # the latest CLI release known to report the cost of one process


def of_final(event: RawEvent, execution: Execution) -> Outcome:
    """Return the outcome of a checked final event.

    `execution` is its current row. Machines that report the cost of one execution send `costExact`. Others send their
    CLI's figure, which may include earlier runs of the session: then `costExact` becomes false.
    """
    data = countable(json.loads(event.data))
    if data.get("costUsd") and "costExact" not in data:
        data["costExact"] = execution.resume_session_id is None or _reports_one_run(execution.claude_version)
    ended = _ended(data.get("timestamp"), execution) if execution.is_local else None
    return Outcome(_state(event, data), event.name, data, data.get("usage"), finished_at=ended)


def _ended(milliseconds: Any, execution: Execution) -> str | None:
    """Return when a local execution ended, by its machine's clock.

    The hub may read the event much later. Returns the current time for a time that is missing or in the future.
    """
    now = iso_now()
    if not isinstance(milliseconds, int) or milliseconds > timestamps.milliseconds():
        return now
    return max(execution.started_at or now, iso(datetime.fromtimestamp(max(0, milliseconds) / 1000, UTC)))


def _state(event: RawEvent, data: Mapping[str, Any]) -> str:
    if data.get("code") == "EXECUTION_CANCELLED":
        return "cancelled"
    return "succeeded" if event.name == "complete" else "failed"


def _reports_one_run(version: str | None) -> bool:
    numbers = re.match(r"(\d+)\.(\d+)\.(\d+)", version or "")
    return numbers is not None and tuple(map(int, numbers.groups())) <= _LAST_WITHOUT_TOTALS
