"""Queries on executions; lifecycle.py has the changes."""

from __future__ import annotations

import json
import math
import sqlite3
from typing import Any

from occ_app.database import rows
from occ_app.database.database import Database
from occ_app.errors import execution_not_found
from occ_app.executions import waiting
from occ_app.executions.records import Execution
from occ_app.system.compact_json import object_of
from occ_app.system.foreign_text import storable, whole_characters

_COLUMNS = """
    x.*,
    coalesce(x.last_seq, (SELECT max(seq) FROM events WHERE execution = x.number), 0) AS newest_seq
"""


def select(condition: str) -> str:
    """Return the SELECT of whole executions `x` that meet a condition, a literal."""
    return f"SELECT {_COLUMNS} FROM executions x WHERE {condition}"  # noqa: S608 - callers pass literals


def claimable(db: Database) -> int:
    """Return how many executions could run now, given workers.

    These are the answered ones, and one for each idle workspace.
    """
    with db.read() as connection:
        count: int = connection.execute(
            """
            SELECT count(DISTINCT workspace_generation) + (
                SELECT count(*) FROM executions x JOIN parkings p ON p.execution = x.number
                JOIN approvals a ON a.approval_id = p.approval_id
                WHERE x.state = 'parked' AND a.state IN ('allowed', 'denied', 'answered') AND a.delivered_at IS NULL)
            FROM executions q WHERE state = 'queued' AND paused IS NULL AND NOT EXISTS (
                SELECT 1 FROM held_workspaces h WHERE h.workspace_generation = q.workspace_generation)
            """
        ).fetchone()[0]
    return count


def cancel_code(db: Database, number: int) -> str | None:
    """Return the error code of a cancelled execution; None when nobody cancelled it."""
    with db.read() as connection:
        row = connection.execute("SELECT stop_requested FROM executions WHERE number = ?", (number,)).fetchone()
        return row["stop_requested"] if row else None


# SQL for the session that an execution `x` resumes, as it starts: that of the last turn in its conversation that has
# one, if it continues one. Known only once those turns are over.
SESSION = """coalesce(x.resume_session_id, (
    SELECT p.session_id FROM executions p
    WHERE x.continues IS NOT NULL AND p.number <> x.number AND p.conversation = CASE WHEN x.fork
      THEN (SELECT f.conversation FROM executions f WHERE f.number = x.continues) ELSE x.conversation END
      AND p.session_id IS NOT NULL
    ORDER BY coalesce(p.place, p.number) DESC LIMIT 1))"""


def may_resume(db: Database, execution: Execution) -> bool:
    """Return whether an execution may resume the session that it names.

    The session must have begun in its workspace and be its owner's: the CLI resumes any session of its home in any
    folder. Operators and admins may resume those of every key. True also without a session.
    """
    if execution.resume_session_id is None:
        return execution.continues is None  # the turn before it began no session
    with db.read() as connection:
        row = connection.execute(
            """
            SELECT 1 FROM executions x
            WHERE x.session_id = :session_id AND x.number < :number AND x.workspace_generation > 0
              AND x.workspace_generation = :generation
              AND x.number > (SELECT sessions_after FROM workspaces WHERE generation = :generation)
              AND (x.owner_id IS :owner_id OR :owner_id IS NULL
                   OR (SELECT k.admin FROM keys k WHERE k.key_id = :key_id))
            LIMIT 1
            """,
            {
                "session_id": execution.resume_session_id,
                "number": execution.number,
                "generation": execution.workspace_generation,
                "owner_id": execution.owner_id,
                "key_id": execution.key_id,
            },
        ).fetchone()
    return row is not None


def get(db: Database, execution_id: str, visible_to: str | None = None, generation: int | None = None) -> Execution:
    """One execution.

    Raises NotFound, also for one of another owner than `visible_to`, or of a workspace with another number than
    `generation`.
    """
    with db.read() as connection:
        execution = one(connection, "x.execution_id = ?", (execution_id,))
        if execution is None or visible_to not in (None, execution.owner_id):
            raise execution_not_found(execution_id)
        if generation not in (None, execution.workspace_generation):
            raise execution_not_found(execution_id)
        return waiting.described(connection, [execution])[0]


def find(db: Database, execution_id: str, visible_to: str | None = None) -> Execution | None:
    """One execution as its row has it, without a position; None where `get` raises."""
    with db.read() as connection:
        execution = one(connection, "x.execution_id = ?", (execution_id,))
    return execution if execution is not None and visible_to in (None, execution.owner_id) else None


def listing(
    db: Database,
    *,
    state: str | None = None,
    workspace_id: str | None = None,
    agent_id: str | None = None,
    owner_id: str | None = None,
    since: str | None = None,
    id_prefix: str | None = None,
    before: int | None = None,
    limit: int = 50,
) -> tuple[list[Execution], int | None]:
    """Return executions, newest first, and `before` for the next page.

    `before` is None after the last page.
    """
    conditions, values = ["1"], list[Any]()
    for condition, value in (
        ("x.state = ?", state),
        ("x.workspace_id = ?", workspace_id),
        ("x.agent_id = ?", agent_id),
        ("x.owner_id = ?", owner_id),
        ("x.created_at >= ?", since),
        ("x.execution_id >= ?", id_prefix),
        ("x.execution_id < ?", None if id_prefix is None else id_prefix + "\x7f"),  # above every letter of an id
        ("x.number < ?", before),
    ):
        if value is not None:
            conditions.append(condition)
            values.append(value)
    with db.read() as connection:
        rows = connection.execute(
            f"SELECT {_COLUMNS} FROM executions x WHERE {' AND '.join(conditions)} ORDER BY x.number DESC LIMIT ?",  # noqa: S608 - the conditions are the literals above
            (*values, limit + 1),
        ).fetchall()
        shown_rows = waiting.described(connection, [from_row(row) for row in rows[:limit]])
    return shown_rows, shown_rows[-1].number if len(rows) > limit else None


