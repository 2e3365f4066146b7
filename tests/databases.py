"""Databases with the present schema and no rows: a migration takes a process and an eighth of a second."""

from __future__ import annotations

import contextlib
import functools
import os
import sqlite3
import tempfile
from pathlib import Path

from occ_app.database import schema
from occ_app.database.database import Database


def make_database(path: Path) -> None:
    """Write a database as a first start does, unless there is one."""
    content = _migrated()
    with contextlib.suppress(FileExistsError):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "wb") as file:
            file.write(content)


def database_with(path: Path, workspace_id: str) -> Database:
    """Open a new database that has the row of one workspace, without files."""
    make_database(path)
    rows = Database(path)
    with rows.write() as connection:
        connection.execute(
            """
            INSERT INTO workspaces (workspace_id, name, description, path, files, bytes, skipped, created_at,
                updated_at) VALUES (:id, '', '', '', 0, 0, '[]', '', '')
            """,
            {"id": workspace_id},
        )
    return rows


@functools.cache
def _migrated() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "occ.db"
        schema.ensure_schema(path, Path(folder) / "lock")
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return path.read_bytes()
