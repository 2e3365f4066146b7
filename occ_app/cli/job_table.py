"""The table of `occ jobs`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from occ_app.cli import output
from occ_app.executions.records import Execution

_STATE_COLUMN = 1


def show(records: Iterable[Mapping[str, Any]], name_machines: Callable[[Iterable[str]], Mapping[str, str]]) -> None:
    """Print records of executions, with the machines that a hub chose.

    `name_machines` returns names by id.
    """
    listed = list(records)
    placed = {record["agentId"] for record in listed if record.get("agentId")}
    names = name_machines(placed) if placed else None
    head = ["ID", "STATE", "WORKSPACE", "AGE", "TOOK", "COST", "PROMPT"]
    rows = [_row(record) for record in listed]
    if names is not None:
        for row, record in zip([head, *rows], [None, *listed], strict=True):
            row.insert(3, "MACHINE" if record is None else _machine(record, names))
    output.table([head, *rows], state=_STATE_COLUMN)


def record_of(execution: Execution) -> dict[str, Any]:
    """Return the fields of an execution in a row, by their names in the API."""
    return {
        "executionId": execution.execution_id,
        "state": execution.state,
        "waitsFor": execution.waits_for,
        "errorCode": execution.error_code,
        "position": execution.position,
        "workspaceId": execution.workspace_id,
        "agentId": execution.agent_id,
        "createdAt": execution.created_at,
        "startedAt": execution.started_at,
        "finishedAt": execution.finished_at,
        "costUsd": execution.cost_usd,
        "costExact": execution.cost_exact,
        "prompt": execution.prompt,
    }


def _machine(record: Mapping[str, Any], names: Mapping[str, str]) -> str:
    agent_id = record.get("agentId")
    return names.get(agent_id, agent_id) if agent_id else "-"


def _row(record: Mapping[str, Any]) -> list[str]:
    return [
        record["executionId"],
        _state(record),
        record["workspaceId"],
        output.since(record["createdAt"]),
        output.took(record),
        _cost(record),
        _short(output.printable(record["prompt"] or "")),
    ]


def _cost(record: Mapping[str, Any]) -> str:
    if record["costUsd"] is None:
        return ""
    # An agent of an older version sends no `costExact`.
    return ("" if record.get("costExact", True) else "≤ ") + f"${record['costUsd']:.4f}"


def _state(record: Mapping[str, Any]) -> str:
    state: str = record["state"]
    if state == "failed":
        return f"failed ({record['errorCode']})"
    ahead = f"{record['position']} ahead" if record["position"] else ""
    # The explanation after the name is left to `occ jobs show`.
    waits = f"waits for {record['waitsFor'].partition(', which ')[0]}" if record["waitsFor"] else ""
    reasons = ", ".join(filter(None, (waits, ahead)))
    return f"{state} ({reasons})" if reasons else state


def _short(text: str) -> str:
    return text if len(text) <= 48 else text[:47] + "…"