def running(db: Database) -> list[Execution]:
    """Everything that is marked as running, oldest first."""
    with db.read() as connection:
        rows = connection.execute(
            f"SELECT {_COLUMNS} FROM executions x WHERE x.state = 'running' ORDER BY x.number"  # noqa: S608 - no values in it
        ).fetchall()
    return [from_row(row) for row in rows]


def relayed(db: Database) -> list[Execution]:
    """On a hub: everything that its machines run or have parked, oldest first."""
    with db.read() as connection:
        rows = connection.execute(
            f"SELECT {_COLUMNS} FROM executions x WHERE x.state IN ('running', 'parked') ORDER BY x.number"  # noqa: S608 - no values in it
        ).fetchall()
    return [from_row(row) for row in rows]


def oldest_stored(db: Database, before: str | None) -> int | None:
    """Return the number of the oldest finished execution with stored output.

    It ended before `before`.
    """
    with db.read() as connection:
        row = connection.execute(
            """
            SELECT number FROM executions
            WHERE prompt IS NOT NULL AND last_seq IS NOT NULL AND (? IS NULL OR finished_at < ?)
            ORDER BY number LIMIT 1
            """,
            (before, before),
        ).fetchone()
    return None if row is None else row["number"]


def newest_moment(db: Database) -> str | None:
    """Return the newest time of acceptance, ISO; None without executions."""
    with db.read() as connection:
        row = connection.execute("SELECT created_at FROM executions ORDER BY number DESC LIMIT 1").fetchone()
    return None if row is None else str(row["created_at"])


def running_count(connection: sqlite3.Connection) -> int:
    """Return how many run, inside the caller's transaction."""
    count: int = connection.execute("SELECT count(*) FROM executions WHERE state = 'running'").fetchone()[0]
    return count


def counts(db: Database) -> tuple[int, int]:
    """How many run and how many wait."""
    with db.read() as connection:
        row = connection.execute(
            """SELECT (SELECT count(*) FROM executions WHERE state = 'running') AS running,
                      (SELECT count(*) FROM executions WHERE state = 'queued') AS queued"""
        ).fetchone()
    return row["running"], row["queued"]


def numbered(connection: sqlite3.Connection, number: int) -> Execution:
    """Return the execution with this number in the caller's transaction."""
    execution = one(connection, "x.number = ?", (number,))
    assert execution is not None  # noqa: S101 - the caller has the number from a row
    return execution


def one(connection: sqlite3.Connection, condition: str, values: tuple[Any, ...]) -> Execution | None:
    """Return the execution that meets a condition on `x`, or None.

    Reads inside the caller's transaction.
    """
    row = connection.execute(f"SELECT {_COLUMNS} FROM executions x WHERE {condition}", values).fetchone()  # noqa: S608 - callers pass literals
    return None if row is None else from_row(row)


def from_row(row: sqlite3.Row) -> Execution:
    """Return a row with its `newest_seq` as a value without a position."""
    values = dict(row) | {"position": None, "resume_at": None}
    values["last_seq"] = values.pop("newest_seq")
    values["cancel_code"] = values.pop("stop_requested")
    values["prompt_sent"] = values.pop("offered")
    values["wanted_labels"] = rows.texts(values["wanted_labels"])
    values["cost_exact"] = bool(values["cost_exact"])
    values["fork"] = bool(values["fork"])
    values["permissions_named"] = bool(values["permissions_named"])
    values["changes"] = _usage(values["changes"])
    values["attachments"] = _list(values["attachments"])
    # A row of an earlier version may hold unchecked data of a machine or a CLI.
    values["usage"] = _usage(values["usage"])
    for name in _NUMBERS:
        values[name] = _finite(values[name])
    for name in _TEXTS:
        values[name] = None if values[name] is None else whole_characters(str(values[name])[:_MAX_TEXT_CHARACTERS])
    return Execution(**rows.sound(Execution, values, values["number"]))  # a newer schema may have further columns


_NUMBERS = ("exit_code", "signal", "cost_usd", "num_turns", "duration_ms")
_MAX_TEXT_CHARACTERS = 64 * 1024  # of one text in a record: a list has up to 1,000
_TEXTS = ("error_code", "error_message", "session_id", "model", "claude_version")


def _usage(text: Any) -> Any:
    """Return the usage that a row holds; None when it cannot be read."""
    try:
        return None if text is None else storable(object_of(text))
    except (ValueError, TypeError):
        return None


def _list(text: Any) -> list[Any]:
    """Return the JSON list that a row holds; empty for anything else."""
    try:
        found = json.loads(text) if isinstance(text, str) else []
    except (ValueError, RecursionError):
        return []
    return storable(found) if isinstance(found, list) else []


def _finite(value: Any) -> Any:
    """Return a number of a row; None for anything else that SQLite lets a column hold."""
    return value if isinstance(value, (int, float)) and math.isfinite(value) else None
