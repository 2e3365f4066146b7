"""The hub's rows of its machines' approvals, and all SQL on them.

A row copies the machine's report. Only a report of that machine, or the end of its execution, closes it. An answer
given on the hub is stored beside it as `pending` until the machine has replied.
"""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from occ_app.database.database import Database
from occ_app.errors import Conflict, Forbidden, approval_not_found
from occ_app.executions import answers, approvals
from occ_app.executions.answers import Answer, Approval, Pending, Person
from occ_app.system.compact_json import to_json
from occ_app.system.timestamps import iso, iso_now

log = logging.getLogger("occ.approvals")

_MAX_OPEN = 100  # of one execution; a machine has a few open at once
_MAX_MESSAGE_CHARACTERS = 4000


def note_asked(db: Database, execution: int, data: Mapping[str, Any]) -> Approval | None:
    """Store an approval that a machine reported for one of its executions.

    `data` is the checked event. Returns None when the hub stores no row: the kind is unknown, the id belongs to
    another execution's approval, or too many approvals of the execution are open.
    """
    if data["kind"] not in answers.KINDS:
        return None
    with db.write() as connection:
        connection.execute(
            """
            INSERT INTO approvals (approval_id, execution, kind, tool, input, input_hash, redacted, reason, subagent,
                asked_at, expires_at, state, truncated)
            SELECT :approval_id, number, :kind, :tool, :input, :input_hash, :redacted, :reason, :subagent,
                :asked_at, :expires_at, 'open', :truncated
            FROM executions WHERE number = :execution AND finished_at IS NULL
              AND (SELECT count(*) FROM approvals WHERE execution = :execution AND state = 'open') < :most
            ON CONFLICT DO NOTHING
            """,
            {
                "approval_id": data["approvalId"],
                "execution": execution,
                "kind": data["kind"],
                "tool": data["tool"],
                "input": to_json(data["input"]),
                "input_hash": data["inputHash"],
                "redacted": data.get("redacted") is True,
                "reason": data.get("reason"),
                "subagent": data.get("subagent"),
                "asked_at": moment(data.get("askedAt")),
                "expires_at": moment(data.get("expiresAt")),
                "truncated": data.get("truncated") is True,
                "most": _MAX_OPEN,
            },
        )
        row = approvals.one(connection, data["approvalId"])
    if row is None or row["execution"] != execution:
        log.warning("execution number %d: its machine reported an approval that is not stored", execution)
        return None
    return approvals.from_row(row)


def note_resolved(db: Database, execution: int, data: Mapping[str, Any]) -> None:
    """Close an approval that its machine reports as closed.

    Nothing happens unless it is an open approval of this execution.
    """
    if data["state"] not in answers.STATES or data["state"] == "open":
        return
    with db.write() as connection:
        row = approvals.one(connection, data["approvalId"])
        if row is not None and row["execution"] == execution:
            _close(connection, approvals.from_row(row), data, taken=False)
            connection.execute(
                "UPDATE approvals SET delivered_at = coalesce(delivered_at, :now)"
                " WHERE approval_id = :approval_id AND state IN ('allowed', 'denied', 'answered')",
                {"now": iso_now(), "approval_id": data["approvalId"]},
            )


def settle(db: Database, approval_id: str, reply: Mapping[str, Any], *, taken: bool) -> Approval:
    """Close an approval with its machine's reply to a delivered answer.

    `reply` has `state`, `actor` and `message`. `taken` is whether the machine accepted the pending answer or already
    had the same one. Raises NotFound.
    """
    with db.write() as connection:
        row = approvals.one(connection, approval_id)
        if row is None:
            raise approval_not_found(approval_id)
        _close(connection, approvals.from_row(row), reply, taken=taken)
        row = approvals.one(connection, approval_id)
    assert row is not None  # noqa: S101 - read above, in this transaction
    return approvals.from_row(row)


def keep_answer(db: Database, approval_id: str, answer: Answer, person: Person) -> Approval:
    """Store a person's answer for the machine; the first answer wins.

    The same answer again changes nothing. Raises NotFound, Forbidden for a viewer, InvalidRequest for an answer that
    does not fit, and Conflict after another answer.
    """
    with db.write() as connection:
        row = approvals.one(connection, approval_id, person.visible_to)
        if row is None:
            raise approval_not_found(approval_id)
        if person.viewer:
            raise Forbidden("This key is a viewer's, which cannot answer. Use a key with the role owner.")
        approval = approvals.from_row(row)
        answers.check(approval, answer)
        pending = Pending(answer, person.actor, person.surface, iso_now(), person.key_id)
        won = connection.execute(
            """
            UPDATE approvals SET pending = :pending, problem = NULL
            WHERE approval_id = :approval_id AND state = 'open' AND pending IS NULL
            """,
            {"pending": to_json(asdict(pending)), "approval_id": approval_id},
        ).rowcount
        if not won:
            _refuse_another(approval, answer)
        row = approvals.one(connection, approval_id)
    assert row is not None  # noqa: S101 - read above, in this transaction
    return approvals.from_row(row)


