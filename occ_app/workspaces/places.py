"""The folders of workspaces on the disk.

No other workspace has, had or shares a folder's path as the CLI encodes it. The CLI keeps conversations by the encoded
path, so workspaces that share one would read each other's.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from occ_app.claude import projects
from occ_app.database.database import Database
from occ_app.system.kernel import sync_folder
from occ_app.workspaces.workspace import sessions_of


def choose(
    connection: sqlite3.Connection, workspace_id: str, generation: int, folder: Path, claude: Path | None
) -> Path:
    """Reserve a path for a new workspace, in the caller's transaction.

    It is `folder/workspace_id` where that is unique, else it has a suffix. Conversations that something else left in
    `claude`, the CLI's own folder, are not inherited either.
    """
    for name in (workspace_id, f"{workspace_id}-g{generation}"):
        place = folder / name
        left_over = claude is not None and any(path.exists() for path in projects.folders(claude, place))
        if projects.fits(place) and not left_over and _reserve(connection, name, generation):
            return place
    name = f"{workspace_id[:32]}-g{generation}-{os.urandom(4).hex()}"
    _reserve(connection, name, generation)
    return folder / name


def reconcile(db: Database, folder: Path, cli: projects.CliFolders | None) -> list[str]:
    """Make folders and rows agree at start, also in a home that was moved or copied.

    Runs before any request is served. A removal that was killed before it was recorded is undone, one after that is
    finished. A workspace that shares its encoded path with another is moved. Returns a sentence for each of these.
    Projects stay as they are.
    """
    with db.write() as connection:
        rows = connection.execute("SELECT workspace_id, path FROM workspaces WHERE source = 'upload'").fetchall()
        kept = {Path(row["path"]).name for row in rows}
        moved = [
            {"path": str(place), "workspace_id": row["workspace_id"]}
            for row in rows
            if str(place := folder / Path(row["path"]).name) != row["path"]
        ]
        connection.executemany("UPDATE workspaces SET path = :path WHERE workspace_id = :workspace_id", moved)
    for trash in folder.glob(".deleted-*"):
        name = trash.name.removeprefix(".deleted-").rpartition("-")[0]
        if name in kept and not (folder / name).exists():
            trash.rename(folder / name)
            continue
        if name not in kept and cli is not None:
            projects.remove(cli, folder / name, _sessions_in(db, name))
        shutil.rmtree(trash, ignore_errors=True)
    return list(_part(db, folder, None if cli is None else cli.state))


def _sessions_in(db: Database, name: str) -> list[str]:
    """Return the sessions of the removed workspace whose folder had this name."""
    with db.read() as connection:
        row = connection.execute(
            "SELECT generation FROM claude_folders WHERE name = :name", {"name": projects.encoded(name)}
        ).fetchone()
        return [] if row is None else sessions_of(connection, row["generation"])


def _part(db: Database, folder: Path, claude: Path | None) -> Iterator[str]:
    """Move each workspace whose encoded path is not reserved for it.

    Yields a sentence for each.
    """
    with db.read() as connection:
        rows = connection.execute(
            """
            SELECT w.workspace_id, w.path, w.generation FROM workspaces w
            WHERE w.source = 'upload'
              AND NOT EXISTS (SELECT 1 FROM claude_folders f WHERE f.generation = w.generation)
            """
        ).fetchall()
    for row in rows:
        former = Path(row["path"])
        with db.write(durable=False) as connection:
            reserved = _reserve(connection, former.name, row["generation"])
        if not reserved:
            place = _move(db, row["workspace_id"], row["generation"], former, folder, claude)
            where = "" if claude is None else f" ({', '.join(map(str, projects.folders(claude, former)))})"
            yield (
                f"Workspace {row['workspace_id']} shared its Claude folder{where} with another workspace. It is now in"
                f" {place}; its earlier sessions cannot be resumed, and the shared folder is no longer used: delete it"
                " when you need nothing of it."
            )


def _move(db: Database, workspace_id: str, generation: int, former: Path, folder: Path, claude: Path | None) -> Path:
    """Move a workspace to a path of its generation, and return the path.

    Its former path stays reserved for nobody.
    """
    with db.write(durable=False) as connection:
        # A start that was killed between the rename and the commit has moved it already.
        place = next((path for path in folder.glob(f"*-g{generation}") if not former.exists()), None)
        if place is None or not _reserve(connection, place.name, generation):
            place = choose(connection, f"{workspace_id}-g{generation}", generation, folder, claude)
        connection.execute(
            """
            UPDATE workspaces SET path = :path,
                sessions_after = (SELECT coalesce(max(number), 0) FROM executions)
            WHERE generation = :generation
            """,
            {"path": str(place), "generation": generation},
        )
        if former.exists():
            os.rename(former, place)
        sync_folder(folder)
    db.sync()
    return place


def _reserve(connection: sqlite3.Connection, name: str, generation: int) -> bool:
    """Reserve a folder's name as the CLI encodes it, for ever.

    False when a workspace has or had it.
    """
    return bool(
        connection.execute(
            "INSERT INTO claude_folders (name, generation) VALUES (:name, :generation) ON CONFLICT DO NOTHING",
            {"name": projects.encoded(name), "generation": generation},
        ).rowcount
    )
