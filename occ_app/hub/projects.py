"""The projects that machines report to their hub, and all SQL on them.

A project is a workspace that always stays on one machine. A machine reports all of its projects with each registration
and heartbeat. On the hub each has an opaque id; its alias is `NAME@MACHINE`. A project that its machine no longer
reports is removed from the list, and its executions stay readable.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from occ_app.database.database import Database
from occ_app.executions import lifecycle
from occ_app.system.compact_json import to_json
from occ_app.system.timestamps import iso_now
from occ_app.workspaces import projects
from occ_app.workspaces import workspace as workspaces
from occ_app.workspaces.workspace import VISIBLE

_LONGEST_BEGINNING = 100  # of a project's name in its id


def update(db: Database, agent_id: str, token: str, reported: Sequence[Mapping[str, Any]]) -> list[int]:
    """Replace the list of a machine's projects with the reported one.

    Returns the numbers of the executions that this ended. Nothing is written when the report equals the last one, or
    the machine is registered with another token.
    """
    text = to_json(reported)
    with db.read() as connection:
        if not _differs(connection, agent_id, token, text):
            return []
    with db.write() as connection:
        if not _differs(connection, agent_id, token, text):
            return []
        connection.execute(
            "UPDATE agents SET projects = :projects WHERE agent_id = :agent_id",
            {"projects": text, "agent_id": agent_id},
        )
        former = {_identity(row, row["agent_generation"]): row["generation"] for row in _rows(connection, agent_id)}
        current = {_identity(each, each["generation"]): each for each in reported}
        ended = _remove(connection, [former[identity] for identity in former.keys() - current.keys()])
        for identity, each in current.items():
            generation = former[identity] if identity in former else _insert(connection, agent_id, each)
            projects.set_keys(connection, generation, set(each["keys"]))
            connection.execute(
                "UPDATE workspaces SET permissions = :permissions WHERE generation = :generation",
                {"permissions": each["permissions"], "generation": generation},
            )
        return ended


def remove_of(connection: sqlite3.Connection, agent_id: str) -> list[int]:
    """Remove the projects of a machine in the caller's transaction.

    Returns the numbers of the executions that this ended. The projects are added again when the machine next reports
    them.
    """
    connection.execute("UPDATE agents SET projects = NULL WHERE agent_id = :agent_id", {"agent_id": agent_id})
    return _remove(connection, [row["generation"] for row in _rows(connection, agent_id)])


def named(connection: sqlite3.Connection, name: str, agent_id: str) -> str | None:
    """Return the id of a machine's project; None when it has none of this name.

    Runs inside the caller's transaction.
    """
    row = connection.execute(
        "SELECT workspace_id FROM workspaces WHERE source = 'folder' AND name = :name AND agent_id = :agent_id",
        {"name": name, "agent_id": agent_id},
    ).fetchone()
    return None if row is None else str(row["workspace_id"])


def by_agent(db: Database, visible_to: str | None, agent_ids: Iterable[str]) -> dict[str, list[dict[str, str | None]]]:
    """Return the projects that the owner `visible_to` may use, by machine.

    `visible_to` is None for a caller that may use all. Each project is its name, id and permissions ceiling.
    """
    with db.read() as connection:
        rows = connection.execute(
            f"""
            SELECT w.agent_id, w.name, w.workspace_id, w.permissions FROM workspaces w
            WHERE w.source = 'folder' AND w.agent_id IN (SELECT value FROM json_each(:agents)) AND {VISIBLE}
            ORDER BY w.name
            """,  # noqa: S608 - literals
            {"agents": to_json(list(agent_ids)), "visible_to": visible_to},
        ).fetchall()
    found = dict[str, list[dict[str, str | None]]]()
    for row in rows:
        found.setdefault(row["agent_id"], []).append({key: row[key] for key in ("name", "workspace_id", "permissions")})
    return found


def _differs(connection: sqlite3.Connection, agent_id: str, token: str, text: str) -> bool:
    row = connection.execute(
        """
        SELECT 1 FROM agents
        WHERE agent_id = :agent_id AND token = :token AND coalesce(projects, '[]') != :projects
        """,
        {"agent_id": agent_id, "token": token, "projects": text},
    ).fetchone()
    return row is not None


def _identity(project: Mapping[str, Any] | sqlite3.Row, generation: int) -> tuple[str, str, int]:
    """Return the values that identify a project.

    Another folder under the same name is another project.
    """
    return project["name"], project["path"], generation


def _rows(connection: sqlite3.Connection, agent_id: str) -> list[sqlite3.Row]:
    return connection.execute(
        "SELECT name, path, agent_generation, generation FROM workspaces"
        " WHERE source = 'folder' AND agent_id = :agent_id",
        {"agent_id": agent_id},
    ).fetchall()


def _insert(connection: sqlite3.Connection, agent_id: str, project: Mapping[str, Any]) -> int:
    workspace_id = f"{project['name'][:_LONGEST_BEGINNING]}-{secrets.token_hex(6)}"
    generation = workspaces.new_generation(connection, workspace_id)
    connection.execute(
        """
        INSERT INTO workspaces (workspace_id, name, description, path, files, bytes, skipped, created_at, updated_at,
            generation, source, agent_id, agent_generation)
        VALUES (:workspace_id, :name, '', :path, 0, 0, '[]', :now, :now, :generation, 'folder', :agent_id,
            :agent_generation)
        """,
        {
            "workspace_id": workspace_id,
            "name": project["name"],
            "path": project["path"],
            "now": iso_now(),
            "generation": generation,
            "agent_id": agent_id,
            "agent_generation": project["generation"],
        },
    )
    return generation


def _remove(connection: sqlite3.Connection, generations: Iterable[int]) -> list[int]:
    ended = list[int]()
    for generation in generations:
        ended += lifecycle.end_waiting(connection, generation, projects.REMOVED)
        for statement in (
            "DELETE FROM workspaces WHERE generation = :generation",
            "DELETE FROM project_keys WHERE generation = :generation",
        ):
            connection.execute(statement, {"generation": generation})
    return ended
