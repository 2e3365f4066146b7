"""A backup of a home while its daemon runs: a snapshot of the database, the state, the settings and the workspaces."""

from __future__ import annotations

import contextlib
import sqlite3
import tarfile
import tempfile
from contextlib import closing
from pathlib import Path
from typing import IO, cast

from occ_app.config.config import Config
from occ_app.database import schema
from occ_app.database.database import Database
from occ_app.executions import lifecycle
from occ_app.executions.records import Outcome
from occ_app.system.files import new_file
from occ_app.workspaces import snapshots
from occ_app.workspaces.archives import below

_UNDER_WAY = Outcome.failure(
    "WORKER_LOST", "This ran when the backup was made and is not repeated; send it again if you need it."
)


def write(config: Config, target: Path) -> int:
    """Write a .tar.gz of the home to `target`, which must not exist; returns its bytes.

    The database is copied as of one instant, also during writes. When a workspace is uploaded,
    replaced or removed meanwhile all of it is written again; after three attempts raises Unavailable (BUSY). Files that
    a run changes are taken as they are when they are read. The queue is left out: it is rebuilt.
    Unpacked into an empty home it is that agent again. What waited or ran at that instant is over in the copy, with
    WORKER_LOST: the original went on with it, and a prompt never runs twice.
    """
    schema.opened(config.database, readonly=True)  # a newer one cannot be copied by this version
    with new_file(target) as output, tempfile.TemporaryDirectory(dir=config.run) as folder:
        snapshots.repeat(
            lambda: _write(config, Path(folder) / "occ.db", output),
            output,
            lambda: snapshots.identities(config.workspaces.glob("[!.]*")),
            "The workspaces",
        )
    return target.stat().st_size


def _write(config: Config, snapshot: Path, output: IO[bytes]) -> None:
    snapshot.unlink(missing_ok=True)
    _snapshot(config.database, snapshot)
    with tarfile.open(fileobj=output, mode="w:gz", compresslevel=3) as archive:
        archive.add(snapshot, "occ.db")
        for name in ("state.json", "machine.json", "push.json", "config.toml", "workspaces"):
            for path in (config.home / name, *below(config.home / name)):
                _add(archive, path, path.relative_to(config.home))


def _snapshot(database: Path, copy: Path) -> None:
    uri = f"{database.absolute().as_uri()}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True)) as source, closing(sqlite3.connect(copy)) as sink:
        source.backup(sink)
    snapshot = Database(copy)
    lifecycle.abandon_all(snapshot, _UNDER_WAY)
    snapshot.close()


def _add(archive: tarfile.TarFile, path: Path, name: Path) -> None:
    """Add a file, folder or link as it is now: what disappears is left out, what grows or shrinks is cut or filled up.

    Temporary files of an upload or a delete in progress are left out.
    """
    if len(name.parts) > 1 and name.parts[1].startswith((".incoming-", ".aside-", ".deleted-")):
        return
    with contextlib.suppress(FileNotFoundError):
        entry = archive.gettarinfo(path, str(name))
        if entry is None:
            return  # a socket
        if not entry.isreg():
            archive.addfile(entry)
            return
        with path.open("rb") as file:
            archive.addfile(entry, cast(IO[bytes], _Filled(file)))


class _Filled:
    """A file that never ends: past its end there are zeros, so that one that shrinks spoils no archive."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def read(self, size: int) -> bytes:
        return self._file.read(size).ljust(size, b"\0")
