"""Conversations: the executions of one Claude session, and all SQL on them.

The id of a conversation is that of its first execution.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, replace

from occ_app.database import rows
from occ_app.database.database import Database
from occ_app.errors import InvalidRequest, NotFound, execution_not_found
from occ_app.executions import waiting
from occ_app.executions.queries import from_row, one
from occ_app.executions.records import LARGEST_NUMBER, Execution, Request

_VISIBLE = "(:visible_to IS NULL OR x.owner_id = :visible_to)"
_MAX_TITLE_CHARACTERS = 200


@dataclass(frozen=True)
class Conversation:
    """The executions of a session.

    Their number, the newest one's state, and the beginning of the first prompt.
    """

    conversation_id: str
    workspace_id: str
    title: str | None
    state: str
    executions: int
    cost_usd: float
    created_at: str
    updated_at: str
    last_execution_id: str


def continued(connection: sqlite3.Connection, request: Request) -> tuple[Request, Execution | None]:
    """Return a request with the workspace of the execution it continues, and that.

    Raises NotFound, also for an execution of another owner, and InvalidRequest for another workspace.
    """
    if request.continues is None:
        return request, None
    found = one(connection, "x.execution_id = ?", (request.continues,))
    if found is None or request.visible_to not in (None, found.owner_id):
        raise execution_not_found(request.continues)
    if request.workspace_id not in ("", found.workspace_id):
        message = "`workspaceId` is not that of the execution it continues; leave it out."
        raise InvalidRequest(message, {"workspaceId": ["Differs from that of `continues`."]})
    placed = replace(request, workspace_id=found.workspace_id, workspace_generation=found.workspace_generation)
    return placed, found


def conversation_of(connection: sqlite3.Connection, request: Request, former: Execution | None, generation: int) -> str:
    """Return the id of a new execution's conversation."""
    if request.fork:
        return request.execution_id
    if former is not None:
        return former.conversation or former.execution_id
    row = connection.execute(
        """
        SELECT conversation FROM executions
        WHERE session_id = :session_id AND workspace_generation = :generation AND conversation IS NOT NULL
        ORDER BY number LIMIT 1
        """,
        {"session_id": request.session_id, "generation": generation},
    ).fetchone()
    return request.execution_id if row is None else str(row["conversation"])


def listing(
    db: Database,
    *,
    visible_to: str | None = None,
    workspace_id: str | None = None,
    before: int | None = None,
    limit: int = 50,
) -> tuple[list[Conversation], int | None]:
    """Return conversations by their newest executions, newest first.

    The second value is that of `before` for the next page.
    """
    with db.read() as connection:
        rows = connection.execute(
            f"""
            SELECT * FROM executions x
            WHERE {_VISIBLE} AND (:workspace_id IS NULL OR x.workspace_id = :workspace_id)
              AND (:before IS NULL OR x.number < :before) AND NOT EXISTS (
                SELECT 1 FROM executions l WHERE l.conversation = x.conversation AND l.number > x.number)
            ORDER BY x.number DESC LIMIT :limit
            """,  # noqa: S608 - literals
            {"visible_to": visible_to, "workspace_id": workspace_id, "before": before, "limit": limit + 1},
        ).fetchall()
        found = [_described(connection, row) for row in rows[:limit]]
    return found, rows[limit - 1]["number"] if len(rows) > limit else None


def get(db: Database, conversation_id: str, visible_to: str | None = None) -> tuple[Conversation, list[Execution]]:
    """Return one conversation and its executions, in turn order.

    Raises NotFound, also for one of another owner.
    """
    with db.read() as connection:
        rows = connection.execute(
            f"""
            SELECT x.*, coalesce(x.last_seq, (SELECT max(seq) FROM events WHERE execution = x.number), 0) AS newest_seq
            FROM executions x WHERE x.conversation = :conversation AND {_VISIBLE}
            ORDER BY coalesce(x.place, x.number)
            """,  # noqa: S608 - literals
            {"conversation": conversation_id, "visible_to": visible_to},
        ).fetchall()
        if not rows:
            message = f"There is no conversation {conversation_id}; GET /conversations lists them."
            raise NotFound("CONVERSATION_NOT_FOUND", message, {"conversationId": conversation_id})
        newest = max(rows, key=lambda row: int(row["number"]))
        return _described(connection, newest), waiting.described(connection, [from_row(row) for row in rows])


def _described(connection: sqlite3.Connection, newest: sqlite3.Row) -> Conversation:
    row = connection.execute(
        """
        SELECT count(*) AS executions, total(CASE WHEN cost_usd BETWEEN 0 AND :largest THEN cost_usd END) AS cost_usd,
            min(created_at) AS created_at,
            (SELECT substr(prompt, 1, :title) FROM executions f
             WHERE f.conversation = :conversation ORDER BY f.number LIMIT 1) AS title
        FROM executions WHERE conversation = :conversation
        """,
        {"conversation": newest["conversation"], "title": _MAX_TITLE_CHARACTERS, "largest": LARGEST_NUMBER},
    ).fetchone()
    values = {
        "conversation_id": newest["conversation"],
        "workspace_id": newest["workspace_id"],
        "title": row["title"],
        "state": newest["state"],
        "executions": row["executions"],
        "cost_usd": round(row["cost_usd"], 6),
        "created_at": row["created_at"],
        "updated_at": newest["finished_at"] or newest["started_at"] or newest["created_at"],
        "last_execution_id": newest["execution_id"],
    }
    return Conversation(**rows.sound(Conversation, values, newest["number"]))
