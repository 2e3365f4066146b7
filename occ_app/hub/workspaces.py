"""The workspaces of a hub: their zips, and the agents that have them.

Each zip is stored once, by its content. The first execution places a workspace: its agent receives the zip, and from
then on the files live there. The zip is kept for when the agent is removed, and for a workspace that was uploaded
again and has not run since.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from occ_app import errors
from occ_app.config.config import HubConfig
from occ_app.database.database import Database
from occ_app.errors import workspace_not_found
from occ_app.executions import lifecycle
from occ_app.hub import outbox as errands
from occ_app.system.compact_json import to_json
from occ_app.system.kernel import sync_folder
from occ_app.system.timestamps import iso_now
from occ_app.workspaces import archives, upload_jobs
from occ_app.workspaces import workspace as workspaces
from occ_app.workspaces.upload_jobs import Job
from occ_app.workspaces.workspace import VISIBLE, Workspace

_PIECE = 1 << 20
_YOUNG_SECONDS = 600.0  # a zip without a row may belong to an upload whose row is being written


def zip_path(config: HubConfig, workspace: Workspace) -> Path:
    """Return the path of a workspace's stored zip."""
    return config.zips / f"{workspace.zip}.zip"


def store(db: Database, number: int, config: HubConfig, update: Callable[[Job], None]) -> None:
    """Check and store the zip of an upload, and record the result.

    `update` carries out an upload that is an update. uploads.run does the same on an agent.
    """
    job = upload_jobs.take(db, number)
    if job is None:
        return
    try:
        if job.upload.policy == "update" or job.upload.zip_path is None:
            update(job)
            return
        limits = archives.Limits(config.max_unpacked_bytes, config.max_files)
        unpacked = archives.unpack(job.upload.zip_path, None, limits, strip_root=job.upload.strip_root)
        _write_down(db, job, keep_zip(job.upload.zip_path, number, config), unpacked)
    except errors.RequestError as error:
        upload_jobs.fail(db, number, error)
    except OSError as error:
        upload_jobs.fail(db, number, errors.unwritable(error))


def keep_zip(path: Path, number: int, config: HubConfig) -> str:
    """Store a zip on disk under the SHA-256 of its content, and return that."""
    staging = config.zips / f".incoming-{number}"
    try:
        digest = _copy(path, staging)
        os.replace(staging, config.zips / f"{digest}.zip")
    finally:
        staging.unlink(missing_ok=True)  # frees the space after a failure
    sync_folder(config.zips)
    return digest


def reserve_on(db: Database, workspace: Workspace, agent_id: str) -> None:
    """Record that the agent may have a folder for the workspace from now on."""
    with db.write() as connection:
        connection.execute(
            "UPDATE workspaces SET placed = 0, agent_generation = NULL"
            " WHERE generation = :generation AND agent_id = :agent_id AND placed IS NULL",
            {"generation": workspace.generation, "agent_id": agent_id},
        )


def note_placed(db: Database, workspace: Workspace, agent_id: str, path: str, agent_generation: int | None) -> None:
    """Record that the agent has this upload's files.

    `path` and `agent_generation` are the path and the workspace's number on the agent.
    """
    with db.write() as connection:
        connection.execute(
            "UPDATE workspaces SET placed = :upload, path = :path, agent_generation = :agent_generation"
            " WHERE generation = :generation AND agent_id = :agent_id AND upload = :upload",
            {
                "upload": workspace.upload,
                "path": path,
                "agent_generation": agent_generation,
                "generation": workspace.generation,
                "agent_id": agent_id,
            },
        )


def note_missing(db: Database, workspace: Workspace, agent_id: str) -> None:
    """Record that the agent no longer has the files, so that they are sent again."""
    with db.write() as connection:
        connection.execute(
            "UPDATE workspaces SET placed = NULL WHERE generation = :generation AND agent_id = :agent_id",
            {"generation": workspace.generation, "agent_id": agent_id},
        )


