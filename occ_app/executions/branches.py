"""Branches of conversations: forks and rewinds; all SQL on them.

A fork begins a conversation with the session of another one. A rewound execution continues after an earlier turn:
Claude forgets the later turns, and the files that they changed are restored.
"""

from __future__ import annotations

import sqlite3
from dataclasses import replace

from occ_app.database.database import Database
from occ_app.errors import InvalidRequest, execution_not_found
from occ_app.executions import conversations
from occ_app.executions.queries import from_row, one, select
from occ_app.executions.records import Execution, Request


def rewound_turn(
    connection: sqlite3.Connection, request: Request, former: Execution | None, generation: int
) -> int | None:
    """Return the number of the turn that a request returns to, if any.

    Raises NotFound, and InvalidRequest for a turn of another conversation or one that is not over.
    """
    if request.rewind_to is None:
        return None
    turn = one(connection, "x.execution_id = ?", (request.rewind_to,))
    if turn is None or request.visible_to not in (None, turn.owner_id):
        raise execution_not_found(request.rewind_to)
    base = conversations.conversation_of(connection, replace(request, fork=False), former, generation)
    if turn.conversation != base or turn.workspace_generation != generation or not turn.over:
        message = (
            f"`rewindTo`: {request.rewind_to} is no turn of this conversation that is over; leave it out or choose one."
        )
        raise InvalidRequest(message, {"rewindTo": ["Not a turn of this conversation that is over."]})
    return turn.number


def turn(db: Database, execution: Execution) -> Execution | None:
    """Return the turn that an execution returns to.

    None once a later rewind left it behind, or when it was deleted.
    """
    with db.read() as connection:
        found = one(connection, "x.number = ?", (execution.rewind_to or 0,))
        if found is None:
            return None
        left = connection.execute(
            """
            SELECT 1 FROM executions r JOIN executions t ON t.number = r.rewind_to
            WHERE r.conversation = :conversation AND r.fork = 0 AND r.session_id IS NOT NULL AND r.number <> :execution
              AND coalesce(r.place, r.number) > :place AND coalesce(t.place, t.number) < :place
            LIMIT 1
            """,
            {"conversation": found.conversation, "execution": execution.number, "place": found.place or found.number},
        ).fetchone()
    return found if left is None else None


def turns_after(db: Database, found: Execution, execution: Execution) -> list[Execution]:
    """Return the turns that ran after one of a conversation, newest first.

    Without `execution` and turns without a CLI.
    """
    condition = """
        x.conversation = :conversation AND x.session_id IS NOT NULL AND x.number <> :execution
        AND coalesce(x.place, x.number) > :place
    """
    with db.read() as connection:
        rows = connection.execute(
            f"{select(condition)} ORDER BY coalesce(x.place, x.number) DESC",
            {"conversation": found.conversation, "execution": execution.number, "place": found.place or found.number},
        ).fetchall()
    return [from_row(row) for row in rows]
