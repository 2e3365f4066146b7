"""Making workspaces from the zips of uploads.

A workspace appears and changes in one step: a tree is unpacked beside its place and exchanged with the old tree inside
the transaction that checks nobody is using it.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from occ_app import errors
from occ_app.database.database import Database
from occ_app.snapshots.store import Snapshots
from occ_app.system.compact_json import to_json
from occ_app.system.kernel import sync_filesystem, sync_folder
from occ_app.system.timestamps import iso_now
from occ_app.workspaces import archives, places, updates, upload_jobs
from occ_app.workspaces import origin as origins
from occ_app.workspaces import workspace as workspaces
from occ_app.workspaces.exchange import swap
from occ_app.workspaces.upload_jobs import Job


@dataclass(frozen=True)
class _First:
    """The first snapshot of an upload, under the number of its workspace."""

    generation: int
    tree: str | None


def run(
    db: Database,
    number: int,
    folder: Path,
    limits: archives.Limits,
    claude: Path | None = None,
    snapshots: Snapshots | None = None,
) -> None:
    """Create the workspace of a job and record the result, or leave nothing of it.

    `claude` is the CLI's own folder, where a new workspace must not find anything of another. `snapshots` takes the
    first one.
    """
    job = upload_jobs.take(db, number)
    if job is None:
        return
    staging = folder / f".incoming-{number}"
    upload = job.upload
    try:
        try:
            if _exists(db, upload.workspace_id) and upload.policy == "reuse" and upload.zip_path is not None:
                archives.unpack(upload.zip_path, None, limits, strip_root=upload.strip_root)
                _reuse(db, job)
                return
            seen = None
            if upload.policy == "update":
                seen = workspaces.patiently(lambda: updates.begin(db, upload.workspace_id, upload.base))
            staging.mkdir(mode=0o700)
            # Its name tells the new tree from the old one, which is there once they were exchanged.
            staging = staging.rename(f"{staging}-{staging.stat().st_ino}")
            unpacked = archives.Unpacked(0, 0, ())
            if upload.zip_path is not None:
                unpacked = archives.unpack(upload.zip_path, staging, limits, strip_root=upload.strip_root)
            if seen is not None:
                updates.keep(seen.path, staging, upload.deleted)
            sync_filesystem(staging)  # an upload answered with 200 survives a power cut
            first = None if snapshots is None else _first_snapshot(db, job, staging, snapshots)
            workspaces.patiently(lambda: _put_in_place(db, job, staging, folder, unpacked, claude, first, seen))
            if snapshots is not None and first is not None:
                snapshots.adopt(first.generation, str(number))
        finally:
            shutil.rmtree(staging, ignore_errors=True)  # after a failure its bytes are free again
    except errors.RequestError as error:
        upload_jobs.fail(db, number, error)
    except OSError as error:
        upload_jobs.fail(db, number, errors.unwritable(error))


def _first_snapshot(db: Database, job: Job, staging: Path, snapshots: Snapshots) -> _First:
    """Take a snapshot of an unpacked upload, before it is put in its place.

    A new workspace gets its number here.
    """
    with db.write(durable=False) as connection:
        row = connection.execute(
            "SELECT generation FROM workspaces WHERE workspace_id = :workspace_id",
            {"workspace_id": job.upload.workspace_id},
        ).fetchone()
        new = row is None
        generation = workspaces.new_generation(connection, job.upload.workspace_id) if new else row["generation"]
    return _First(generation, snapshots.prepare(generation, staging, str(job.number)))


def _exists(db: Database, workspace_id: str) -> bool:
    """Return whether there is such a workspace. Raises Conflict for a project."""
    with db.read() as connection:
        row = connection.execute(
            "SELECT path, source FROM workspaces WHERE workspace_id = :workspace_id", {"workspace_id": workspace_id}
        ).fetchone()
    if row is None:
        return False
    workspaces.refuse_folder(workspace_id, row["source"])
    return Path(row["path"]).is_dir()


def _reuse(db: Database, job: Job) -> None:
    workspace = workspaces.get(db, job.upload.workspace_id)
    upload_jobs.refuse_unexpected(job.upload, workspace.generation)
    origins.refuse_other(workspace.workspace_id, workspace.origin, job.upload.origin)
    with db.write() as connection:
        upload_jobs.succeed(connection, job.number, workspace, reused=True)


def _put_in_place(
    db: Database,
    job: Job,
    staging: Path,
    folder: Path,
    unpacked: archives.Unpacked,
    claude: Path | None,
    first: _First | None,
    seen: updates.Seen | None,
) -> None:
    exchanged = False
    try:
        with db.write(durable=False) as connection:
            if seen is not None:
                updates.check(connection, job.upload.workspace_id, job.upload.base, seen)
            place = _write_down(connection, job, folder, unpacked, claude, first)
            _exchange(staging, place)
            exchanged = True
            # Before the commit, which flushes the database alone: a row without its folder would be an upload lost.
            sync_folder(folder)
    except BaseException:
        if exchanged:  # the rows are as they were, and so shall be the tree
            swap(staging, place) if staging.exists() else os.rename(place, staging)
        raise
    db.sync()


def _write_down(
    connection: sqlite3.Connection,
    job: Job,
    folder: Path,
    unpacked: archives.Unpacked,
    claude: Path | None,
    first: _First | None,
) -> Path:
    """Write the rows of a new workspace in the caller's transaction.

    Returns its path.
    """
    now = iso_now()
    upload = job.upload
    existing = connection.execute(
        "SELECT generation, path, source, origin, files, bytes, skipped, stripped FROM workspaces"
        " WHERE workspace_id = :workspace_id",
        {"workspace_id": upload.workspace_id},
    ).fetchone()
    upload_jobs.refuse_unexpected(upload, None if existing is None else existing["generation"])
    if existing is None:
        generation = first.generation if first else workspaces.new_generation(connection, upload.workspace_id)
        place = places.choose(connection, upload.workspace_id, generation, folder, claude)
    else:
        workspaces.refuse_folder(upload.workspace_id, existing["source"])
        origins.refuse_other(upload.workspace_id, origins.of_row(existing["origin"]), upload.origin)
        generation, place = existing["generation"], Path(existing["path"])
        workspaces.refuse_busy(connection, upload.workspace_id, generation)
    if existing is not None and upload.policy == "update":  # which sends a part of the files
        skipped = unpacked.skipped or tuple(json.loads(existing["skipped"]))
        unpacked = archives.Unpacked(existing["files"], existing["bytes"], skipped, existing["stripped"])
    row = connection.execute(
        """
        INSERT INTO workspaces
            (workspace_id, name, description, path, files, bytes, skipped, created_at, updated_at, generation, stripped,
            origin, snapshot)
        VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
        ON CONFLICT (workspace_id) DO UPDATE SET name = excluded.name, description = excluded.description,
            path = excluded.path, files = excluded.files, bytes = excluded.bytes, skipped = excluded.skipped,
            updated_at = excluded.updated_at, stripped = excluded.stripped, origin = excluded.origin,
            snapshot = excluded.snapshot
        RETURNING *
        """,
        (
            *(upload.workspace_id, upload.name, upload.description, str(place)),
            *(unpacked.files, unpacked.bytes, to_json(list(unpacked.skipped)), now, now, generation),
            *(unpacked.stripped, origins.stored(upload.origin)),
            first.tree if first and first.generation == generation else None,
        ),
    ).fetchone()
    upload_jobs.succeed(connection, job.number, workspaces.from_row(row), reused=False)
    return place


def _exchange(staging: Path, place: Path) -> None:
    """Exchange the new tree with the old one, if any, in one atomic step."""
    try:
        os.rename(staging, place)  # works when there is nothing, or an empty folder
        return
    except OSError:
        pass
    swap(staging, place)
