"""Approvals, and all SQL on them: tool calls and questions of a running execution that a person decides on.

The first answer wins: one UPDATE starts from `open` and says whether it won. An answer is delivered at most once: its
`delivered_at` is on the disk before Claude Code gets it.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from occ_app.database.database import Database
from occ_app.errors import Conflict, InvalidRequest, approval_not_found
from occ_app.system.compact_json import to_json
from occ_app.system.timestamps import iso, iso_now

STATES = ("open", "allowed", "denied", "answered", "expired", "withdrawn")
KINDS = ("tool", "question", "plan")

_SELECT = """
    SELECT a.*, x.execution_id, x.workspace_id
    FROM approvals a JOIN executions x ON x.number = a.execution
"""
_VISIBLE = "(:visible_to IS NULL OR x.owner_id = :visible_to)"


@dataclass(frozen=True)
class Request:
    """A tool call that Claude Code asks about. `input_hash` is the SHA-256 of the whole input's JSON.

    `input` is shown; it is `redacted` when secrets were taken out of it.
    """

    kind: str
    tool: str
    input: Any
    input_hash: str
    redacted: bool = False
    reason: str | None = None
    subagent: str | None = None


@dataclass(frozen=True)
class Answer:
    """The decision of a person. `message` explains a denial; `answers` map the questions' texts to their answers."""

    decision: str
    input_hash: str | None = None
    message: str | None = None
    updated_input: Mapping[str, Any] | None = None
    answers: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Approval:
    """A row of `approvals` with the ids of its execution and workspace."""

    approval_id: str
    execution: int
    execution_id: str
    workspace_id: str
    kind: str
    tool: str
    input: Any
    input_hash: str
    redacted: bool
    reason: str | None
    subagent: str | None
    asked_at: str
    expires_at: str
    state: str
    message: str | None
    answer: Answer | None
    actor: str | None
    decided_at: str | None
    delivered_at: str | None


def ask(db: Database, execution: int, request: Request, hold_seconds: float) -> Approval:
    """Store an open approval; the execution may take `hold_seconds` longer before its worker counts as stuck."""
    approval_id = f"approval-{secrets.token_hex(6)}"
    expires = iso(datetime.now(UTC) + timedelta(seconds=hold_seconds))
    with db.write() as connection:
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
        connection.execute(
            "UPDATE executions SET deadline = deadline + :seconds WHERE number = :execution",
            {"seconds": hold_seconds, "execution": execution},
        )
        row = _one(connection, approval_id)
    assert row is not None  # noqa: S101 - inserted above
    return _approval(row)


def listing(db: Database, state: str | None = None, visible_to: str | None = None, limit: int = 1000) -> list[Approval]:
    """Approvals of the owner `visible_to`, or of all, oldest first."""
    with db.read() as connection:
        rows = connection.execute(
            f"""
            {_SELECT} WHERE (:state IS NULL OR a.state = :state) AND {_VISIBLE}
            ORDER BY a.asked_at, a.approval_id LIMIT :limit
            """,
            {"state": state, "visible_to": visible_to, "limit": limit},
        ).fetchall()
    return [_approval(row) for row in rows]


def get(db: Database, approval_id: str, visible_to: str | None = None) -> Approval:
    """One approval. Raises NotFound, also for one of another owner than `visible_to`."""
    approval = find(db, approval_id, visible_to)
    if approval is None:
        raise approval_not_found(approval_id)
    return approval


def find(db: Database, approval_id: str, visible_to: str | None = None) -> Approval | None:
    """One approval; None for an unknown one, or one of another owner than `visible_to`."""
    with db.read() as connection:
        row = _one(connection, approval_id, visible_to)
    return None if row is None else _approval(row)


def decide(db: Database, approval_id: str, answer: Answer, actor: str, visible_to: str | None = None) -> Approval:
    """Close an open approval with a person's answer; the same answer again changes nothing.

    Raises NotFound, InvalidRequest for an answer that does not fit, and Conflict when it was closed differently.
    """
    with db.write() as connection:
        row = _one(connection, approval_id, visible_to)
        if row is None:
            raise approval_not_found(approval_id)
        approval = _approval(row)
        _check(approval, answer)
        won = connection.execute(
            """
            UPDATE approvals SET state = :state, message = :message, answer = :answer, actor = :actor, decided_at = :now
            WHERE approval_id = :approval_id AND state = 'open'
            """,
            {
                "state": _state_after(approval, answer),
                "message": answer.message,
                "answer": _stored(answer),
                "actor": actor,
                "now": iso_now(),
                "approval_id": approval_id,
            },
        ).rowcount
        if not won and row["answer"] != _stored(answer):
            raise _closed(approval)
        after = _one(connection, approval_id)
    assert after is not None  # noqa: S101 - read above, in this transaction
    return _approval(after)


