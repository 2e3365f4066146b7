"""The jobs of uploads, rows of `workspace_jobs`.

A job is submitted, begun, ended well or with an error, or abandoned.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from occ_app import errors
from occ_app.database.database import Database
from occ_app.system.compact_json import to_json
from occ_app.system.timestamps import iso_now
from occ_app.workspaces import origin as origins
from occ_app.workspaces.origin import Origin
from occ_app.workspaces.workspace import Workspace


@dataclass(frozen=True)
class Upload:
    """A workspace to create from a zip; `policy` is overwrite, reuse or update.

    An update changes the snapshot `base`, removes the paths of `deleted`, and may have no zip.

    The workspace must have the number `expected`; 0: it must not exist; None: any. `origin` is that of an upload which
    a hub sends to an agent. Only on a hub: `key_id`, the key of the request, and its `owner_id`.
    """

    workspace_id: str
    name: str
    description: str
    policy: str
    zip_path: Path | None
    key_id: str | None = None
    owner_id: str | None = None
    strip_root: bool = False
    expected: int | None = None
    origin: Origin | None = None
    base: str | None = None
    deleted: tuple[str, ...] = ()


@dataclass(frozen=True)
class Job:
    """A row of `workspace_jobs`: an upload that is being worked on."""

    number: int
    upload: Upload


def refuse_unexpected(upload: Upload, generation: int | None) -> None:
    """Raise Conflict when `generation` is not the expected one.

    It is the number of the workspace that has the id.
    """
    if upload.expected is not None and upload.expected != (generation or 0):
        raise errors.workspace_changed(upload.workspace_id, upload.expected, generation)


def submit(db: Database, upload: Upload) -> int:
    """Note that a workspace is to be made; returns the job's number."""
    with db.write() as connection:
        number = connection.execute(
            """
            INSERT INTO workspace_jobs (workspace_id, name, description, policy, zip_path, key_id, owner_id, strip_root,
                expected_generation, origin, base, deletions, state, created_at)
            VALUES (:workspace_id, :name, :description, :policy, :zip_path, :key_id, :owner_id, :strip_root, :expected,
                :origin, :base, :deletions, 'queued', :now)
            """,
            {
                **asdict(upload),
                # The column takes only the two first policies; a row with a base is an update.
                "policy": "overwrite" if upload.policy == "update" else upload.policy,
                "zip_path": str(upload.zip_path or ""),
                "deletions": to_json(list(upload.deleted)) if upload.deleted else None,
                "origin": origins.stored(upload.origin),
                "now": iso_now(),
            },
        ).lastrowid
    assert number is not None  # noqa: S101 - an INSERT that did not raise has a row id
    return number


def result(db: Database, number: int) -> tuple[str, dict[str, Any] | None]:
    """Return a job's state and, when it is over, its reply or its error."""
    with db.read() as connection:
        row = connection.execute("SELECT state, result FROM workspace_jobs WHERE number = ?", (number,)).fetchone()
    return row["state"], None if row["result"] is None else json.loads(row["result"])


def abandon(db: Database, number: int) -> bool:
    """Abandon a job. False when it was over already; then its result counts."""
    with db.write() as connection:
        return bool(
            connection.execute(
                "UPDATE workspace_jobs SET state = 'abandoned', finished_at = ?"
                " WHERE number = ? AND state IN ('queued', 'running')",
                (iso_now(), number),
            ).rowcount
        )


def abandon_all(db: Database) -> None:
    """Abandon every unfinished job: its caller is gone with the daemon that took it."""
    with db.write() as connection:
        connection.execute(
            "UPDATE workspace_jobs SET state = 'abandoned', finished_at = ? WHERE state IN ('queued', 'running')",
            (iso_now(),),
        )


def abandon_running(db: Database) -> list[int]:
    """Abandon the jobs that a killed control process had begun.

    Returns their numbers for their callers.
    """
    with db.write() as connection:
        rows = connection.execute(
            "UPDATE workspace_jobs SET state = 'abandoned', finished_at = ? WHERE state = 'running' RETURNING number",
            (iso_now(),),
        ).fetchall()
    return [row["number"] for row in rows]


def take(db: Database, number: int) -> Job | None:
    """Begin a job. None when it was begun or given up already."""
    with db.write() as connection:
        row = connection.execute(
            "UPDATE workspace_jobs SET state = 'running' WHERE number = ? AND state = 'queued'"
            " RETURNING workspace_id, name, description, policy, zip_path, key_id, owner_id, strip_root,"
            " expected_generation, origin, base, deletions",
            (number,),
        ).fetchone()
    if row is None:
        return None
    upload = Upload(
        workspace_id=row["workspace_id"],
        name=row["name"],
        description=row["description"],
        policy=row["policy"] if row["base"] is None else "update",
        zip_path=Path(row["zip_path"]) if row["zip_path"] else None,
        key_id=row["key_id"],
        owner_id=row["owner_id"],
        strip_root=bool(row["strip_root"]),
        expected=row["expected_generation"],
        origin=origins.of_row(row["origin"]),
        base=row["base"],
        deleted=tuple(json.loads(row["deletions"] or "[]")),
    )
    return Job(number, upload)


def succeed(connection: sqlite3.Connection, number: int, workspace: Workspace, *, reused: bool) -> None:
    """End a job well, in the caller's transaction.

    Raises Unavailable when it was abandoned meanwhile.
    """
    reply = {
        "status": "success",
        "workspaceId": workspace.workspace_id,
        "path": workspace.path,
        "reused": reused,
        "files": workspace.files,
        "bytes": workspace.bytes,
        "skipped": workspace.skipped,
        "stripped": workspace.stripped,
        "snapshot": workspace.snapshot,
        "generation": workspace.generation,
    }
    if workspace.zip is not None:  # on a hub, which tells where it is
        reply["agentId"] = workspace.agent_id
    won = connection.execute(
        "UPDATE workspace_jobs SET state = 'succeeded', result = ?, finished_at = ?"
        " WHERE number = ? AND state = 'running'",
        (to_json(reply), iso_now(), number),
    ).rowcount
    if not won:
        # Its caller got the answer that it took too long; raising undoes the transaction and with it the workspace.
        raise errors.Unavailable("BUSY", "The upload took too long and was undone; try again.")


def fail(db: Database, number: int, error: errors.RequestError) -> None:
    """End a job with the result for its caller."""
    result: Mapping[str, Any] = {"code": error.code, "message": str(error), "details": error.details}
    with db.write() as connection:
        connection.execute(
            "UPDATE workspace_jobs SET state = 'failed', result = ?, finished_at = ?"
            " WHERE number = ? AND state = 'running'",
            (to_json(result), iso_now(), number),
        )
