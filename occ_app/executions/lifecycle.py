"""The life of an execution, with all SQL that changes its state.

States go queued → running → succeeded | failed | cancelled; a queued one may end without running. A running one may be
parked, and runs again or ends (parking.py). Each change is one UPDATE that names the state it starts from, so a lost
race is reported. The final event and the final state are one transaction, and nothing is ever appended after it.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from occ_app import errors
from occ_app.database.database import Database
from occ_app.errors import execution_not_found, workspace_not_found
from occ_app.executions import (
    acceptance,
    approvals,
    ceilings,
    conversations,
    events,
    follow_ups,
    inputs,
    parking,
    process_marks,
    rules,
)
from occ_app.executions.queries import SESSION, from_row, one
from occ_app.executions.records import Execution, Outcome, Request
from occ_app.system import compact_json
from occ_app.system.process_identity import ProcessIdentity
from occ_app.system.timestamps import iso_now

WORKSPACE_REMOVED = "Its workspace was removed before this could start; upload the folder and send the prompt again."

SESSION_UNKNOWN = (
    "No execution of yours began this session in this workspace; leave out sessionId, or name another one."
)


@dataclass(frozen=True)
class Admission:
    """A check's reply before acceptance: the named agent, and its free workers."""

    agent_id: str | None = None
    free_workers: int = 0


def create(
    db: Database,
    request: Request,
    *,
    max_queue: int,
    admit: Callable[[sqlite3.Connection, Request], Admission] = lambda _connection, _request: Admission(),
    resolve: Callable[[sqlite3.Connection, str], str] = lambda _connection, workspace_id: workspace_id,
) -> tuple[Execution, bool]:
    """Accept an execution with its `queued` event; returns it and whether it is new.

    Not yet on the disk: call `db.sync()` before acknowledging it.

    The same id with the same body is the execution that exists. `admit` may look at the rows before one is added.
    `resolve` returns the id of the workspace that a new request names. Raises Conflict for another body, NotFound for
    an unknown workspace, or one of another number than the request names, RequestError above the workspace's ceiling,
    NoSpace, QueueFull, and the errors of `admit`.
    """
    with db.write(durable=False) as connection:
        existing = _existing(connection, request)
        if existing is not None:
            return existing, False
        request, former = conversations.continued(connection, request)
        if former is None:
            request = replace(request, workspace_id=resolve(connection, request.workspace_id))
        generation, ceiling = _workspace(connection, request)
        request = ceilings.permitted(request, ceiling)
        if db.disk_is_full():
            raise errors.NoSpace
        admission = admit(connection, request)
        queued = connection.execute("SELECT count(*) FROM executions WHERE state = 'queued'").fetchone()[0]
        if queued >= max_queue:
            raise errors.QueueFull(queued)
        execution = acceptance.insert(
            connection,
            request,
            generation,
            former,
            agent_id=admission.agent_id,
            free_workers=admission.free_workers,
            alone=queued == 0,
        )
        return execution, True


def _existing(connection: sqlite3.Connection, request: Request) -> Execution | None:
    """Return the execution of an earlier, equal request; None for a new id.

    Raises Conflict.
    """
    existing = one(connection, "x.execution_id = ?", (request.execution_id,))
    if existing is None or (existing.request_hash == request.hash and existing.owner_id == request.owner_id):
        return existing
    raise errors.Conflict(
        "EXECUTION_CONFLICT",
        f"Execution {request.execution_id} exists with another body; choose a new executionId.",
        {"executionId": request.execution_id},
    )


def _workspace(connection: sqlite3.Connection, request: Request) -> tuple[int, str | None]:
    """Return the number and the ceiling of a request's workspace, or raise NotFound."""
    workspace = connection.execute(
        """
        SELECT generation, permissions FROM workspaces
        WHERE workspace_id = :workspace_id AND (:generation IS NULL OR generation = :generation)
        """,
        {"workspace_id": request.workspace_id, "generation": request.workspace_generation},
    ).fetchone()
    if workspace is None:
        raise workspace_not_found(request.workspace_id, request.workspace_generation)
    return int(workspace["generation"]), workspace["permissions"]


