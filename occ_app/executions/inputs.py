"""Inputs: texts of a person for an accepted execution, and all SQL on them.

A text steers the running turn or becomes a follow-up. It is sent at most once: `sent` is on the disk before Claude
Code gets it, and only a text that Claude Code never took becomes a follow-up. A text that it may have read is
`unknown` and is not sent again.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, replace

from occ_app.database.database import Database
from occ_app.errors import Conflict, NoSpace, QueueFull, execution_not_found, workspace_not_found
from occ_app.executions import acceptance, rules
from occ_app.executions.queries import numbered, one
from occ_app.executions.records import Execution, Request
from occ_app.system.short_ids import new_execution_id
from occ_app.system.timestamps import iso_now

STATES = ("waiting", "sent", "delivered", "queued", "unsent", "unknown")
DELIVERIES = ("steer", "queue")

NOT_RUNNING = "The execution does not run."
ENDED = "The execution ended before the text could be sent."
UNCERTAIN = "The execution ended before Claude Code confirmed the text; it may have been read."


@dataclass(frozen=True)
class Given:
    """A text as its sender gave it; `input_id` is an id of the sender's.

    Without `fallback` it becomes no follow-up if it cannot be sent, but `unsent`: a hub makes its own.
    """

    input_id: str
    text: str
    delivery: str
    key_id: str | None = None
    owner_id: str | None = None
    fallback: bool = True


@dataclass(frozen=True)
class Input:
    """A row of `inputs`; `follow_up` is the id of the execution that it became."""

    number: int
    execution: int
    input_id: str
    text: str
    wanted: str
    state: str
    follow_up: str | None
    reason: str | None
    key_id: str | None
    owner_id: str | None
    fallback: int

    @property
    def delivery(self) -> str | None:
        """Return `steer` once it was sent, `queue` once it is a follow-up, else None."""
        return {"waiting": None, "unsent": None, "queued": "queue"}.get(self.state, "steer")


def accept(
    db: Database,
    execution_id: str,
    given: Given,
    *,
    max_queue: int,
    admit: Callable[[sqlite3.Connection, Request], object] = lambda _connection, _request: None,
    visible_to: str | None = None,
) -> Input:
    """Store a text for an execution, or return the one with this id and text.

    It waits to be sent if it is to steer an execution that runs, else it becomes a follow-up now. Raises NotFound,
    Conflict for another text under the id, NoSpace, QueueFull, and the errors of `admit`.
    """
    with db.write() as connection:
        execution = one(connection, "x.execution_id = ?", (execution_id,))
        if execution is None or visible_to not in (None, execution.owner_id):
            raise execution_not_found(execution_id)
        existing = _existing(connection, execution, given)
        if existing is not None:
            return existing
        if db.disk_is_full():
            raise NoSpace
        row = connection.execute(
            """
            INSERT INTO inputs (execution, input_id, text, wanted, state, key_id, owner_id, created_at, fallback)
            VALUES (:execution, :input_id, :text, :delivery, 'waiting', :key_id, :owner_id, :now, :fallback)
            RETURNING *
            """,
            {**vars(given), "execution": execution.number, "now": iso_now()},
        ).fetchall()[0]
        if given.delivery == "steer" and execution.state == "running":
            return _input(row)
        if not given.fallback:
            return _queue(connection, _input(row), execution, NOT_RUNNING)
        queued = connection.execute("SELECT count(*) FROM executions WHERE state = 'queued'").fetchone()[0]
        if queued >= max_queue:
            raise QueueFull(queued)
        if not connection.execute(
            "SELECT 1 FROM workspaces WHERE generation = :generation", {"generation": execution.workspace_generation}
        ).fetchone():
            raise workspace_not_found(execution.workspace_id, execution.workspace_generation)
        admit(connection, _request(_input(row), execution, given.input_id))
        reason = None if given.delivery == "queue" else NOT_RUNNING
        return _queue(connection, _input(row), execution, reason)


def get(db: Database, number: int) -> Input:
    """Return the input with this number, which exists."""
    with db.read() as connection:
        return _numbered(connection, number)


def find(db: Database, execution: int, input_id: str) -> Input | None:
    """Return an execution's input with this id of its sender, or None."""
    with db.read() as connection:
        row = connection.execute(
            "SELECT * FROM inputs WHERE execution = :execution AND input_id = :input_id",
            {"execution": execution, "input_id": input_id},
        ).fetchone()
    return None if row is None else _input(row)


def waiting(db: Database, execution: int) -> list[Input]:
    """Texts that the execution's worker has not sent yet, in the order they came."""
    with db.read() as connection:
        rows = connection.execute(
            "SELECT * FROM inputs WHERE execution = :execution AND state = 'waiting' ORDER BY number",
            {"execution": execution},
        ).fetchall()
    return [_input(row) for row in rows]


