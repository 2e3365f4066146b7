"""Approvals: tool calls and questions that a person decides on; all SQL on them.

The first answer wins: one UPDATE starts from `open` and reports whether it won. An answer is delivered at most once:
its `delivered_at` is on the disk before Claude Code gets it.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from occ_app.config.permission_rules import Rule
from occ_app.database.database import Database
from occ_app.errors import Conflict, approval_not_found
from occ_app.executions import answers, remembering
from occ_app.executions.answers import Answer, Approval, Pending, Person, Request
from occ_app.system.compact_json import to_json
from occ_app.system.timestamps import iso, iso_now

MOST_ASKED = 200  # questions of one execution
_MAX_LISTED_CHARACTERS = 16 * 1024

SELECT = """
    SELECT a.*, x.execution_id, x.workspace_id, x.agent_id
    FROM approvals a JOIN executions x ON x.number = a.execution
"""
VISIBLE = "(:visible_to IS NULL OR x.owner_id = :visible_to)"


def ask(db: Database, execution: int, request: Request, hold_seconds: float) -> Approval:
    """Store an open approval.

    The execution may take `hold_seconds` longer before its worker counts as stuck. Raises Conflict when an execution
    has asked MOST_ASKED times.
    """
    approval_id = f"approval-{secrets.token_hex(6)}"
    expires = iso(datetime.now(UTC) + timedelta(seconds=hold_seconds))
    with db.write() as connection:
        asked = connection.execute(
            "SELECT count(*) FROM approvals WHERE execution = :execution", {"execution": execution}
        ).fetchone()[0]
        if asked >= MOST_ASKED:
            raise Conflict("TOO_MANY_APPROVALS", f"it has asked {MOST_ASKED} times; continue without more questions.")
        _insert(connection, approval_id, execution, request, expires)
        connection.execute(
            "UPDATE executions SET deadline = deadline + :seconds WHERE number = :execution",
            {"seconds": hold_seconds, "execution": execution},
        )
        row = one(connection, approval_id)
    assert row is not None  # noqa: S101 - inserted above
    return from_row(row)


def _insert(connection: sqlite3.Connection, approval_id: str, execution: int, request: Request, expires: str) -> None:
    connection.execute(
        """
        INSERT INTO approvals (approval_id, execution, kind, tool, input, input_hash, redacted, reason, subagent,
            asked_at, expires_at, state)
        VALUES (:approval_id, :execution, :kind, :tool, :input, :input_hash, :redacted, :reason, :subagent, :now,
            :expires, 'open')
        """,
        {
            "approval_id": approval_id,
            "execution": execution,
            "kind": request.kind,
            "tool": request.tool,
            "input": to_json(request.input),
            "input_hash": request.input_hash,
            "redacted": request.redacted,
            "reason": request.reason,
            "subagent": request.subagent,
            "now": iso_now(),
            "expires": expires,
        },
    )


def listing(db: Database, state: str | None = None, visible_to: str | None = None, limit: int = 1000) -> list[Approval]:
    """Return the newest approvals of the owner `visible_to`, or of all.

    They are sorted oldest first. `get` has the whole of a long input.
    """
    with db.read() as connection:
        rows = connection.execute(
            f"""
            {SELECT} WHERE (:state IS NULL OR a.state = :state) AND {VISIBLE}
            ORDER BY a.asked_at DESC, a.approval_id DESC LIMIT :limit
            """,
            {"state": state, "visible_to": visible_to, "limit": limit},
        )
        found = [_listed(row) for row in rows]
    return found[::-1]


def _listed(row: sqlite3.Row) -> Approval:
    """Return a row for a list.

    An input that is long as JSON is only its beginning, as a text.
    """
    approval = from_row(row)
    if len(row["input"]) <= _MAX_LISTED_CHARACTERS:
        return approval
    return replace(approval, input=row["input"][:_MAX_LISTED_CHARACTERS], truncated=True)


def get(db: Database, approval_id: str, visible_to: str | None = None) -> Approval:
    """One approval. Raises NotFound, also for one of another owner than `visible_to`."""
    approval = find(db, approval_id, visible_to)
    if approval is None:
        raise approval_not_found(approval_id)
    return approval


def find(db: Database, approval_id: str, visible_to: str | None = None) -> Approval | None:
    """Return one approval; None for an unknown one, or one of another owner."""
    with db.read() as connection:
        row = one(connection, approval_id, visible_to)
    return None if row is None else from_row(row)


def decide(db: Database, approval_id: str, answer: Answer, person: Person, own_rules: Sequence[Rule] = ()) -> Approval:
    """Close an open approval with a person's answer.

    The same answer again changes nothing. Raises NotFound, InvalidRequest for an answer that does not fit, Conflict
    when it was closed differently, and RequestError for an edited input that a rule denies: one of the operator's,
    `own_rules`, or of people.
    """
    with db.write() as connection:
        row = one(connection, approval_id, person.visible_to)
        if row is None:
            raise approval_not_found(approval_id)
        approval = from_row(row)
        answers.check(approval, answer)
        if approval.state == "open":
            remembering.check_edited(connection, approval.execution, approval.tool, answer.updated_input, own_rules)
        won = _close(connection, approval, answer, person)
        if won:
            found = approval.always(answer.updated_input)
            remembering.remember(connection, approval.execution, answer.remember, found, person.actor)
        if not won and approval.answer != answers.answer_of(answers.stored(answer)):
            raise answers.closed(approval)
        connection.execute(
            "UPDATE executions SET waits_for = 'a worker to be free' WHERE number = :execution AND state = 'parked'",
            {"execution": approval.execution},
        )
        after = one(connection, approval_id)
    assert after is not None  # noqa: S101 - read above, in this transaction
    return from_row(after)


def _close(connection: sqlite3.Connection, approval: Approval, answer: Answer, person: Person) -> bool:
    """Close an approval with an answer. False when it was not open any more."""
    won = connection.execute(
        """
        UPDATE approvals SET state = :state, message = :message, answer = :answer, actor = :actor,
            surface = :surface, decided_at = :now
        WHERE approval_id = :approval_id AND state = 'open'
        """,
        {
            "state": answers.state_after(approval, answer),
            "message": answer.message,
            "answer": answers.stored(answer),
            "actor": person.actor,
            "surface": person.surface,
            "now": iso_now(),
            "approval_id": approval.approval_id,
        },
    ).rowcount
    return won > 0


def undelivered(db: Database, execution: int) -> list[Approval]:
    """Return answers that the execution's worker has not taken yet.

    They are in the order of their decisions.
    """
    with db.read() as connection:
        rows = connection.execute(
            f"""
            {SELECT} WHERE a.execution = :execution AND a.delivered_at IS NULL
                AND a.state IN ('allowed', 'denied', 'answered')
            ORDER BY a.decided_at, a.approval_id
            """,
            {"execution": execution},
        ).fetchall()
    return [from_row(row) for row in rows]


def note_delivery(connection: sqlite3.Connection, approval_id: str) -> bool:
    """Note in the caller's transaction that the answer goes to Claude Code.

    False when it was noted before.
    """
    won = connection.execute(
        """
        UPDATE approvals SET delivered_at = :now
        WHERE approval_id = :approval_id AND delivered_at IS NULL AND state IN ('allowed', 'denied', 'answered')
        """,
        {"now": iso_now(), "approval_id": approval_id},
    ).rowcount
    return won > 0


def delivered_tool(db: Database, execution: int) -> str | None:
    """Return the tool of the newest allowed call whose answer Claude Code may have.

    None when there is none.
    """
    with db.read() as connection:
        row = connection.execute(
            """
            SELECT tool FROM approvals
            WHERE execution = :execution AND delivered_at IS NOT NULL AND state IN ('allowed', 'answered')
            ORDER BY delivered_at DESC LIMIT 1
            """,
            {"execution": execution},
        ).fetchone()
    return None if row is None else str(row["tool"])


def close(db: Database, approval_id: str, state: str, message: str) -> bool:
    """Close an approval as `expired` or `withdrawn`; False when it was not open."""
    with db.write() as connection:
        won = connection.execute(
            """
            UPDATE approvals SET state = :state, message = :message, decided_at = :now
            WHERE approval_id = :approval_id AND state = 'open'
            """,
            {"state": state, "message": message, "now": iso_now(), "approval_id": approval_id},
        ).rowcount
    return won > 0


def close_in(connection: sqlite3.Connection, execution: int, state: str, message: str) -> bool:
    """Close the open approval of an execution in the caller's transaction.

    False when none was open.
    """
    won = connection.execute(
        """
        UPDATE approvals SET state = :state, message = :message, decided_at = :now
        WHERE execution = :execution AND state = 'open'
        """,
        {"state": state, "message": message, "now": iso_now(), "execution": execution},
    ).rowcount
    return won > 0


def withdraw_all(connection: sqlite3.Connection, execution: int) -> None:
    """Close the open approvals of an execution that ends in the caller's transaction."""
    close_in(connection, execution, "withdrawn", "The execution ended.")


