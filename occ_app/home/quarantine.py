"""Unreadable files of the home, renamed before a start.

They are never deleted, and their new names are printed.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from occ_app.config.config import Config
from occ_app.errors import StartFailed
from occ_app.home import machine, state

_THOROUGH_BYTES = 64_000_000  # up to this size a full check takes well under a second


def put_unreadable_aside(config: Config) -> list[str]:
    """Rename unreadable files; returns a sentence for each."""
    sentences = []
    for path in (config.pid_file, config.run / "daemon.json", config.run / "parts.json"):
        if path.is_dir():
            sentences.append(_aside(path, "it is a folder; a new one is written"))
    if not _readable(lambda: state.load(config.state)):
        sentences.append(_aside(config.state, "it cannot be read; this agent has a new token"))
    if not _readable(lambda: machine.load(config.machine)):
        sentences.append(_aside(config.machine, "it cannot be read; hubs register this machine as a new one"))
    if not _database_readable(config.database):
        sentences.append(_aside(config.database, "it cannot be read; the executions in it are not known any more"))
    if not _database_readable(config.queue):
        sentences.append(_aside(config.queue, "it cannot be read; the queue is rebuilt from occ.db"))
    return sentences


def _readable(load: Callable[[], object]) -> bool:
    try:
        load()
    except StartFailed:
        return False
    return True


def _database_readable(path: Path) -> bool:
    """Whether SQLite can use it; a missing file is fine, it will be made."""
    if not path.exists():
        return True
    if not path.is_file():
        return False
    try:
        # Read-only: closing a writable connection would move a log that was left behind into the damaged file.
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5)) as connection:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if path.stat().st_size > _THOROUGH_BYTES:
                return _whole(connection, path)
            return bool(connection.execute("PRAGMA quick_check(1)").fetchone()[0] == "ok")
    except sqlite3.OperationalError as error:
        # A database that is merely locked or cannot be opened is not broken; its next user reports the reason.
        return "malformed" not in str(error) and "not a database" not in str(error)
    except sqlite3.DatabaseError:
        return False


def _whole(connection: sqlite3.Connection, path: Path) -> bool:
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    size = connection.execute("PRAGMA page_size").fetchone()[0]
    wal = Path(f"{path}-wal")
    return bool(pages * size <= path.stat().st_size + (wal.stat().st_size if wal.exists() else 0))


def _aside(path: Path, why: str) -> str:
    """Rename a file, and what SQLite keeps beside it, so that both stay together."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for part in (path, Path(f"{path}-wal"), Path(f"{path}-shm")):
        if part.exists():
            # A later one in the same second must not replace an earlier one.
            number = 0
            while (kept := Path(f"{part}.unreadable-{stamp}{f'-{number}' if number else ''}")).exists():
                number += 1
            os.rename(part, kept)
    return f"{path} was put aside as {path.name}.unreadable-{stamp}: {why}."