def mark_sent(db: Database, number: int) -> bool:
    """Note, on the disk, that a text goes to Claude Code now.

    False when it no longer waits.
    """
    with db.write() as connection:
        return _change(connection, number, "sent", "waiting")


def settle(db: Database, number: int, state: str, reason: str | None = None) -> bool:
    """Note that a sent text is `delivered` or `unknown`.

    False when that was noted before.
    """
    with db.write() as connection:
        return _change(connection, number, state, "sent", reason)


def queue(db: Database, number: int, reason: str) -> Input:
    """Make a follow-up of a text that waits, or that Claude Code returned.

    Returns the input as it is then. One without a fallback is `unsent`.
    """
    with db.write() as connection:
        found = _numbered(connection, number)
        if found.state not in ("waiting", "sent"):
            return found
        return _queue(connection, found, numbered(connection, found.execution), reason)


def settle_all(connection: sqlite3.Connection, execution: int) -> None:
    """Settle the texts of an execution that ends in the caller's transaction."""
    rows = connection.execute(
        "SELECT * FROM inputs WHERE execution = :execution AND state IN ('waiting', 'sent') ORDER BY number",
        {"execution": execution},
    ).fetchall()
    for found in map(_input, rows):
        if found.state == "sent":
            _change(connection, found.number, "unknown", "sent", UNCERTAIN)
        else:
            _queue(connection, found, numbered(connection, execution), ENDED)


def _existing(connection: sqlite3.Connection, execution: Execution, given: Given) -> Input | None:
    row = connection.execute(
        "SELECT * FROM inputs WHERE execution = :execution AND input_id = :input_id",
        {"execution": execution.number, "input_id": given.input_id},
    ).fetchone()
    if row is None:
        return None
    if (row["text"], row["wanted"]) != (given.text, given.delivery):
        raise Conflict(
            "INPUT_CONFLICT",
            f"Input {given.input_id} of this execution exists with another text or delivery; choose a new inputId.",
            {"inputId": given.input_id},
        )
    return _input(row)


def _queue(connection: sqlite3.Connection, found: Input, former: Execution, reason: str | None) -> Input:
    """Make a follow-up of an input under its id, or a new one if that is used."""
    if not found.fallback:
        _change(connection, found.number, "unsent", found.state, reason)
        return _numbered(connection, found.number)
    taken = one(connection, "x.execution_id = ?", (found.input_id,)) is not None
    execution_id = new_execution_id() if taken else found.input_id
    # What narrows the turn narrows the text that was meant for it; once the turn is over, nothing of that is left.
    narrowing = tuple(rules.narrowing(connection, former.number))
    request = replace(_request(found, former, execution_id), rules=narrowing)
    acceptance.insert(connection, request, former.workspace_generation, former)
    connection.execute(
        """
        UPDATE inputs SET state = 'queued', follow_up = :follow_up, reason = :reason, settled_at = :now
        WHERE number = :number
        """,
        {"follow_up": execution_id, "reason": reason, "now": iso_now(), "number": found.number},
    )
    return _numbered(connection, found.number)


def _request(found: Input, former: Execution, execution_id: str) -> Request:
    """Return the request of an input's follow-up, with the settings of `former`."""
    body = {"executionId": execution_id, "prompt": found.text, "continues": former.execution_id}
    return Request(
        execution_id=execution_id,
        workspace_id=former.workspace_id,
        prompt=found.text,
        timeout_seconds=former.timeout_seconds,
        idle_timeout_seconds=former.idle_timeout_seconds,
        model=former.requested_model,
        max_turns=former.max_turns,
        max_budget_usd=former.max_budget_usd,
        session_id=None,
        hash=acceptance.request_hash(body),
        key_id=found.key_id,
        owner_id=found.owner_id,
        permissions=former.permissions,
        approval_seconds=former.approval_seconds,
        continues=former.execution_id,
        workspace_generation=former.workspace_generation,
        local_sharing="pending" if former.local_sharing in ("pending", "announced") else None,
    )


def _change(
    connection: sqlite3.Connection, number: int, state: str, from_state: str, reason: str | None = None
) -> bool:
    won = connection.execute(
        """
        UPDATE inputs SET state = :state, reason = :reason,
            sent_at = iif(:state = 'sent', :now, sent_at), settled_at = iif(:state = 'sent', NULL, :now)
        WHERE number = :number AND state = :from_state
        """,
        {"state": state, "reason": reason, "now": iso_now(), "number": number, "from_state": from_state},
    ).rowcount
    return won > 0


def _numbered(connection: sqlite3.Connection, number: int) -> Input:
    return _input(connection.execute("SELECT * FROM inputs WHERE number = :number", {"number": number}).fetchone())


def _input(row: sqlite3.Row) -> Input:
    return Input(**{name: row[name] for name in Input.__dataclass_fields__})