def holding(db: Database) -> int:
    """Return the number of executions that wait for a person and hold a worker."""
    with db.read() as connection:
        count: int = connection.execute(
            """
            SELECT count(DISTINCT a.execution) FROM approvals a JOIN executions x ON x.number = a.execution
            WHERE a.state = 'open' AND x.state = 'running'
            """
        ).fetchone()[0]
    return count


def one(connection: sqlite3.Connection, approval_id: str, visible_to: str | None = None) -> sqlite3.Row | None:
    """Return the row of an approval for `from_row`; None for one of another owner."""
    found: sqlite3.Row | None = connection.execute(
        f"{SELECT} WHERE a.approval_id = :approval_id AND {VISIBLE}",
        {"approval_id": approval_id, "visible_to": visible_to},
    ).fetchone()
    return found


def from_row(row: sqlite3.Row) -> Approval:
    """Return a row that `one` or a listing read as an Approval."""
    values = {name: row[name] for name in Approval.__dataclass_fields__}
    pending = None
    if row["pending"] is not None:
        content = json.loads(row["pending"])
        pending = Pending(**{**content, "answer": Answer(**content["answer"])})
    return Approval(
        **{
            **values,
            "input": json.loads(row["input"]),
            "redacted": bool(row["redacted"]),
            "truncated": bool(row["truncated"]),
            "answer": answers.answer_of(row["answer"]),
            "pending": pending,
            "problem": None if row["problem"] is None else json.loads(row["problem"]),
        }
    )
