"""Projects: folders of the machine as workspaces.

Executions run where the files are. OCC never moves, changes or deletes a project; removing one takes it off the list.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from occ_app.config.config import Config
from occ_app.database.database import Database
from occ_app.errors import ConfigError, NotFound
from occ_app.system.timestamps import iso_now
from occ_app.workspaces import folders
from occ_app.workspaces import workspace as workspaces

MAX_PROJECTS = 100
MAX_KEYS = 20
MAX_REPORT_BYTES = 256_000  # of all projects in a registration or a heartbeat

REMOVED = "Its project was removed from the machine's list before this could start."


@dataclass(frozen=True)
class Project:
    """A folder in which executions may run.

    `keys` names the hub's keys that may use it, besides the admins'. `permissions` is the most that runs in it may do,
    None for all that the machine allows.
    """

    name: str
    path: str
    generation: int
    trusted: bool
    created_at: str
    keys: tuple[str, ...]
    permissions: str | None


def add(
    db: Database,
    config: Config,
    name: str,
    path: Path,
    *,
    trusted: bool,
    keys: Iterable[str],
    permissions: str | None = None,
) -> Project:
    """Add a folder as a project, or change the terms of an existing one.

    A project exists when the name and the folder are the same. `path` may be a link. Raises ConfigError with the
    reason for a folder that cannot be a project, and for a name in use.
    """
    real = Path(os.path.realpath(path))
    reason = folders.problem(real, config)
    if reason is not None:
        raise ConfigError(f"{reason}; choose another folder.")
    with db.write() as connection:
        existing = connection.execute(
            "SELECT path, source, generation FROM workspaces WHERE workspace_id = :name", {"name": name}
        ).fetchone()
        if existing is not None and (existing["source"], existing["path"]) != ("folder", str(real)):
            kind = "project" if existing["source"] == "folder" else "uploaded workspace"
            raise ConfigError(f"The name {name} belongs to another {kind}; choose another one with --name.")
        if existing is None:
            _check_room(connection, real)
            generation = _insert(connection, name, real)
        else:
            generation = existing["generation"]
        _set_terms(connection, generation, trusted=trusted, keys=keys, permissions=permissions)
        if len(json.dumps(_report(_all(connection)))) > MAX_REPORT_BYTES:
            raise ConfigError("The paths and keys of all projects are too long for a hub; remove some projects first.")
        return next(project for project in _all(connection) if project.name == name)


def listing(db: Database) -> list[Project]:
    """Return all projects, by name."""
    with db.read() as connection:
        return _all(connection)


def remove(db: Database, name: str, end_waiting: Callable[[sqlite3.Connection, int, str], list[int]]) -> list[int]:
    """Remove a project from the list and end its queued executions.

    Returns the numbers of those. Its files stay. `end_waiting` ends them in the transaction, with a sentence. Raises
    NotFound, and Conflict while an execution runs in it.
    """
    return workspaces.patiently(lambda: _remove(db, name, end_waiting))


def _remove(db: Database, name: str, end_waiting: Callable[[sqlite3.Connection, int, str], list[int]]) -> list[int]:
    with db.write() as connection:
        row = connection.execute(
            "DELETE FROM workspaces WHERE workspace_id = :name AND source = 'folder' RETURNING generation",
            {"name": name},
        ).fetchone()
        if row is None:
            raise NotFound(
                "WORKSPACE_NOT_FOUND", f"There is no project {name}; list the projects with `occ projects list`."
            )
        workspaces.refuse_busy(connection, name, row["generation"])
        connection.execute("DELETE FROM project_keys WHERE generation = :generation", dict(row))
        return end_waiting(connection, row["generation"], REMOVED)


def report(db: Database) -> list[dict[str, Any]]:
    """Return the projects as an agent reports them to its hub."""
    return _report(listing(db))


def _report(found: Iterable[Project]) -> list[dict[str, Any]]:
    return [
        {
            "name": each.name,
            "path": each.path,
            "generation": each.generation,
            "keys": list(each.keys),
            "permissions": each.permissions,
        }
        for each in found
    ]


def _check_room(connection: sqlite3.Connection, path: Path) -> None:
    """Raise ConfigError for too many projects, or one that overlaps `path`."""
    existing = _all(connection)
    for project in existing:
        if folders.overlap(path, Path(project.path)):
            raise ConfigError(
                f"{path} is, contains or lies in {project.path}, the project {project.name}; choose another folder, or"
                f" `occ projects remove {project.name}` first."
            )
    if len(existing) >= MAX_PROJECTS:
        raise ConfigError(f"There are {MAX_PROJECTS} projects, which is the limit; remove one first.")


def _insert(connection: sqlite3.Connection, name: str, path: Path) -> int:
    generation = workspaces.new_generation(connection, name)
    connection.execute(
        """
        INSERT INTO workspaces (workspace_id, name, description, path, files, bytes, skipped, created_at, updated_at,
            generation, source)
        VALUES (:name, :name, '', :path, 0, 0, '[]', :now, :now, :generation, 'folder')
        """,
        {"name": name, "path": str(path), "now": iso_now(), "generation": generation},
    )
    return generation


def _set_terms(
    connection: sqlite3.Connection, generation: int, *, trusted: bool, keys: Iterable[str], permissions: str | None
) -> None:
    chosen = sorted(set(keys))
    if len(chosen) > MAX_KEYS:
        raise ConfigError(f"A project can name at most {MAX_KEYS} keys.")
    connection.execute(
        """
        UPDATE workspaces SET trusted = :trusted, permissions = :permissions, updated_at = :now
        WHERE generation = :generation
        """,
        {"trusted": trusted, "permissions": permissions, "now": iso_now(), "generation": generation},
    )
    set_keys(connection, generation, chosen)


def set_keys(connection: sqlite3.Connection, generation: int, keys: Iterable[str]) -> None:
    """Replace the keys that may use a project, in the caller's transaction."""
    connection.execute("DELETE FROM project_keys WHERE generation = :generation", {"generation": generation})
    connection.executemany(
        "INSERT INTO project_keys (generation, name) VALUES (:generation, :name)",
        [{"generation": generation, "name": name} for name in keys],
    )


def _all(connection: sqlite3.Connection) -> list[Project]:
    rows = connection.execute(
        """
        SELECT w.name, w.path, w.generation, w.trusted, w.created_at, w.permissions,
            (SELECT group_concat(p.name, char(10)) FROM project_keys p WHERE p.generation = w.generation) AS keys
        FROM workspaces w WHERE w.source = 'folder' AND w.agent_id IS NULL ORDER BY w.name
        """
    ).fetchall()
    return [
        Project(
            *(row["name"], row["path"], row["generation"], bool(row["trusted"]), row["created_at"]),
            tuple(sorted(row["keys"].split("\n"))) if row["keys"] else (),
            row["permissions"],
        )
        for row in rows
    ]