def claim(db: Database, owner: ProcessIdentity, may: Callable[[], bool] = lambda: True) -> Execution | None:
    """Take the next execution for `owner`; None if there is none, or it may not.

    `may` is called in the transaction: who forbids claims and waits for the writers of before knows of every claim.

    That is a parked one that a person answered, or else the oldest queued one whose workspace is idle. A queued one is
    claimed once ever: the UPDATE starts from 'queued'. Not waited for on disk: the CLI gets its prompt only after a
    `db.sync()`.
    """
    with db.write(durable=False) as connection:
        if not may():
            return None
        answered = parking.claim(connection, owner)
        if answered is not None:
            return answered
        rows = connection.execute(
            f"""
            UPDATE executions AS x SET state = 'running', resume_session_id = {SESSION}, started_at = ?,
                owner_boot_id = ?, owner_pid = ?, owner_start = ?,
                deadline = ? + timeout_seconds
            WHERE x.number = (
                SELECT q.number FROM executions q INDEXED BY executions_line
                WHERE q.state = 'queued' AND q.paused IS NULL AND NOT EXISTS (
                    SELECT 1 FROM held_workspaces h WHERE h.workspace_generation = q.workspace_generation)
                ORDER BY coalesce(q.place, q.number) LIMIT 1)
            RETURNING *, (SELECT max(seq) FROM events WHERE execution = number) AS newest_seq
            """,  # noqa: S608 - a literal
            (iso_now(), owner.boot_id, owner.pid, owner.start, time.monotonic()),
        ).fetchall()
        return from_row(rows[0]) if rows else None


def finish(db: Database, number: int, outcome: Outcome, *, after: int = 0, relayed: bool = False) -> int:
    """End a running execution: the final event and the state in one transaction.

    `after` is the seq that the final event comes after, where the newest events are missing. Returns its own seq; 0
    when the execution was over already. `relayed`: it may be parked on its machine.
    """
    with db.write() as connection:
        seq = _finish(connection, number, outcome, "running", after)
        return seq or (_finish(connection, number, outcome, "parked", after) if relayed else 0)


def expire(db: Database, number: int) -> bool:
    """End a parked execution whose approval is still open and overdue."""
    with db.write() as connection:
        if not approvals.close_in(connection, number, "expired", "Nobody answered in time."):
            return False
        outcome = parking.spent_by(connection, number).with_outcome(parking.EXPIRED)
        return _finish(connection, number, outcome, "parked") > 0


def give_up(db: Database, number: int, outcome: Outcome) -> bool:
    """End an execution that still waits. False when it does not any more."""
    with db.write() as connection:
        return _finish(connection, number, outcome, "queued") > 0


def end_waiting(connection: sqlite3.Connection, generation: int, message: str = WORKSPACE_REMOVED) -> list[int]:
    """End all that waits for a workspace the caller's transaction removes."""
    rows = connection.execute(
        "SELECT number FROM executions WHERE state = 'queued' AND workspace_generation = :generation ORDER BY number",
        {"generation": generation},
    ).fetchall()
    outcome = Outcome.failure("WORKSPACE_MISSING", message)
    return [row["number"] for row in rows if _finish(connection, row["number"], outcome, "queued")]


def abandon_all(db: Database, outcome: Outcome) -> int:
    """End every execution in a copy of the rows without workers; returns how many."""
    with db.write() as connection:
        rows = connection.execute(
            "SELECT number, state FROM executions WHERE state IN ('queued', 'running', 'parked')"
        ).fetchall()
        # The copy has no snapshots, and the worker that would free the workspace belongs to the original.
        connection.execute(
            "UPDATE executions SET changes_reason = 'lost', holds_workspace = NULL WHERE holds_workspace = 1"
        )
        return sum(_finish(connection, row["number"], outcome, row["state"]) > 0 for row in rows)


