"""Calls to agents that wait until the agent can be reached.

They cancel executions and delete workspaces.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from urllib.parse import quote

from occ_app.database.database import Database
from occ_app.system.timestamps import iso_now


@dataclass(frozen=True)
class Errand:
    """A row of `errands`."""

    number: int
    agent_id: str
    method: str
    path: str


def cancel(db: Database, agent_id: str, execution_id: str) -> None:
    """Have an agent end an execution that the hub has given up.

    The call names the number of the workspace on the agent, so that an execution of the machine's own with the same id
    is not cancelled.
    """
    with db.write() as connection:
        row = connection.execute(
            """
            SELECT w.agent_generation FROM executions x
            JOIN workspaces w ON w.generation = x.workspace_generation AND w.agent_id = x.agent_id
            WHERE x.execution_id = :execution_id AND x.agent_id = :agent_id
            """,
            {"execution_id": execution_id, "agent_id": agent_id},
        ).fetchone()
        path = f"/executions/{quote(execution_id, safe='')}/cancel"
        _add(connection, agent_id, "POST", path + _only(None if row is None else row["agent_generation"]))


def delete_workspace(
    connection: sqlite3.Connection, agent_id: str, workspace_id: str, agent_generation: int | None
) -> None:
    """Have an agent delete a workspace that the hub removes.

    The call is stored in the caller's transaction. It names the workspace's number on the agent, so that a later
    workspace with the same id is not deleted. The number is None for agents that do not report numbers, and for a
    workspace whose upload may not have arrived.
    """
    _add(connection, agent_id, "DELETE", _workspace_path(workspace_id) + _only(agent_generation))


def deletions(db: Database, agent_id: str, workspace_id: str) -> list[Errand]:
    """Return the pending deletions of workspaces with this id on an agent."""
    path = _workspace_path(workspace_id)
    return [
        errand
        for errand in waiting(db)
        if (errand.agent_id, errand.method, errand.path.partition("?")[0]) == (agent_id, "DELETE", path)
    ]


def _workspace_path(workspace_id: str) -> str:
    return f"/workspaces/{quote(workspace_id, safe='')}"


def _only(agent_generation: int | None) -> str:
    return "" if agent_generation is None else f"?generation={agent_generation}"


def waiting(db: Database) -> list[Errand]:
    """Return all pending calls, oldest first."""
    with db.read() as connection:
        rows = connection.execute("SELECT number, agent_id, method, path FROM errands ORDER BY number").fetchall()
    return [Errand(*row) for row in rows]


def done(db: Database, errand: Errand) -> None:
    with db.write() as connection:
        connection.execute("DELETE FROM errands WHERE number = ?", (errand.number,))


def _add(connection: sqlite3.Connection, agent_id: str, method: str, path: str) -> None:
    connection.execute(
        "INSERT OR IGNORE INTO errands (agent_id, method, path, created_at) VALUES (?, ?, ?, ?)",
        (agent_id, method, path, iso_now()),
    )
