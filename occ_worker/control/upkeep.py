"""Work shared by an agent's and a hub's control process.

It covers uploads, the search index, retention and checkpoints.
"""

from __future__ import annotations

import contextlib
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from occ_app.config.config import Config
from occ_app.database.database import Database
from occ_app.errors import OCCError
from occ_app.executions import queries as executions
from occ_app.executions import retention, search
from occ_app.home import clock, health, notes
from occ_app.system.kernel import give_back_memory

log = logging.getLogger("occ.control")

_FORGETTING_SECONDS = 5.0
_INDEXING_SECONDS = 1.0
_LOG_BYTES = 4 * 1024 * 1024
_UPLOADS_AT_ONCE = 2


class Upkeep:
    """The upkeep of one database."""

    def __init__(self, config: Config, db: Database) -> None:
        self._config = config
        self._db = db
        self._uploads = ThreadPoolExecutor(_UPLOADS_AT_ONCE, "upload")  # keeps the queue's free for heartbeats

    def unpack_upload(self, number: int) -> None:
        """Unpack an upload as soon as an upload thread is free; return at once."""
        self._uploads.submit(self._unpack_or_log, number)

    def _unpack_or_log(self, number: int) -> None:
        try:
            self._unpack(number)
        except Exception:  # the executor would swallow it
            log.exception("internal error while unpacking upload %d", number)

    def _unpack(self, number: int) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Start no further uploads; the next process reports waiting ones as abandoned."""
        self._uploads.shutdown(wait=False, cancel_futures=True)

    def make_room_for_log(self) -> None:
        """Reserve disk space for the write-ahead log.

        Called at the start and after each checkpoint.
        """
        with contextlib.suppress(OCCError, OSError):  # such as a full disk; writes are then a little slower
            self._db.make_room_for_log(_LOG_BYTES)

    def unindexed(self) -> bool:
        """Return whether a finished execution is not indexed for search yet."""
        with contextlib.suppress(OCCError):  # a locked database; the next call retries
            return search.waiting(self._db)
        return False

    def index(self) -> None:
        """Index finished executions for at most a second; the next call continues."""
        indexed = search.index_some(self._db, _INDEXING_SECONDS)
        if indexed.unreadable:
            log.warning("%d stored events cannot be read and are not searched", indexed.unreadable)
            notes.count(self._db, notes.UNREADABLE, indexed.unreadable)
        if indexed.executions:
            give_back_memory()  # indexing a long answer takes many times its size

    def forget(self) -> None:
        """Delete output beyond the limits of retention, for a few seconds at most.

        While the clock is not trusted, nothing is deleted because of its age.
        """
        wrong = clock.beat(self._db, clock.Reading.now())
        if wrong:
            log.warning("%s", wrong)
        days = None if wrong else self._config.retention_days
        done = retention.enforce(self._db, days, self._config.retention_bytes, _FORGETTING_SECONDS)
        if not wrong:
            self.forget_aged()
        if done.executions:
            log.info("deleted the output of %d executions (%d events)", done.executions, done.events)

    def forget_aged(self) -> None:
        """Delete other rows by their age; called while the clock is trusted."""

    def log_is_long(self) -> bool:
        """Return whether the write-ahead log is long enough for a checkpoint."""
        with contextlib.suppress(FileNotFoundError):
            return Path(f"{self._config.database}-wal").stat().st_size > _LOG_BYTES
        return False

    def checkpoint(self) -> None:
        """Move the write-ahead log into the database.

        SQLite's own trigger is off (see db.py).
        """
        busy, _ = executions.counts(self._db)
        with self._db.read() as connection:
            _, written, moved = connection.execute(
                f"PRAGMA wal_checkpoint({'PASSIVE' if busy else 'TRUNCATE'})"
            ).fetchone()
            pending = max(0, written - moved) * connection.execute("PRAGMA page_size").fetchone()[0]
        health.note_pending_log(self._db, pending)
        if not busy:
            self.make_room_for_log()
