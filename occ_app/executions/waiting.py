"""The line of executions that wait: positions and reasons.

An execution waits for its workspace, where one runs at a time, or for a worker. Only those before it that need the
same count: those in its workspace, and those elsewhere that could take its worker, on a hub a worker of its machines.
"""

from __future__ import annotations

import sqlite3
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from occ_app.database.database import Database
from occ_app.database.rows import text, texts
from occ_app.executions.ceilings import lowest
from occ_app.executions.records import Execution

FREE_WORKER = "to have a free worker"  # the end of a reason on a hub whose machine is there and has no room
ANY_WORKER = "a worker to be free"
PAUSED = {
    "failed": "you to resume it, since a turn before it did not succeed",
    "person": "you to resume it, since it is paused",
}

_Machines = frozenset[str]
_BY_ITSELF: _Machines = frozenset([""])  # an agent, which is a machine without an id


class _Queued(NamedTuple):
    number: int
    place: int  # in the line
    execution_id: str
    key_id: str | None
    workspace: int
    machines: _Machines  # those it may run on
    placeable: bool  # False when none of these is there for the first of its workspace


class _Running(NamedTuple):
    execution_id: str
    key_id: str | None
    ends_by: datetime | None  # its time limit; None on a hub, whose machine counts it
    parked: bool = False  # it waits for a person