def cancel(
    db: Database,
    execution_id: str,
    code: str,
    message: str,
    visible_to: str | None = None,
    generation: int | None = None,
) -> Execution:
    """Cancel an execution, which ends with `code`.

    One without a worker ends here, a running one by its worker: ring it. Harmless when it is over. Raises NotFound,
    also for one of another owner than `visible_to`, or of a workspace with another number than `generation`.
    """
    with db.write() as connection:
        execution = one(connection, "x.execution_id = ?", (execution_id,))
        if execution is None or visible_to not in (None, execution.owner_id):
            raise execution_not_found(execution_id)
        if generation not in (None, execution.workspace_generation):  # another caller's, under the same id
            raise execution_not_found(execution_id)
        if execution.state == "queued":
            _finish(connection, execution.number, Outcome.failure(code, message), "queued")
        elif execution.state == "parked" and execution.agent_id is None:
            outcome = Outcome.failure(code, "The execution was cancelled while it waited for a person.")
            outcome = parking.spent_by(connection, execution.number).with_outcome(outcome)
            _finish(connection, execution.number, outcome, "parked")
        elif not execution.over:
            connection.execute(
                "UPDATE executions SET stop_requested = coalesce(stop_requested, ?) WHERE number = ?",
                (code, execution.number),
            )
        after = one(connection, "x.number = ?", (execution.number,))
        assert after is not None  # noqa: S101 - read above, in this transaction
        return after


def forget_prompt(db: Database, number: int) -> None:
    """Remove prompt, approvals and snapshots of a finished execution."""
    with db.write(durable=False) as connection:
        connection.execute(
            "UPDATE executions SET prompt = NULL,"
            " start_tree = iif(holds_workspace IS NULL, NULL, start_tree), end_tree = NULL"
            " WHERE number = ? AND last_seq IS NOT NULL",
            (number,),
        )
        for table in ("fetched_changes", "inputs", "approvals", "attachments"):
            connection.execute(f"DELETE FROM {table} WHERE execution = :number", {"number": number})  # noqa: S608 - literals


def _finish(connection: sqlite3.Connection, number: int, outcome: Outcome, from_state: str, after: int = 0) -> int:
    newest = connection.execute("SELECT max(seq) FROM events WHERE execution = ?", (number,)).fetchone()[0]
    seq = 1 + max(newest, after)
    data = outcome.data
    won = connection.execute(
        """
        UPDATE executions SET state = ?, finished_at = ?, last_seq = ?, exit_code = ?, signal = ?, error_code = ?,
            error_message = ?, session_id = coalesce(?, session_id), cost_usd = ?, cost_exact = ?, usage = ?,
            num_turns = ?, duration_ms = ?, waits_for = NULL, last_message = coalesce(?, last_message),
            parked_seconds = parked_seconds + coalesce(max(0, (julianday('now') - julianday(parked_at)) * 86400), 0),
            parked_at = NULL
        WHERE number = ? AND state = ?
        """,
        (
            outcome.state,
            outcome.finished_at or iso_now(),
            seq,
            data.get("exitCode"),
            data.get("signal"),
            data.get("code"),
            data.get("message"),
            data.get("sessionId"),
            data.get("costUsd"),
            data.get("costExact") is not False,
            None if outcome.usage is None else compact_json.to_json(outcome.usage),
            data.get("numTurns"),
            data.get("durationMs"),
            outcome.last_message,
            number,
            from_state,
        ),
    ).rowcount
    if won:
        approvals.withdraw_all(connection, number)
        process_marks.forget(connection, number)
        if from_state != "queued":
            inputs.settle_all(connection, number)
        rules.forget(connection, number)  # after the texts that take its rules along
        if from_state != "queued" and outcome.state != "succeeded":
            follow_ups.pause_after(connection, number)
        parking.forget(connection, number)
        events.insert(connection, number, seq, [(outcome.event, compact_json.to_json(data))])
    return seq if won else 0
