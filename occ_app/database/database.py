"""SQLite as OCC uses it.

One file, short transactions, pooled connections, and a schema that only the daemon changes.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from occ_app import errors

BUSY_SECONDS = 5.0
_POOLED = 8
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.0002, 0.01


class Connection(sqlite3.Connection):
    """A connection that knows its open statements.

    One that was not read to its end holds a snapshot of the database, and no checkpoint gets past that.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._cursors = weakref.WeakSet[sqlite3.Cursor]()

    def execute(self, *arguments: Any) -> sqlite3.Cursor:
        cursor = super().execute(*arguments)
        self._cursors.add(cursor)
        return cursor

    def __del__(self) -> None:
        """Close the connection with the pool that held it.

        From Python 3.13 on, the finalizer of SQLite's connection would warn.
        """
        with contextlib.suppress(sqlite3.Error):  # it could not be opened
            self.close()

    def close_statements(self) -> None:
        """End every statement that somebody left unread."""
        for cursor in list(self._cursors):
            cursor.close()
        self._cursors.clear()


class Database:
    """A pool of connections to one SQLite file; safe to share between threads.

    A connection is lent for one read or one transaction, so that a thousand waiting streams hold none. After a fork
    the child starts with an empty pool: a connection must not cross a fork.
    """

    def __init__(self, path: Path, *, readonly: bool = False) -> None:
        self.path = path
        self._folder, self._log = str(path.parent), f"{path}-wal"
        self._readonly = readonly
        self._idle: dict[bool, list[Connection]] = {False: [], True: []}  # for reading, and for writing
        self._lock = threading.Lock()
        self._turn = threading.Lock()  # to write; threads that wait for a lock are woken, those that ask SQLite are not
        self._syncing = threading.Lock()
        self._syncs_begun = self._syncs_done = 0
        self._pid = os.getpid()

    @contextlib.contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """Lend a connection for SELECTs.

        Raises Unavailable (BUSY) or NoSpace as SQLite reports them.
        """
        connection = self._take(writing=False)
        try:
            yield connection
        except sqlite3.DatabaseError as error:
            raise translated(error) from error
        finally:
            self._give_back(connection, writing=False)

    @contextlib.contextmanager
    def write(self, *, durable: bool = True) -> Iterator[sqlite3.Connection]:
        """Open one transaction; commit at the end of the block, roll back on an error.

        With `durable` the commit waits for the disk. Without it a power cut may lose the newest commits, never their
        order; measured, a cut lost 231 of 1,830 commits that did not wait, and none that did. The wait is outside the
        transaction, so others can write meanwhile; with SQLite's synchronous=FULL it would block them.
        """
        deadline = time.monotonic() + BUSY_SECONDS
        if not self._turn.acquire(timeout=BUSY_SECONDS):
            raise translated(sqlite3.OperationalError("database is locked"))
        try:
            connection = self._take(writing=True)  # in turn: one is enough, and each is slow to open
            try:
                begin(lambda: connection.execute("BEGIN IMMEDIATE"), deadline)
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            finally:
                self._give_back(connection, writing=True)
        except sqlite3.DatabaseError as error:
            raise translated(error) from error
        finally:
            self._turn.release()
        if durable:
            self.sync()

    def sync(self) -> None:
        """Wait until every commit so far is on the disk. Raises as `write`.

        To work meanwhile: commit without `durable`, do the work, then call this. All who come
        while a sync is under way share the next.
        """
        wanted = self._syncs_begun + 1  # one that begins from now on covers every commit so far
        with self._syncing:
            if self._syncs_done >= wanted:
                return
            self._syncs_begun += 1
            try:
                descriptor = os.open(self._log, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    os.fdatasync(descriptor)  # what SQLite itself does at the end of a commit that is FULL
                finally:
                    os.close(descriptor)
            except OSError as error:
                raise errors.unwritable(error) from error
            self._syncs_done = self._syncs_begun

    def prepare(self) -> None:
        """Open a connection of each kind in advance.

        Otherwise the first user waits some milliseconds.
        """
        with self.read(), self.write(durable=False):
            pass

    def await_writers(self) -> None:
        """Wait for the write transactions that have begun. Raises as `write`."""
        with self.write(durable=False):  # one at a time does
            pass

    def make_room_for_log(self, size: int) -> None:
        """Make the write-ahead log `size` bytes long from the start.

        It is filled with zeros, which SQLite skips. A sync of a file that has grown also waits for the file system's
        journal, and takes twice as long.
        """
        with self.write(durable=False), Path(self._log).open("ab", buffering=0) as log:
            # Nobody else adds to it during a transaction.
            log.write(bytes(max(0, size - log.tell())))
        self.sync()

    def disk_is_full(self) -> bool:
        """Return whether the disk has no byte left.

        The log has room for a while, but later writes do not.
        """
        disk = os.statvfs(self._folder)
        return disk.f_blocks > 0 and disk.f_bavail == 0  # a tmpfs without a limit has none

    def used_bytes(self) -> int:
        """Return how many bytes of the file hold data.

        The rest is reused before the file grows.
        """
        with self.read() as connection:
            pages, free, size = (
                connection.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("page_count", "freelist_count", "page_size")
            )
        return int((pages - free) * size)

    def close(self) -> None:
        """Close the idle connections; lent ones close when they are returned."""
        with self._lock:
            idle, self._idle = self._idle, {False: [], True: []}
        for connection in itertools.chain(*idle.values()):
            connection.close()

    def _take(self, *, writing: bool) -> Connection:
        with self._lock:
            if self._pid != os.getpid():
                self._idle, self._pid = {False: [], True: []}, os.getpid()
            if self._idle[writing]:
                return self._idle[writing].pop()
        try:
            connection = connect(self.path, readonly=self._readonly)
            if writing:
                connection.execute("PRAGMA busy_timeout = 0")  # begin() waits better
            return connection
        except sqlite3.DatabaseError as error:
            raise translated(error) from error

    def _give_back(self, connection: Connection, *, writing: bool) -> None:
        connection.close_statements()
        with self._lock:
            if len(self._idle[writing]) < _POOLED and self._pid == os.getpid():
                self._idle[writing].append(connection)
                return
        connection.close()


def begin(statement: Callable[[], object], deadline: float | None = None) -> None:
    """Execute the BEGIN of a write transaction, waiting for other writers.

    Waits up to BUSY_SECONDS, or until `deadline`. SQLite's own busy handler sleeps longer and longer, 1 ms at first
    and 100 ms at last, and a later writer overtakes; but a transaction of OCC takes a tenth of a millisecond. There is
    nothing to wait on, so this retries often.
    """
    deadline, pause = deadline or time.monotonic() + BUSY_SECONDS, _SHORTEST_PAUSE
    while True:
        try:
            statement()
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= deadline:
                raise
        time.sleep(pause)
        pause = min(1.2 * pause, _LONGEST_PAUSE)


def connect(path: Path, *, readonly: bool = False) -> Connection:
    """Open one connection with OCC's settings.

    A missing file is created unless `readonly`.
    """
    mode = "ro" if readonly else "rwc"
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        timeout=BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
        factory=Connection,
    )
    connection.row_factory = sqlite3.Row
    connection.execute("PRAGMA foreign_keys = ON")
    if not readonly:
        connection.execute("PRAGMA journal_mode = WAL")
        # Checkpoints are the control process's: SQLite before 3.51.3 can corrupt the file when one meets a commit
        # of another connection at the wrong instant, so they are rare and come from one place.
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        connection.execute("PRAGMA synchronous = NORMAL")  # see Database.write
    connection.execute("PRAGMA cache_size = -512")
    return connection


def translated(error: sqlite3.Error) -> errors.OCCError:
    """Return the error that callers get for a SQLite failure.

    A programming error is returned unchanged.
    """
    if isinstance(error, (sqlite3.IntegrityError, sqlite3.ProgrammingError)):
        raise error
    text = str(error)
    if "full" in text or "disk I/O" in text:
        return errors.NoSpace()
    if "locked" in text or "busy" in text:
        return errors.Unavailable("BUSY", "OCC's database there is held by another program; try again in a moment.")
    if not text.startswith(("no such", "near")):  # those are mistakes of OCC's own; the rest is the disk's
        return errors.Unavailable("BUSY", f"OCC's database there answers: {text}; see to its disk, then try again.")
    return errors.OCCError(f"The database answered: {text}.")
