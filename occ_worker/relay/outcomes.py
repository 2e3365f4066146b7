"""The final event of a machine as the outcome of an execution."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from occ_app.client.event_checks import RawEvent
from occ_app.executions.records import Execution, Outcome, countable

_LAST_WITHOUT_TOTALS = (2, 1, 197)  # the newest release of the CLI measured whose cost is that of one process


def of_final(event: RawEvent, execution: Execution) -> Outcome:
    """Return the outcome of a final event that was checked; `execution` is its current row.

    Machines that report the cost of one execution send `costExact`. Others send the figure of their CLI, which may
    include earlier runs of the session: then `costExact` becomes false.
    """
    data = countable(json.loads(event.data))
    if data.get("costUsd") and "costExact" not in data:
        data["costExact"] = execution.resume_session_id is None or _reports_one_run(execution.claude_version)
    return Outcome(_state(event, data), event.name, data, data.get("usage"))


def _state(event: RawEvent, data: Mapping[str, Any]) -> str:
    if data.get("code") == "EXECUTION_CANCELLED":
        return "cancelled"
    return "succeeded" if event.name == "complete" else "failed"


def _reports_one_run(version: str | None) -> bool:
    numbers = re.match(r"(\d+)\.(\d+)\.(\d+)", version or "")
    return numbers is not None and tuple(map(int, numbers.groups())) <= _LAST_WITHOUT_TOTALS
