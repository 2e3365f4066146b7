"""The schema of occ.db and its migration."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from occ_app import errors
from occ_app.database.database import connect
from occ_app.system.packaged import packaged

SCHEMA_VERSION = 7


def ensure_schema(
    path: Path, lock: Path, meanwhile: Callable[[], None] = lambda: None, settle: Callable[[], None] = lambda: None
) -> None:
    """Bring occ.db to the schema of this version; done once, under a lock, by whoever starts first.

    sqlite-utils' migrations are not safe to apply from several processes at once, hence the lock. `meanwhile` is done
    first, to start what loads for as long as this takes; `settle` last, before any other process goes on. Raises
    SchemaTooNew when a newer OCC wrote the file.
    """
    with lock.open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        meanwhile()
        connection = connect(path)
        try:
            version: int = connection.execute("PRAGMA user_version").fetchone()[0]
            if version > SCHEMA_VERSION:
                raise errors.SchemaTooNew(
                    f"{path} has schema {version} and this OCC knows {SCHEMA_VERSION}; "
                    "install the newer OCC that wrote it."
                )
        finally:
            connection.close()
        if version < SCHEMA_VERSION:
            _migrate_apart(path)
        settle()


def _migrate_apart(path: Path) -> None:
    """Migrate in a process of its own: what it loads for that would stay in a daemon's memory for months.

    Raises StartFailed when that fails; the reason is on stderr.
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
