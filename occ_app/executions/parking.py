"""Parked executions, which wait for a person without a process; all SQL on them.

They continue once the person answered. The row of `parkings` is on the disk before Claude Code is asked to defer the
call, so a process that dies afterwards loses nothing. `approval_id` names the call that waits until its answer is
about to be delivered: only until then may another process replace a dead one.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from occ_app.database.database import Database
from occ_app.executions import approvals, events
from occ_app.executions.answers import Approval
from occ_app.executions.queries import from_row, select
from occ_app.executions.records import Execution, Outcome
from occ_app.executions.spent import Spent
from occ_app.system.compact_json import to_json
from occ_app.system.process_identity import ProcessIdentity, boot_id
from occ_app.system.timestamps import iso, iso_now, milliseconds

EXPIRED = Outcome.failure("APPROVAL_EXPIRED", "Nobody answered in time; send the prompt again if you still need it.")

# An answered execution that is parked can go on.
_ANSWERED = """
    FROM parkings p JOIN executions x ON x.number = p.execution JOIN approvals a ON a.approval_id = p.approval_id
    WHERE x.state = 'parked' AND a.state IN ('allowed', 'denied', 'answered') AND a.delivered_at IS NULL
"""


@dataclass(frozen=True)
class Parked:
    """A deferred call: its approval and its id in Claude Code.

    `spent` are the figures of the processes so far.
    """

    approval: Approval
    tool_use_id: str
    spent: Spent


def settle(db: Database, number: int) -> None:
    """Record that no call of a running execution waits in `parkings` any more.

    Its figures stay.
    """
    with db.write() as connection:
        connection.execute("UPDATE parkings SET approval_id = NULL WHERE execution = :number", {"number": number})


def deliver(db: Database, approval_id: str) -> bool:
    """Note, on the disk, that an answer goes to Claude Code now.

    From now on no process may be replaced. False when it was noted before.
    """
    with db.write() as connection:
        won = approvals.note_delivery(connection, approval_id)
        connection.execute(
            "UPDATE parkings SET approval_id = NULL WHERE approval_id = :approval_id", {"approval_id": approval_id}
        )
    return won


def park(db: Database, number: int, spent: Spent | None, default_seconds: float) -> int:
    """Park a running execution with a deferred call; returns the event's seq.

    A person has `approval_seconds` of the execution, or the default, to answer. `spent` is None where its process
    ended without reporting it, as a killed one does. 0 when it no longer runs, is to be cancelled, or no call waits.
    """
    with db.write() as connection:
        return _park(connection, number, default_seconds, spent)


def claim(connection: sqlite3.Connection, owner: ProcessIdentity) -> Execution | None:
    """Claim the parked execution that was answered first; None when there is none.

    One UPDATE that starts from `parked`. Its `resumed` event is stored with it.
    """
    row = connection.execute(f"SELECT p.execution, p.approval_id {_ANSWERED} ORDER BY a.decided_at LIMIT 1").fetchone()
    if row is None:
        return None
    now = iso_now()
    won = connection.execute(
        """
        UPDATE executions SET state = 'running', waits_for = NULL,
            owner_boot_id = :boot_id, owner_pid = :pid, owner_start = :start, deadline = :clock + timeout_seconds,
            parked_seconds = parked_seconds + max(0, (julianday(:now) - julianday(parked_at)) * 86400),
            parked_at = NULL
        WHERE number = :number AND state = 'parked'
        """,
        {
            "boot_id": owner.boot_id,
            "pid": owner.pid,
            "start": owner.start,
            "clock": time.monotonic(),
            "now": now,
            "number": row["execution"],
        },
    ).rowcount
    if not won:
        return None
    _event(connection, row["execution"], "resumed", {"approvalId": row["approval_id"]})
    found = connection.execute(select("x.number = :number"), {"number": row["execution"]}).fetchone()
    return from_row(found)


def relay(db: Database, number: int, *, parked: bool, expires: str | None = None) -> bool:
    """Note on a hub that a machine parked an execution or runs it again.

    Its relay stays its owner. `expires` is until when a person can answer. False when it was noted.
    """
    former, state = ("running", "parked") if parked else ("parked", "running")
    with db.write(durable=False) as connection:
        won = connection.execute(
            """
            UPDATE executions SET state = :state, waits_for = :waits_for,
                parked_seconds = parked_seconds + coalesce(max(0, (julianday(:now) - julianday(parked_at)) * 86400), 0),
                parked_at = iif(:parked, :now, NULL)
            WHERE number = :number AND state = :former
            """,
            {
                "state": state,
                "former": former,
                "parked": parked,
                "waits_for": "a person to answer it" if parked else None,
                "now": iso_now(),
                "number": number,
            },
        ).rowcount
        if expires is not None:
            connection.execute(
                "UPDATE approvals SET expires_at = :expires WHERE execution = :number AND state = 'open'",
                {"expires": expires, "number": number},
            )
    return won > 0


def of(db: Database, number: int) -> Parked | None:
    """Return the deferred call whose answer was not delivered.

    None for an execution without one.
    """
    with db.read() as connection:
        row = connection.execute(
            "SELECT approval_id, tool_use_id, spent FROM parkings WHERE execution = :number", {"number": number}
        ).fetchone()
    if row is None or row["approval_id"] is None:
        return None
    return Parked(approvals.get(db, row["approval_id"]), row["tool_use_id"], _spent(row["spent"]))


def spent(db: Database, number: int) -> Spent:
    """Return the figures of an execution's earlier processes."""
    with db.read() as connection:
        return spent_by(connection, number)