def undelivered(db: Database, execution: int) -> list[Approval]:
    """Answers that the execution's worker has not taken yet, in the order of their decisions."""
    with db.read() as connection:
        rows = connection.execute(
            f"""
            {_SELECT} WHERE a.execution = :execution AND a.delivered_at IS NULL
                AND a.state IN ('allowed', 'denied', 'answered')
            ORDER BY a.decided_at, a.approval_id
            """,
            {"execution": execution},
        ).fetchall()
    return [_approval(row) for row in rows]


def mark_delivered(db: Database, approval_id: str) -> bool:
    """Note, on the disk, that the answer goes to Claude Code now. False when it was noted before."""
    with db.write() as connection:
        won = connection.execute(
            """
            UPDATE approvals SET delivered_at = :now
            WHERE approval_id = :approval_id AND delivered_at IS NULL AND state IN ('allowed', 'denied', 'answered')
            """,
            {"now": iso_now(), "approval_id": approval_id},
        ).rowcount
    return won > 0


def close(db: Database, approval_id: str, state: str, message: str) -> bool:
    """Close an open approval without a person: `expired` or `withdrawn`. False when it was not open any more."""
    with db.write() as connection:
        won = connection.execute(
            """
            UPDATE approvals SET state = :state, message = :message, decided_at = :now
            WHERE approval_id = :approval_id AND state = 'open'
            """,
            {"state": state, "message": message, "now": iso_now(), "approval_id": approval_id},
        ).rowcount
    return won > 0


def withdraw_all(connection: sqlite3.Connection, execution: int) -> None:
    """Close the open approvals of an execution that ends in the caller's transaction."""
    connection.execute(
        """
        UPDATE approvals SET state = 'withdrawn', message = 'The execution ended.', decided_at = :now
        WHERE execution = :execution AND state = 'open'
        """,
        {"now": iso_now(), "execution": execution},
    )


def holding(db: Database) -> int:
    """The number of executions that wait for a person, each of which holds a worker."""
    with db.read() as connection:
        count: int = connection.execute(
            """
            SELECT count(DISTINCT a.execution) FROM approvals a JOIN executions x ON x.number = a.execution
            WHERE a.state = 'open' AND x.state = 'running'
            """
        ).fetchone()[0]
    return count


def _check(approval: Approval, answer: Answer) -> None:
    """Raise InvalidRequest when an answer does not fit its approval."""
    if answer.decision == "deny":
        return
    if answer.input_hash != approval.input_hash:
        message = "`inputHash` is not that of this approval: read it again, look at the whole input, and answer then."
        raise InvalidRequest(message, {"inputHash": ["Not the hash of the input."]})
    if answer.updated_input is not None and (approval.redacted or approval.kind != "tool"):
        message = "This input cannot be edited: it has secrets that are not shown, or is a question or a plan."
        raise InvalidRequest(message, {"updatedInput": ["Cannot be edited."]})
    if (answer.answers is not None) != (approval.kind == "question"):
        message = (
            "Answer a question with `answers`, an object from the question's text to its answer, and nothing else."
        )
        raise InvalidRequest(message, {"answers": ["Wanted for questions alone."]})


def _state_after(approval: Approval, answer: Answer) -> str:
    if answer.decision == "deny":
        return "denied"
    return "answered" if approval.kind == "question" else "allowed"


def _one(connection: sqlite3.Connection, approval_id: str, visible_to: str | None = None) -> sqlite3.Row | None:
    found: sqlite3.Row | None = connection.execute(
        f"{_SELECT} WHERE a.approval_id = :approval_id AND {_VISIBLE}",
        {"approval_id": approval_id, "visible_to": visible_to},
    ).fetchone()
    return found


def _stored(answer: Answer) -> str:
    return to_json(
        {
            "decision": answer.decision,
            "message": answer.message,
            "updated_input": answer.updated_input,
            "answers": answer.answers,
        }
    )


def _approval(row: sqlite3.Row) -> Approval:
    values = {name: row[name] for name in Approval.__dataclass_fields__}
    answer = None if row["answer"] is None else Answer(**json.loads(row["answer"]))
    return Approval(
        **{**values, "input": json.loads(row["input"]), "redacted": bool(row["redacted"]), "answer": answer}
    )


def _closed(approval: Approval) -> Conflict:
    how = f"{approval.state} by {approval.actor}" if approval.actor else approval.state
    return Conflict(
        "APPROVAL_CLOSED",
        f"Approval {approval.approval_id} is {how} already; nothing was changed.",
        {"approvalId": approval.approval_id, "state": approval.state, "actor": approval.actor},
    )