def drop_answer(db: Database, approval: Approval, code: str, message: str) -> Approval:
    """Remove a pending answer that was refused, so that another can be given.

    `code` and `message` are the reason. Raises NotFound.
    """
    with db.write() as connection:
        connection.execute(
            """
            UPDATE approvals SET pending = NULL, problem = :problem
            WHERE approval_id = :approval_id AND state = 'open'
              AND json_extract(pending, '$.answered_at') = :answered_at
            """,
            {
                "problem": _problem(code, message),
                "approval_id": approval.approval_id,
                "answered_at": None if approval.pending is None else approval.pending.answered_at,
            },
        )
    return approvals.get(db, approval.approval_id)


def complete(db: Database, approval_id: str, whole: object, *, redacted: bool) -> None:
    """Store the whole input of an approval whose event was truncated."""
    with db.write() as connection:
        connection.execute(
            """
            UPDATE approvals SET input = :input, redacted = :redacted, truncated = 0
            WHERE approval_id = :approval_id AND truncated
            """,
            {"input": to_json(whole), "redacted": redacted, "approval_id": approval_id},
        )


def asked(db: Database, execution: int) -> bool:
    """Return whether an execution has an open approval."""
    with db.read() as connection:
        row = connection.execute(
            "SELECT 1 FROM approvals WHERE execution = :execution AND state = 'open' LIMIT 1", {"execution": execution}
        ).fetchone()
    return row is not None


def undelivered(db: Database, agent_ids: Iterable[str], limit: int = 100) -> list[Approval]:
    """Return open approvals of these machines whose answer is not delivered.

    They are ordered by when they were asked.
    """
    with db.read() as connection:
        rows = connection.execute(
            f"""
            {approvals.SELECT} WHERE a.state = 'open' AND a.pending IS NOT NULL
              AND x.agent_id IN (SELECT value FROM json_each(:agent_ids))
            ORDER BY a.asked_at, a.approval_id LIMIT :limit
            """,  # noqa: S608 - literals
            {"agent_ids": to_json(list(agent_ids)), "limit": limit},
        ).fetchall()
    return [approvals.from_row(row) for row in rows]


def any_undelivered(db: Database) -> bool:
    """Return whether any answer waits for its machine."""
    with db.read() as connection:
        row = connection.execute(
            "SELECT 1 FROM approvals WHERE state = 'open' AND pending IS NOT NULL LIMIT 1"
        ).fetchone()
    return row is not None


def _close(connection: sqlite3.Connection, approval: Approval, reply: Mapping[str, Any], *, taken: bool) -> None:
    """Close an open approval with its machine's reply.

    A pending answer either closed it or came too late; in the second case the row records that as its problem.
    """
    state, actor, pending = reply["state"], _text(reply.get("actor"), 200), approval.pending
    surface = reply.get("surface") if reply.get("surface") in answers.SURFACES else None
    answer, problem = None, None
    ours = pending is not None and actor == pending.actor and state == answers.state_after(approval, pending.answer)
    if pending is not None and (ours or taken):
        surface, answer = pending.surface if ours else surface, answers.stored(pending.answer)
    elif pending is not None:
        how = f"{state} by {actor}" if actor else state
        problem = _problem(
            "APPROVAL_CLOSED",
            f"Approval {approval.approval_id} was {how} on its machine first. {pending.actor}'s answer was not used.",
        )
    connection.execute(
        """
        UPDATE approvals SET state = :state, actor = :actor, surface = :surface, message = :message, answer = :answer,
            decided_at = :now, pending = NULL, problem = :problem
        WHERE approval_id = :approval_id AND state = 'open'
        """,
        {
            "state": state,
            "actor": actor,
            "surface": surface,
            "message": _text(reply.get("message"), _MAX_MESSAGE_CHARACTERS),
            "answer": answer,
            "now": iso_now(),
            "problem": problem,
            "approval_id": approval.approval_id,
        },
    )


def _refuse_another(approval: Approval, answer: Answer) -> None:
    """Raise Conflict unless the approval already has exactly this answer."""
    pending = approval.pending
    same = answers.answer_of(answers.stored(answer))
    if approval.state != "open":
        if approval.answer != same:
            raise answers.closed(approval)
    elif pending is not None and answers.answer_of(answers.stored(pending.answer)) != same:
        state = answers.state_after(approval, pending.answer)
        raise Conflict(
            "APPROVAL_CLOSED",
            f"Approval {approval.approval_id} has already been {state} by {pending.actor}; the answer is not delivered"
            " yet. Nothing was changed.",
            {
                "approvalId": approval.approval_id,
                "state": state,
                "actor": pending.actor,
                "surface": pending.surface,
            },
        )


def _problem(code: str, message: str) -> str:
    return json.dumps({"code": code, "message": message})


def _text(value: object, limit: int) -> str | None:
    return value[:limit] if isinstance(value, str) else None


def moment(value: object) -> str:
    """Return a machine's ISO time in the format of the rows.

    Returns the current time for anything else.
    """
    try:
        return iso(datetime.fromisoformat(str(value)).astimezone(UTC))
    except (ValueError, OverflowError):
        return iso_now()
