"""The schema of occ.db and its migration."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import sqlite3
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from occ_app import errors
from occ_app.config.child_processes import inherited_socket
from occ_app.config.config import Config
from occ_app.database.database import Database, connect, translated
from occ_app.system.packaged import packaged

SCHEMA_VERSION = 42


def ensure_schema(
    path: Path, lock: Path, meanwhile: Callable[[], None] = lambda: None, reconcile: Callable[[], None] = lambda: None
) -> None:
    """Bring occ.db to the schema of this version.

    It is done once, under a lock, by the process that starts first: sqlite-utils' migrations are not safe to apply
    from several processes at once. `meanwhile` is called first, to start work that takes as long as this; `reconcile`
    last, before any other process continues. Raises SchemaTooNew when a newer OCC wrote the file.
    """
    with lock.open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        meanwhile()
        if _known_version(path) < SCHEMA_VERSION:
            _migrate_apart(path)
        reconcile()


def prepare_schema(config: Config) -> None:
    """Check the schema in a process of a daemon.

    Without a supervisor, which migrates, bring it up to date.
    """
    lock = config.home / "lock" / "migrate"
    if inherited_socket() is None:
        ensure_schema(config.database, lock)
    else:
        check_schema(config.database, lock)


def check_schema(path: Path, lock: Path) -> None:
    """Wait until the supervisor has migrated occ.db.

    Raises StartFailed if its schema is not this version's. A process of a daemon never migrates: the other processes
    may still run the code of another version.
    """
    with lock.open("a") as held:
        fcntl.flock(held, fcntl.LOCK_SH)
        version = _known_version(path)
    if version != SCHEMA_VERSION:
        raise errors.StartFailed(
            f"{path} has schema {version} and this process knows {SCHEMA_VERSION}: it was started from other files than"
            " its daemon. Stop and start the daemon."
        )


def opened(path: Path, *, readonly: bool = False) -> Database:
    """Open occ.db for a command. Raises SchemaTooNew when a newer OCC wrote it."""
    _known_version(path, readonly=readonly)
    return Database(path, readonly=readonly)


def opened_to_write(config: Config, *, running: bool) -> Database:
    """Open occ.db for a command that changes it.

    Without a running daemon it is created or migrated first. Raises SchemaTooNew when a newer OCC wrote it, and
    StartFailed when the daemon is of an older one.
    """
    if not running:
        config.make_folders()
        ensure_schema(config.database, config.home / "lock" / "migrate")
    elif _known_version(config.database) < SCHEMA_VERSION:
        command = config.program.command
        raise errors.StartFailed(
            f"The running daemon is of an older version than this command; `{command} stop` and `{command} start`"
            " change to the installed one."
        )
    return Database(config.database)


def _known_version(path: Path, *, readonly: bool = False) -> int:
    """Return the schema of occ.db. Raises SchemaTooNew when this OCC does not know it."""
    try:
        connection = connect(path, readonly=readonly)
        try:
            version: int = connection.execute("PRAGMA user_version").fetchone()[0]
        finally:
            connection.close()
    except sqlite3.DatabaseError as error:
        raise translated(error) from error
    if version > SCHEMA_VERSION:
        raise errors.SchemaTooNew(
            f"{path} was written by a newer OCC: it has schema {version}, and this OCC knows {SCHEMA_VERSION}."
            " Install the newer OCC."
        )
    return version


def _migrate_apart(path: Path) -> None:
    """Migrate in a separate process.

    Modules loaded for it would stay in a daemon's memory. Raises StartFailed when it fails; the reason is on stderr.
    """
    pid = os.fork()
    if pid == 0:
        try:
            _migrate(path)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    if os.waitpid(pid, 0)[1] != 0:
        raise errors.StartFailed(f"{path} cannot be brought to this version; logs/daemon.log says why.")


def _migrate(path: Path) -> None:
    import sqlite_utils

    connection = connect(path)
    _migrations().apply(sqlite_utils.Database(connection))
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    connection.close()


def _migrations() -> Any:
    spec = importlib.util.spec_from_file_location("occ_migrations", packaged("migrations") / "migrations.py")
    if spec is None or spec.loader is None:
        raise errors.StartFailed("The migrations are missing from this installation; install OCC again.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.occ
