"""Workspaces: the folders executions run in, and their rows.

uploads.py creates them.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TypeVar

from occ_app import errors
from occ_app.claude import projects
from occ_app.database import rows
from occ_app.database.database import Database
from occ_app.errors import workspace_not_found
from occ_app.system.kernel import sync_folder
from occ_app.workspaces.origin import Origin, of_row

T = TypeVar("T")


@dataclass(frozen=True)
class Placement:
    """The agent that has a hub's workspace, with the files of this upload.

    `upload_number` is None while the agent has no files of the hub, and 0 while an upload may have arrived.
    `is_current` is True when those are the files of the workspace's newest upload.
    """

    agent_id: str
    upload_number: int | None
    is_current: bool


@dataclass(frozen=True)
class Workspace:
    """A row of `workspaces`.

    `bytes` is the unpacked size, `skipped` the files left out of the zip, with reasons. `source` is `upload`, or
    `folder` for a project: a folder of the machine that OCC never changes by itself. `trusted` is a project's: its
    settings, hooks and MCP servers count. `permissions` is the most that runs in it may do, None for all that the
    machine allows. `snapshot` is the id of its latest snapshot's tree.

    `generation` is its number, which no other workspace ever has; its id may be used again once it is deleted. Only
    sessions of executions numbered above `sessions_after` can be resumed. Only on a hub: `key_id` and its `owner_id`;
    `agent_id`, where it is; `agent_generation`, its number there; `zip`, the stored zip's SHA-256; `upload`, the
    number of the job that brought it; `placed`, the upload of its `placement`.
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
    owner_id: str | None
    agent_id: str | None
    zip: str | None
    upload: int | None
    placed: int | None
    generation: int
    agent_generation: int | None
    sessions_after: int
    stripped: str | None  # the single top folder of the zip that the workspace is without
    source: str
    trusted: bool
    origin: Origin | None  # on an agent, of a workspace that a hub sent
    snapshot: str | None = None
    permissions: str | None = None
    agent_name: str | None = None  # where it lives, by name; only in what `get`, `numbered` and `listing` return

    @property
    def is_project(self) -> bool:
        """Whether it is a folder of the machine itself, and no upload."""
        return self.source == "folder"

    @property
    def alias(self) -> str | None:
        """The name of a project on a hub, `app@box`; None for all others."""
        return f"{self.name}@{self.agent_name}" if self.is_project and self.agent_name else None

    @property
    def placement(self) -> Placement | None:
        """Where it lives; None while it is on no agent."""
        if self.agent_id is None:
            return None
        return Placement(self.agent_id, self.placed, is_current=self.placed == self.upload)


_FIELDS = tuple(field.name for field in fields(Workspace))
_SELECT = "SELECT w.*, (SELECT a.name FROM agents a WHERE a.agent_id = w.agent_id) AS agent_name FROM workspaces w"
# Whether a caller may see and use a workspace `w`: its owner, and everybody who is limited to no owner. A project is
# the owner's of the key with which its machine registered, and of the valid client keys that the machine names.
VISIBLE = """(
    :visible_to IS NULL OR w.owner_id = :visible_to OR (w.source = 'folder' AND EXISTS (
        SELECT 1 FROM keys k
        WHERE k.owner_id = :visible_to AND k.revoked_at IS NULL AND (
            k.key_id = (SELECT a.key_id FROM agents a WHERE a.agent_id = w.agent_id)
            OR (k.kind = 'client'
                AND k.name IN (SELECT p.name FROM project_keys p WHERE p.generation = w.generation)))))
)"""


def get(db: Database, workspace_id: str, visible_to: str | None = None, generation: int | None = None) -> Workspace:
    """Return one workspace.

    Raises NotFound, also for one that the owner `visible_to` may not see, and for another number.
    """
    with db.read() as connection:
        row = connection.execute(
            f"{_SELECT} WHERE w.workspace_id = :workspace_id AND {VISIBLE}"
            " AND (:generation IS NULL OR w.generation = :generation)",
            {"workspace_id": workspace_id, "visible_to": visible_to, "generation": generation},
        ).fetchone()
    if row is None:
        raise workspace_not_found(workspace_id, generation)
    return from_row(row)


def numbered(db: Database, generation: int, visible_to: str | None = None) -> Workspace | None:
    """Return the workspace with this number, if `visible_to` may see it.

    None once it is deleted, also when its id is in use again.
    """
    with db.read() as connection:
        row = connection.execute(
            f"{_SELECT} WHERE w.generation = :generation AND {VISIBLE}",
            {"generation": generation, "visible_to": visible_to},
        ).fetchone()
    return None if row is None else from_row(row)


def origin_of(connection: sqlite3.Connection, workspace_id: str) -> Origin | None:
    """Return the origin of a workspace, in the caller's transaction."""
    row = connection.execute(
        "SELECT origin FROM workspaces WHERE workspace_id = :workspace_id", {"workspace_id": workspace_id}
    ).fetchone()
    return None if row is None else of_row(row["origin"])


def new_generation(connection: sqlite3.Connection, workspace_id: str) -> int:
    """Return the number for a workspace that the caller's transaction adds."""
    number = connection.execute(
        "INSERT INTO workspace_generations (workspace_id) VALUES (:workspace_id)", {"workspace_id": workspace_id}
    ).lastrowid
    assert number is not None  # noqa: S101 - an INSERT that did not raise has a row id
    return number