def delete(db: Database, workspace_id: str, visible_to: str | None, generation: int | None = None) -> list[int]:
    """Remove a workspace, end its queued executions, and have its agent delete it.

    Returns the numbers of the executions it ended. Raises NotFound, also when the id belongs to another `generation`
    than the given one, and Conflict while it is in use and for a project.
    """
    with db.write() as connection:
        row = connection.execute(
            f"""
            SELECT w.agent_id, w.generation, w.agent_generation, w.source FROM workspaces w
            WHERE w.workspace_id = :workspace_id AND (:generation IS NULL OR w.generation = :generation) AND {VISIBLE}
            """,  # noqa: S608 - literals
            {"workspace_id": workspace_id, "generation": generation, "visible_to": visible_to},
        ).fetchone()
        if row is None:
            raise workspace_not_found(workspace_id, generation)
        workspaces.refuse_folder(workspace_id, row["source"])
        workspaces.refuse_busy(connection, workspace_id, row["generation"])
        connection.execute("DELETE FROM workspaces WHERE generation = :generation", {"generation": row["generation"]})
        if row["agent_id"] is not None:
            errands.delete_workspace(connection, row["agent_id"], workspace_id, row["agent_generation"])
        return lifecycle.end_waiting(connection, row["generation"])


def remove_unused_zips(db: Database, config: HubConfig) -> None:
    """Delete the zips that no workspace uses any more."""
    with db.read() as connection:
        used = {row["zip"] for row in connection.execute("SELECT DISTINCT zip FROM workspaces").fetchall()}
    for path in config.zips.glob("*.zip"):
        with suppress(FileNotFoundError):
            if path.stem not in used and time.time() - path.stat().st_mtime > _YOUNG_SECONDS:
                path.unlink()


def _copy(source: Path, target: Path) -> str:
    """Copy a file to disk, synced, and return the SHA-256 of its content in hex."""
    digest = hashlib.sha256()
    with source.open("rb") as read, target.open("wb") as write:
        while piece := read.read(_PIECE):
            digest.update(piece)
            write.write(piece)
        write.flush()
        os.fsync(write.fileno())
    return digest.hexdigest()


def _write_down(db: Database, job: Job, digest: str, unpacked: archives.Unpacked) -> None:
    upload, now = job.upload, iso_now()
    with db.write() as connection:
        row = connection.execute("SELECT * FROM workspaces WHERE workspace_id = ?", (upload.workspace_id,)).fetchone()
        if row is not None and row["owner_id"] != upload.owner_id and upload.owner_id is not None:
            raise errors.Conflict(
                "WORKSPACE_CONFLICT",
                f"The id {upload.workspace_id} is taken; choose another workspaceId.",
                {"workspaceId": upload.workspace_id},
            )
        if row is not None:
            workspaces.refuse_folder(upload.workspace_id, row["source"])
        upload_jobs.refuse_unexpected(upload, None if row is None else row["generation"])
        if row is not None and upload.policy == "reuse":
            upload_jobs.succeed(connection, job.number, workspaces.from_row(row), reused=True)
            return
        if row is None:
            generation = workspaces.new_generation(connection, upload.workspace_id)
        else:
            generation = row["generation"]
            workspaces.refuse_busy(connection, upload.workspace_id, generation)
        row = connection.execute(
            """
            INSERT INTO workspaces (workspace_id, name, description, path, files, bytes, skipped, created_at,
                updated_at, key_id, owner_id, zip, upload, generation, stripped)
            VALUES (?, ?, ?, '', ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
            ON CONFLICT (workspace_id) DO UPDATE SET name = excluded.name, description = excluded.description,
                files = excluded.files, bytes = excluded.bytes, skipped = excluded.skipped,
                updated_at = excluded.updated_at, zip = excluded.zip, upload = excluded.upload,
                stripped = excluded.stripped
            RETURNING *
            """,
            (
                *(upload.workspace_id, upload.name, upload.description, unpacked.files, unpacked.bytes),
                *(to_json(list(unpacked.skipped)), now, now, upload.key_id, upload.owner_id),
                *(digest, job.number, generation, unpacked.stripped),
            ),
        ).fetchone()
        upload_jobs.succeed(connection, job.number, workspaces.from_row(row), reused=False)