def spent_by(connection: sqlite3.Connection, number: int) -> Spent:
    """Return the same inside the caller's transaction."""
    row = connection.execute("SELECT spent FROM parkings WHERE execution = :number", {"number": number}).fetchone()
    return Spent() if row is None else _spent(row["spent"])


def forget(connection: sqlite3.Connection, number: int) -> None:
    """Remove the row of an execution that ends in the caller's transaction."""
    connection.execute("DELETE FROM parkings WHERE execution = :number", {"number": number})


def overdue(db: Database) -> list[Execution]:
    """Return the parked executions whose approval nobody answered in time.

    The wall clock, which may jump, counts only for those that were parked before this boot.
    """
    with db.read() as connection:
        rows = connection.execute(
            select(
                "x.state = 'parked' AND EXISTS (SELECT 1 FROM parkings p JOIN approvals a USING (approval_id)"
                " WHERE p.execution = x.number AND a.state = 'open' AND iif(p.boot_id = :boot_id,"
                " :since_boot - p.since_boot > p.seconds, a.expires_at < :now)) ORDER BY x.number"
            ),
            {"now": iso_now(), "boot_id": boot_id(), "since_boot": _since_boot()},
        ).fetchall()
    return [from_row(row) for row in rows]


def _park(connection: sqlite3.Connection, number: int, default_seconds: float, spent: Spent | None) -> int:
    row = connection.execute(
        """
        SELECT a.approval_id, a.tool, a.kind, x.approval_seconds
        FROM parkings p JOIN approvals a ON a.approval_id = p.approval_id JOIN executions x ON x.number = p.execution
        WHERE p.execution = :number AND NOT p.held AND a.delivered_at IS NULL
            AND a.state IN ('open', 'allowed', 'denied', 'answered')
        """,
        {"number": number},
    ).fetchone()
    if row is None:
        return 0
    won = connection.execute(
        """
        UPDATE executions SET state = 'parked', parked_at = :now, waits_for = :waits_for, deadline = NULL,
            owner_boot_id = NULL, owner_pid = NULL, owner_start = NULL
        WHERE number = :number AND state = 'running' AND stop_requested IS NULL
        """,
        {"now": iso_now(), "waits_for": f"a person to answer {row['approval_id']}", "number": number},
    ).rowcount
    if not won:
        return 0
    seconds = default_seconds if row["approval_seconds"] is None else row["approval_seconds"]
    expires = iso(datetime.now(UTC) + timedelta(seconds=seconds))
    connection.execute(
        "UPDATE approvals SET expires_at = :expires WHERE approval_id = :approval_id",
        {"expires": expires, "approval_id": row["approval_id"]},
    )
    connection.execute(
        """
        UPDATE parkings SET seconds = :seconds, boot_id = :boot_id, since_boot = :since_boot
        WHERE execution = :number
        """,
        {"seconds": seconds, "boot_id": boot_id(), "since_boot": _since_boot(), "number": number},
    )
    if spent is not None:
        connection.execute(
            "UPDATE parkings SET spent = :spent WHERE execution = :number",
            {"spent": to_json(asdict(spent)), "number": number},
        )
    data = {"approvalId": row["approval_id"], "kind": row["kind"], "tool": row["tool"], "expiresAt": expires}
    return _event(connection, number, "parked", data)


def _event(connection: sqlite3.Connection, number: int, name: str, data: Mapping[str, Any]) -> int:
    newest: int = connection.execute(
        "SELECT max(seq) FROM events WHERE execution = :number", {"number": number}
    ).fetchone()[0]
    events.insert(connection, number, newest + 1, [(name, to_json({**data, "timestamp": milliseconds()}))])
    return newest + 1


def _since_boot() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _spent(text: str) -> Spent:
    return Spent(**json.loads(text))