def listing(db: Database, visible_to: str | None = None) -> list[Workspace]:
    """All workspaces, or those that the owner `visible_to` may see, by id."""
    with db.read() as connection:
        rows = connection.execute(
            f"{_SELECT} WHERE {VISIBLE} ORDER BY w.workspace_id", {"visible_to": visible_to}
        ).fetchall()
    return [from_row(row) for row in rows]


def delete(
    db: Database,
    workspace_id: str,
    folder: Path,
    end_waiting: Callable[[sqlite3.Connection, int], list[int]],
    generation: int | None = None,
    cli: projects.CliFolders | None = None,
) -> list[int]:
    """Remove a workspace and its files, and end its queued executions.

    Returns the numbers of those executions. Waits while the changes of an ended execution are being recorded.
    `end_waiting` ends them in the transaction. The CLI's state of the workspace's sessions in `cli` is removed, too.
    Raises NotFound, also when the id belongs to another `generation` than the given one, and Conflict while an
    execution runs in it and for a project.
    """
    return patiently(lambda: _delete(db, workspace_id, folder, end_waiting, generation, cli))


def _delete(
    db: Database,
    workspace_id: str,
    folder: Path,
    end_waiting: Callable[[sqlite3.Connection, int], list[int]],
    generation: int | None,
    cli: projects.CliFolders | None,
) -> list[int]:
    trash: Path | None = None
    try:
        with db.write(durable=False) as connection:
            row = connection.execute(
                "DELETE FROM workspaces WHERE workspace_id = :workspace_id"
                " AND (:generation IS NULL OR generation = :generation) RETURNING path, generation, source",
                {"workspace_id": workspace_id, "generation": generation},
            ).fetchone()
            if row is None:
                raise workspace_not_found(workspace_id, generation)
            refuse_folder(workspace_id, row["source"])
            refuse_busy(connection, workspace_id, row["generation"])
            ended = end_waiting(connection, row["generation"])
            sessions = sessions_of(connection, row["generation"])
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
    if cli is not None:
        projects.remove(cli, path, sessions)
    if trash is not None:  # last: the next start finds in it which removal to finish
        shutil.rmtree(trash, ignore_errors=True)
    return ended


def refuse_folder(workspace_id: str, source: str) -> None:
    """Raise Conflict for a project, in the transaction of an overwrite or deletion."""
    if source == "folder":
        raise errors.workspace_is_folder(workspace_id)


def sessions_of(connection: sqlite3.Connection, generation: int) -> list[str]:
    """Return the sessions that ran in this workspace and in no other existing one."""
    rows = connection.execute(
        """
        SELECT DISTINCT x.session_id FROM executions x
        WHERE x.workspace_generation = :generation AND x.workspace_generation > 0 AND x.session_id IS NOT NULL
          AND NOT EXISTS (
            SELECT 1 FROM executions o JOIN workspaces w ON w.generation = o.workspace_generation
            WHERE o.session_id = x.session_id AND o.workspace_generation != :generation)
        """,
        {"generation": generation},
    ).fetchall()
    return [str(row["session_id"]) for row in rows]


def refuse_busy(connection: sqlite3.Connection, workspace_id: str, generation: int, holder: str | None = None) -> None:
    """Raise Conflict while another than `holder` holds a workspace.

    In the transaction that changes it.
    """
    row = connection.execute(
        """
        SELECT execution_id, reason FROM held_workspaces
        WHERE workspace_generation = :generation AND (:holder IS NULL OR execution_id <> :holder) LIMIT 1
        """,
        {"generation": generation, "holder": holder},
    ).fetchone()
    if row is not None:
        raise errors.Conflict(
            "WORKSPACE_BUSY",
            f"{_BUSY[row['reason']].format(row['execution_id'], workspace_id)}",
            {"workspaceId": workspace_id, "executionId": row["execution_id"], "reason": row["reason"]},
        )


def patiently(attempt: Callable[[], T], seconds: float = 30.0) -> T:
    """Repeat an attempt while the changes of an ended execution are being recorded.

    Raises the error of the attempt, at the latest after so many seconds.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            return attempt()
        except errors.Conflict as conflict:
            if conflict.details.get("reason") != "ends" or time.monotonic() > deadline:
                raise
        time.sleep(0.02)  # the row of another process cannot be waited for


_BUSY = {
    "runs": "Execution {} runs in workspace {}; wait for it or cancel it first.",
    "parked": "Execution {} in workspace {} waits for a person; answer it (`occ approvals`) or cancel it first.",
    "ends": "The changes of execution {} in workspace {} are being recorded; try again in a moment.",
    "restores": "Execution {} is being restored in workspace {}; try again in a moment.",
}


def from_row(row: sqlite3.Row) -> Workspace:
    values = dict(row)
    values["skipped"] = rows.objects(values["skipped"], ("path", "reason"))
    values["trusted"] = bool(values["trusted"])
    values["origin"] = of_row(values["origin"])
    values.setdefault("agent_name", None)
    return Workspace(**rows.sound(Workspace, values, values["generation"]))  # a newer schema may have further columns