class Line:
    """All executions that wait and are not paused, as of one transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._running = _running(connection)
        self._held = _held(connection)
        self._first = dict[int, _Queued]()  # of each workspace
        self._workspaces = dict[int, list[int]]()
        self._groups = dict[tuple[_Machines, bool, bool], list[int]]()  # places of those that compete alike
        self._queued = dict[int, _Queued]()
        for queued in _queued(connection):
            self._first.setdefault(queued.workspace, queued)
            self._queued[queued.number] = queued
            self._workspaces.setdefault(queued.workspace, []).append(queued.place)
            kind = (queued.machines, queued.placeable, queued.workspace in self._running)
            self._groups.setdefault(kind, []).append(queued.place)

    def __contains__(self, number: int) -> bool:
        """Whether the execution with this number waits."""
        return number in self._queued

    def ahead(self, number: int, free_workers: int = 0) -> int:
        """Return how many waiting executions could start before another.

        `free_workers` are those that it may use; those before it use them first.
        """
        queued = self._queued[number]
        idle = queued.workspace not in self._running
        count = bisect_left(self._workspaces[queued.workspace], queued.place)
        if idle and free_workers > self._claimable_before(self._first[queued.workspace]):
            return count
        for (machines, placeable, blocked), places in self._groups.items():
            # A workspace in which one runs gets the worker of that one, unless others wait for a worker already: what
            # waits for a third workspace takes none from it.
            if self._competes(queued, machines, placeable) and (idle or not blocked):
                count += bisect_left(places, queued.place) - self._of_workspace(queued, places)
        return count

    def reason(self, execution: Execution) -> str | None:
        """Return the reason why a queued execution waits.

        None while a hub has not looked for a machine yet.
        """
        queued = self._queued[execution.number]
        first = self._first[queued.workspace]
        running = self._running.get(queued.workspace)
        if not self._is_first(queued):
            return f"{_named(first, queued)}, which comes before it in its workspace"
        if running is not None and running.parked:
            return f"{_named(running, queued)}, which waits for an approval in its workspace"
        if running is not None:
            return f"{_named(running, queued)}, which runs in its workspace{_limit(running.ends_by)}"
        if queued.workspace in self._held:
            return "its machine to confirm the end of an execution in its workspace"
        by_itself = queued.machines == _BY_ITSELF and queued.key_id is None
        return execution.waits_for or (ANY_WORKER if by_itself else None)

    def _is_first(self, queued: _Queued) -> bool:
        return self._first[queued.workspace].number == queued.number

    def _competes(self, queued: _Queued, machines: _Machines, placeable: bool) -> bool:
        return (placeable or not queued.placeable) and bool(machines & queued.machines)

    def _of_workspace(self, queued: _Queued, places: Sequence[int]) -> int:
        """Return how many of these places, before that of `queued`, are of its workspace."""
        own = self._workspaces[queued.workspace]
        return sum(1 for place in own[: bisect_left(own, queued.place)] if _contains(places, place))

    def _claimable_before(self, queued: _Queued) -> int:
        return sum(
            first.place < queued.place
            and first.workspace not in self._running
            and self._competes(queued, first.machines, first.placeable)
            for first in self._first.values()
        )


def described(connection: sqlite3.Connection, executions: Sequence[Execution]) -> list[Execution]:
    """Return the executions, waiting ones with `position` and `waits_for`.

    These are as of now. One that began after it was read is next, and waits for nothing.
    """
    if not any(execution.state == "queued" for execution in executions):
        return list(executions)
    line = Line(connection)
    return [_described(line, execution) if execution.state == "queued" else execution for execution in executions]


def _described(line: Line, execution: Execution) -> Execution:
    if execution.paused is not None:
        return replace(execution, position=None, waits_for=PAUSED.get(execution.paused, PAUSED["person"]))
    if execution.number not in line:
        return replace(execution, position=0, waits_for=None)
    return replace(execution, position=line.ahead(execution.number), waits_for=line.reason(execution))


def _queued(connection: sqlite3.Connection) -> Iterable[_Queued]:
    machines = [
        (row["agent_id"], row["name"], frozenset(texts(row["labels"])))
        for row in connection.execute("SELECT agent_id, name, labels FROM agents")
    ]
    known = dict[tuple[str | None, str | None, str | None], _Machines]()
    placeable = dict[int, bool]()
    rows = connection.execute(
        """
        SELECT q.number, iif(typeof(q.place) = 'integer', q.place, q.number) AS place, q.execution_id,
            q.key_id, q.workspace_generation, q.wanted_agent, q.wanted_labels, q.waits_for,
            w.agent_id AS home
        FROM executions q LEFT JOIN workspaces w ON w.generation = q.workspace_generation
        WHERE q.state = 'queued' AND q.paused IS NULL ORDER BY coalesce(q.place, q.number)
        """
    )
    for row in rows:
        place = (row["home"], row["wanted_agent"], row["wanted_labels"])
        if place not in known:
            known[place] = _suitable(machines, *place)
        workspace = row["workspace_generation"]
        if workspace not in placeable:
            placeable[workspace] = row["waits_for"] is None or text(row["waits_for"]).endswith(FREE_WORKER)
        yield _Queued(
            *(row["number"], row["place"], row["execution_id"], row["key_id"]),
            *(workspace, known[place], placeable[workspace]),
        )


def _suitable(
    machines: Sequence[tuple[str, str, frozenset[str]]], home: str | None, wanted: str | None, labels: str | None
) -> _Machines:
    """Return the ids of the machines that an execution may run on.

    An agent by itself is one without an id.
    """
    if home is not None:
        return frozenset([home])
    if not machines and wanted is None and labels is None:
        return _BY_ITSELF
    needed = frozenset[str]() if labels is None else frozenset(texts(labels))
    return frozenset(agent_id for agent_id, name, own in machines if wanted in (None, agent_id, name) and needed <= own)


def _running(connection: sqlite3.Connection) -> Mapping[int, _Running]:
    """Return the running and parked executions by workspace."""
    rows = connection.execute(
        """
        SELECT workspace_generation, execution_id, key_id, started_at, timeout_seconds, agent_id, state
        FROM executions WHERE state IN ('running', 'parked')
        """
    )
    return {
        row["workspace_generation"]: _Running(
            row["execution_id"], row["key_id"], _ends_by(row), row["state"] == "parked"
        )
        for row in rows
    }


def _held(connection: sqlite3.Connection) -> set[int]:
    """Return the workspaces in which a machine may still run an ended execution.

    It ended on the hub.
    """
    rows = connection.execute(
        """
        SELECT r.workspace_generation FROM errands e
        JOIN executions r ON e.path = '/executions/' || r.execution_id || '/cancel' AND e.agent_id = r.agent_id
        """
    )
    return {row["workspace_generation"] for row in rows}


def _ends_by(row: sqlite3.Row) -> datetime | None:
    if row["started_at"] is None or row["agent_id"] is not None:
        return None
    return datetime.fromisoformat(row["started_at"]) + timedelta(seconds=row["timeout_seconds"])


def _limit(ends_by: datetime | None) -> str:
    """Return when its time limit ends an execution, for a sentence."""
    if ends_by is None:
        return ""
    seconds = max(0.0, (ends_by - datetime.now(UTC)).total_seconds())
    return f" (its time limit ends it in {f'{seconds / 60:.0f} min' if seconds >= 90 else f'{seconds:.0f} s'})"


def _named(other: _Queued | _Running, queued: _Queued) -> str:
    """Return the name of another execution for the reader of one.

    That of another key stays hidden.
    """
    return f"execution {other.execution_id}" if other.key_id == queued.key_id else "another execution"


def _contains(places: Sequence[int], place: int) -> bool:
    index = bisect_left(places, place)
    return index < len(places) and places[index] == place


def next_queued(db: Database) -> tuple[int, str | None] | None:
    """Return the number and the permissions of the execution that is claimed next.

    The permissions are at most its workspace's, and None if it continues a session or has limits. Without an execution
    this returns None.
    """
    with db.read() as connection:
        row = connection.execute(
            """
            SELECT x.number, x.permissions, w.permissions AS ceiling, x.continues IS NULL
                AND x.resume_session_id IS NULL AND x.max_turns IS NULL AND x.max_budget_usd IS NULL AS begins
            FROM executions x INDEXED BY executions_line
            LEFT JOIN workspaces w ON w.generation = x.workspace_generation
            WHERE x.state = 'queued' AND x.paused IS NULL AND NOT EXISTS (
                SELECT 1 FROM held_workspaces h WHERE h.workspace_generation = x.workspace_generation)
            ORDER BY coalesce(x.place, x.number) LIMIT 1
            """
        ).fetchone()
    if row is None:
        return None
    # By `lowest`, a damaged row has the lowest permissions.
    return row["number"], lowest("full", row["permissions"], row["ceiling"]) if row["begins"] else None


def running_workers(db: Database) -> set[int]:
    """Return the pids of the workers that run an execution."""
    with db.read() as connection:
        rows = connection.execute("SELECT owner_pid FROM executions WHERE state = 'running'").fetchall()
    return {row["owner_pid"] for row in rows}
