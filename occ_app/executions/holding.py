"""Calls that wait in a process, before parking, and the SQL on their rows.

They are rows of `parkings`. The row of a call that is only `held` counts once its process has died and its transcript
was found whole.
"""

from __future__ import annotations

import sqlite3
from dataclasses import asdict

from occ_app.database.database import Database
from occ_app.executions.spent import Spent
from occ_app.system.compact_json import to_json

MAX_PARKED = 200


def intend(db: Database, number: int, approval_id: str, tool_use_id: str, spent: Spent) -> bool:
    """Record, on the disk, that a running execution's open call will be deferred.

    False when it is no longer open, when the execution is to be cancelled, or when MAX_PARKED are parked.
    """
    with db.write() as connection:
        return _insert(connection, number, approval_id, tool_use_id, spent, held=False)


def hold(db: Database, number: int, approval_id: str, tool_use_id: str, spent: Spent) -> bool:
    """Record the open call that a running execution's process holds.

    The record is used if the process dies. False as of `intend`. Does not wait for the disk.
    """
    with db.write(durable=False) as connection:
        return _insert(connection, number, approval_id, tool_use_id, spent, held=True)


def held(db: Database, number: int) -> str | None:
    """Return Claude Code's id of the call that an execution's process held.

    None without one, once its answer was about to be delivered, and while a text that was sent may be in that process.
    """
    with db.read() as connection:
        row = connection.execute(
            """
            SELECT tool_use_id FROM parkings p
            WHERE execution = :number AND held AND approval_id IS NOT NULL
              AND NOT EXISTS (SELECT 1 FROM inputs i WHERE i.execution = p.execution AND i.state = 'sent')
            """,
            {"number": number},
        ).fetchone()
    return None if row is None else str(row["tool_use_id"])


def confirm(db: Database, number: int) -> None:
    """Let the execution of a held call be parked.

    Its process is dead, and its transcript whole.
    """
    with db.write() as connection:
        connection.execute(
            """
            UPDATE parkings SET held = 0
            WHERE execution = :number AND (SELECT count(*) FROM executions WHERE state = 'parked') < :most
            """,
            {"number": number, "most": MAX_PARKED},
        )


def _insert(
    connection: sqlite3.Connection, number: int, approval_id: str, tool_use_id: str, spent: Spent, *, held: bool
) -> bool:
    won = connection.execute(
        """
        INSERT INTO parkings (execution, approval_id, tool_use_id, spent, held)
        SELECT :number, :approval_id, :tool_use_id, :spent, :held
        WHERE EXISTS (SELECT 1 FROM executions
                      WHERE number = :number AND state = 'running' AND stop_requested IS NULL)
          AND EXISTS (SELECT 1 FROM approvals WHERE approval_id = :approval_id AND state = 'open')
          AND (SELECT count(*) FROM executions WHERE state = 'parked') < :most
        ON CONFLICT (execution) DO UPDATE SET approval_id = excluded.approval_id,
            tool_use_id = excluded.tool_use_id, spent = excluded.spent, held = excluded.held
        """,
        {
            "number": number,
            "approval_id": approval_id,
            "tool_use_id": tool_use_id,
            "spent": to_json(asdict(spent)),
            "held": held,
            "most": MAX_PARKED,
        },
    ).rowcount
    return won > 0
