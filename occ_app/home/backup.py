"""A backup of a home while its daemon runs.

It has a snapshot of the database, the state, the settings and the workspaces.
"""

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
from occ_app.errors import NotWritten
from occ_app.executions import lifecycle
from occ_app.executions.records import Outcome
from occ_app.system.files import new_file
from occ_app.workspaces import snapshots
from occ_app.workspaces.archives import below

_UNDER_WAY = Outcome.failure(
    "WORKER_LOST", "This ran when the backup was made and is not repeated; send it again if you need it."
)

_FILES = ("state.json", "machine.json", "push.json", "config.toml", "tls.pem")


def write(config: Config, target: Path) -> int:
    """Write a .tar.gz of the home to `target`, a new file; returns its bytes.

    The database is copied as of one instant, also during writes. When a workspace is uploaded, replaced or removed
    meanwhile, everything is written again; after three attempts raises Unavailable (BUSY). Files that a run changes
    are copied as they are when they are read. The queue is left out: it is rebuilt.

    Unpacked into an empty home it is the same agent or hub. Executions that waited or ran on an agent at that instant
    are over in the copy, with WORKER_LOST: the original continued them, and a prompt never runs twice. A hub's
    executions are on its machines; those without a machine end when the copy starts.
    """
    schema.opened(config.database, readonly=True)  # a newer one cannot be copied by this version
    with new_file(target) as output, tempfile.TemporaryDirectory(dir=config.run) as folder:
        snapshots.repeat(
            lambda: _write(config, Path(folder) / "occ.db", output),
            output,
            lambda: snapshots.identities((config.home / folder_of(config)).glob("[!.]*")),
            "The workspaces",
        )
    return target.stat().st_size


def _write(config: Config, snapshot: Path, output: IO[bytes]) -> None:
    snapshot.unlink(missing_ok=True)
    _snapshot(config, snapshot)
    with tarfile.open(fileobj=output, mode="w:gz", compresslevel=3) as archive:
        archive.add(snapshot, "occ.db")
        for name in (*_FILES, folder_of(config)):
            for path in (config.home / name, *below(config.home / name)):
                _add(archive, path, path.relative_to(config.home))


def folder_of(config: Config) -> str:
    """Return the folder of the uploads: workspaces on an agent, zips on a hub."""
    return "zips" if config.program.kind == "hub" else "workspaces"


def restore(config: Config, source: Path) -> None:
    """Create a home from a backup.

    Raises AlreadyRunning or NotWritten, and SchemaTooNew; the home is then as it was.
    """
    if config.database.exists():
        raise NotWritten(f"There is {config.program.name.lower()} in {config.home} already; move that folder away.")
    config.home.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=config.home.parent, prefix=".restoring-") as folder:
        unpacked = Path(folder)
        try:
            with tarfile.open(source) as archive:
                archive.extractall(unpacked, filter="data")
        except (tarfile.TarError, OSError, EOFError) as error:
            raise NotWritten(f"{source} cannot be unpacked ({error}); it is no backup, or the disk is full.") from None
        if not (unpacked / "occ.db").is_file() or not (unpacked / folder_of(config)).is_dir():
            raise NotWritten(f"{source} is no backup of {config.program.name.lower()}.")
        schema.opened(unpacked / "occ.db", readonly=True).close()
        config.make_folders()
        (config.home / folder_of(config)).rmdir()
        for name in (*_FILES, folder_of(config), "occ.db"):  # the database last: with it the home is one
            if (unpacked / name).exists():
                (unpacked / name).replace(config.home / name)


def _snapshot(config: Config, copy: Path) -> None:
    uri = f"{config.database.absolute().as_uri()}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True)) as source, closing(sqlite3.connect(copy)) as sink:
        source.backup(sink)
    if config.program.kind == "hub":
        return
    snapshot = Database(copy)
    lifecycle.abandon_all(snapshot, _UNDER_WAY)
    snapshot.close()


def _add(archive: tarfile.TarFile, path: Path, name: Path) -> None:
    """Add a file, folder or link as it is now.

    A path that disappears is left out; a file that grows or shrinks is cut or filled up. Temporary files of an upload
    or a delete in progress are left out.
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
    """A file that never ends: past its end it reads as zeros.

    A file that shrinks then damages no archive.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def read(self, size: int) -> bytes:
        return self._file.read(size).ljust(size, b"\0")
