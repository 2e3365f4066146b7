"""Workspaces: the folders executions run in, and their rows; uploads.py makes them."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

from occ_app import errors
from occ_app.claude import projects
from occ_app.database.database import Database
from occ_app.errors import workspace_not_found
from occ_app.system.kernel import sync_folder


@dataclass(frozen=True)
class Placement:
    """Where a hub's workspace lives: on this agent, which has the files of this upload.

    `upload_number` is None while the agent has no files of the hub, and 0 while an upload may have arrived.
    `is_current` is True when those are the files of the workspace's newest upload.
    """

    agent_id: str
    upload_number: int | None
    is_current: bool


@dataclass(frozen=True)
class Workspace:
    """A row of `workspaces`; `bytes` is the unpacked size, `skipped` the files left out of the zip, with reasons.

    `generation` is its number, which no other workspace ever has; its id may be given again once it is deleted. Only
    sessions of executions numbered above `sessions_after` can be resumed.
    Only on a hub: `key_id`; `agent_id`, where it lives; `agent_generation`, its number there; `zip`, the stored
    zip's SHA-256; `upload`, the number of the job that brought it; `placed`, the upload of its `placement`.
    """

    workspace_id: str
    name: str
    description: str
    path: str
    files: int
    bytes: int
    skipped: list[dict[str, str]]
    created_at: str
    updated_at: str
    key_id: str | None
    agent_id: str | None
    zip: str | None
    upload: int | None
    placed: int | None
    generation: int
    agent_generation: int | None
    sessions_after: int
    stripped: str | None  # the single top folder of the zip that the workspace is without

    @property
    def placement(self) -> Placement | None:
        """Where it lives; None while it is on no agent."""
        if self.agent_id is None:
            return None
        return Placement(self.agent_id, self.placed, is_current=self.placed == self.upload)


_FIELDS = tuple(field.name for field in fields(Workspace))


def get(db: Database, workspace_id: str, visible_to: str | None = None, generation: int | None = None) -> Workspace:
    """One workspace. Raises NotFound, also for another key's than `visible_to` or another number than `generation`."""
    with db.read() as connection:
        row = connection.execute("SELECT * FROM workspaces WHERE workspace_id = ?", (workspace_id,)).fetchone()
    if row is None or visible_to not in (None, row["key_id"]) or generation not in (None, row["generation"]):
        raise workspace_not_found(workspace_id, generation)
    return from_row(row)


def numbered(db: Database, generation: int) -> Workspace | None:
    """The workspace with this number; None once it is deleted, also when its id is in use again."""
    with db.read() as connection:
        row = connection.execute(
            "SELECT * FROM workspaces WHERE generation = :generation", {"generation": generation}
        ).fetchone()
    return None if row is None else from_row(row)


def new_generation(connection: sqlite3.Connection, workspace_id: str) -> int:
    """Number a workspace that the caller's transaction adds."""
    number = connection.execute(
        "INSERT INTO workspace_generations (workspace_id) VALUES (:workspace_id)", {"workspace_id": workspace_id}
    ).lastrowid
    assert number is not None  # noqa: S101 - an INSERT that did not raise has a row id
    return number


def listing(db: Database, visible_to: str | None = None) -> list[Workspace]:
    """All workspaces, or those that the key `visible_to` made, by id."""
    with db.read() as connection:
        rows = connection.execute(
            "SELECT * FROM workspaces WHERE ? IS NULL OR key_id = ? ORDER BY workspace_id", (visible_to, visible_to)
        ).fetchall()
    return [from_row(row) for row in rows]


def delete(
    db: Database,
    workspace_id: str,
    folder: Path,
    end_waiting: Callable[[sqlite3.Connection, int], list[int]],
    generation: int | None = None,
    claude: Path | None = None,
) -> list[int]:
    """Remove a workspace and its files, and end its queued executions; returns the numbers of those executions.

    `end_waiting` does that in the transaction. The workspace's conversations in the CLI's own folder, `claude`, are
    removed, too. Raises NotFound, also when the id belongs to another `generation` than the given one, and Conflict
    while an execution runs in it.
    """
    trash: Path | None = None
    try:
        with db.write(durable=False) as connection:
            row = connection.execute(
                "DELETE FROM workspaces WHERE workspace_id = :workspace_id"
                " AND (:generation IS NULL OR generation = :generation) RETURNING path, generation",
                {"workspace_id": workspace_id, "generation": generation},
            ).fetchone()
            if row is None:
                raise workspace_not_found(workspace_id, generation)
            refuse_busy(connection, workspace_id, row["generation"])
            ended = end_waiting(connection, row["generation"])
            # The rename is inside the transaction: no execution can be claimed between the check and it.
            path = Path(row["path"])
            if path.exists():
                target = folder / f".deleted-{path.name}-{os.urandom(4).hex()}"
                os.rename(path, target)
                trash = target
                sync_folder(folder)
    except BaseException:
        if trash is not None:  # its row is there again
            os.rename(trash, path)
        raise
    db.sync()
    if claude is not None:
        projects.remove(claude, path)
    if trash is not None:  # last: the next start finds in it which removal to finish
        shutil.rmtree(trash, ignore_errors=True)
    return ended


def refuse_busy(connection: sqlite3.Connection, workspace_id: str, generation: int) -> None:
    """Raises Conflict while an execution runs in the workspace; inside the transaction that changes it."""
    row = connection.execute(
        "SELECT execution_id FROM executions WHERE workspace_generation = :generation AND state = 'running'",
        {"generation": generation},
    ).fetchone()
    if row is not None:
        raise errors.Conflict(
            "WORKSPACE_BUSY",
            f"Execution {row['execution_id']} runs in workspace {workspace_id}; wait for it or cancel it first.",
            {"workspaceId": workspace_id, "executionId": row["execution_id"]},
        )


def from_row(row: sqlite3.Row) -> Workspace:
    values = dict(row)
    values["skipped"] = json.loads(values["skipped"])
    return Workspace(**{name: values[name] for name in _FIELDS})  # a newer schema may have further columns
