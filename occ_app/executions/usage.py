"""The usage of executions by day or by owner.

It has their number, outcomes, money, tokens, turns and time.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Any

from occ_app.database.database import Database
from occ_app.database.rows import text
from occ_app.executions.records import LARGEST_NUMBER, STATES

MAX_GROUPS = 1000

# The column an execution is counted under, and its name.
_GROUPS = {
    "day": ("substr(x.created_at, 1, 10)", "NULL"),
    # Of the workspace they ran in, never of a later one that has its id: that may be another owner's.
    "workspace": ("x.workspace_id", "max((SELECT name FROM workspaces WHERE generation = x.workspace_generation))"),
    "agent": ("x.agent_id", "(SELECT name FROM agents WHERE agent_id = x.agent_id)"),
    "key": ("x.key_id", "(SELECT coalesce(device, name) FROM keys WHERE key_id = x.key_id)"),
    "owner": ("x.owner_id", "(SELECT name FROM owners WHERE owner_id = x.owner_id)"),
}
GROUPINGS = tuple(_GROUPS)


def _total(value: str) -> str:
    """Return SQL that adds up the numbers of 0 or more.

    A row may hold unchecked data of a machine.
    """
    valid = f"typeof({value}) IN ('integer', 'real') AND {value} BETWEEN 0 AND {LARGEST_NUMBER}"
    return f"total(CASE WHEN {valid} THEN {value} END)"


def _tokens(name: str) -> str:
    """Return SQL for one of the counts in the usage that the CLI gave."""
    return f"CASE WHEN json_valid(x.usage) THEN x.usage ->> '$.{name}' END"


_SUMS = {
    "cost_usd": _total("x.cost_usd"),
    "inexact_costs": "total(NOT x.cost_exact)",
    "input_tokens": _total(_tokens("input_tokens")),
    "output_tokens": _total(_tokens("output_tokens")),
    "cache_read_tokens": _total(_tokens("cache_read_input_tokens")),
    "cache_creation_tokens": _total(_tokens("cache_creation_input_tokens")),
    "turns": _total("x.num_turns"),
    "run_seconds": "total(max(0.0, (julianday(x.finished_at) - julianday(x.started_at)) * 86400 - x.parked_seconds))",
}
_FRACTIONS = {"cost_usd": 6, "run_seconds": 3}  # digits; other sums are whole numbers


@dataclass(frozen=True)
class Usage:
    """The usage of a group of executions.

    `states` counts them by state. Money and time cover finished ones. `inexact_costs` counts the executions in
    `cost_usd` whose cost may include earlier runs of their session.
    """

    executions: int
    states: dict[str, int]
    cost_usd: float
    inexact_costs: int
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_creation_tokens: int
    turns: int
    run_seconds: float


@dataclass(frozen=True)
class Group:
    """The executions of one day, workspace, agent, key or owner.

    `group` is None for executions without one.
    """

    group: str | None
    name: str | None
    usage: Usage


@dataclass(frozen=True)
class Report:
    """Groups of usage, MAX_GROUPS at most; `total` is of all.

    Days are sorted newest first, all others by cost.
    """

    by: str
    groups: list[Group]
    omitted: int
    total: Usage


def report(
    db: Database, by: str, *, visible_to: str | None = None, since: str | None = None, until: str | None = None
) -> Report:
    """Return the usage of executions accepted from `since` on and before `until`.

    Those of the owner `visible_to` alone, if given.
    """
    with db.read() as connection:
        rows = connection.execute(
            _select(*_GROUPS[by]), (since, since, until, until, visible_to, visible_to)
        ).fetchall()
    groups = [Group(_text(row["grouped"]), _text(row["name"]), _usage([row])) for row in rows]
    if by == "day":
        groups.sort(key=lambda group: group.group or "", reverse=True)
    else:
        groups.sort(key=lambda group: (-group.usage.cost_usd, -group.usage.executions, group.group or ""))
    return Report(by, groups[:MAX_GROUPS], len(groups[MAX_GROUPS:]), _usage(rows))


def _text(value: Any) -> str | None:
    return None if value is None else text(value)


def _select(group: str, name: str) -> str:
    states = ", ".join(f"total(x.state = '{state}') AS {state}" for state in STATES)
    sums = ", ".join(f"{sql} AS {column}" for column, sql in _SUMS.items())
    return f"""
        SELECT {group} AS grouped, {name} AS name, count(*) AS executions, {states}, {sums} FROM executions x
        WHERE (? IS NULL OR x.created_at >= ?) AND (? IS NULL OR x.created_at < ?) AND (? IS NULL OR x.owner_id = ?)
        GROUP BY grouped
    """  # noqa: S608 - made of the literals above


def _usage(rows: list[sqlite3.Row]) -> Usage:
    """Return the sum of some groups."""
    added = {name: sum(row[name] for row in rows) for name in ("executions", *STATES, *_SUMS)}
    sums: dict[str, Any] = {
        name: round(added[name], _FRACTIONS[name]) if name in _FRACTIONS else int(added[name]) for name in _SUMS
    }
    return Usage(added["executions"], {state: int(added[state]) for state in STATES}, **sums)
