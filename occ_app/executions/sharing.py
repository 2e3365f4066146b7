"""Local executions that an agent announces to its hub; all SQL on that."""

from __future__ import annotations

from occ_app.database.database import Database
from occ_app.executions.queries import from_row, select
from occ_app.executions.records import Execution

_MAX_AT_ONCE = 20


def due(db: Database) -> list[Execution]:
    """Return executions to announce, oldest first.

    One that waits is announced once it has started.
    """
    with db.read() as connection:
        rows = connection.execute(
            select("x.local_sharing = 'pending' AND x.state <> 'queued' ORDER BY x.number LIMIT :limit"),
            {"limit": _MAX_AT_ONCE},
        ).fetchall()
    return [from_row(row) for row in rows]


def settle(db: Database, number: int, *, announced: bool) -> bool:
    """Note that the hub has an execution, or never will.

    False when that was noted before.
    """
    with db.write(durable=False) as connection:
        won = connection.execute(
            "UPDATE executions SET local_sharing = :state WHERE number = :number AND local_sharing = 'pending'",
            {"state": "announced" if announced else "refused", "number": number},
        ).rowcount
    return won > 0
