"""The recorder of one execution's events.

It stores events from the CLI or from the agent, and counts them against the limit on output.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from occ_app.database.database import Database
from occ_app.errors import OCCError
from occ_app.executions import events as rows
from occ_app.executions.events import NewEvent
from occ_app.executions.records import Execution

log = logging.getLogger("occ.recorder")

RETRY_SECONDS = 0.5  # between attempts to store events
_UNSTORED_BYTES = 32 * 1024 * 1024  # held in memory meanwhile


class Recorder:
    """The events of one execution on their way into the database.

    `ring` is called with the news of each commit. `seq` is the number of the newest event, or of the newest one that is
    known to be missing. `overflow` is set, as a code and a sentence, once nothing more can be taken: the events are
    over `limit_bytes`, or too many could not be stored. Events that an earlier process stored count too.
    """

    def __init__(self, db: Database, execution: Execution, limit_bytes: int, ring: Callable[[bytes], None]) -> None:
        self._db = db
        self._execution = execution
        self._limit_bytes = limit_bytes
        self._ring = ring
        self.seq = execution.last_seq
        self._bytes = 0 if self.seq <= 1 else None  # None: those of an earlier process are not counted yet
        self._unstored: list[NewEvent] = []
        self._retry_at: float | None = None
        self.overflow: tuple[str, str] | None = None

    @property
    def retry_at(self) -> float | None:
        """Return when to call `store` again without new events, on the monotonic clock.

        None: not at all.
        """
        return None if self.overflow else self._retry_at

    def store(self, events: list[NewEvent]) -> None:
        """Store events, and first those that could not be stored earlier.

        Events that cannot be stored are kept.
        """
        if self.overflow is not None:
            return
        waiting = self._unstored + events
        if not waiting:
            return
        try:
            self.append(waiting)
        except OCCError as error:
            self._keep(waiting, error)
            return
        self._unstored, self._retry_at = [], None

    def append(self, events: Sequence[NewEvent]) -> None:
        """Store events as the next ones.

        Raises the errors of `Database.write`; then nothing is stored or counted.
        """
        stored = self._bytes if self._bytes is not None else rows.stored_bytes(self._db, self._execution.number)
        rows.append(self._db, self._execution.number, self.seq + 1, events)
        self._ring(rows.news(self.seq + 1, events) if len(events) <= rows.MAX_EVENTS_PER_RING else b"")
        self.seq += len(events)
        self._bytes = stored + sum(map(rows.size, events))
        if self._bytes > self._limit_bytes:
            self.overflow = ("OUTPUT_LIMIT", f"The output went over the limit of {self._limit_bytes} bytes.")

    def _keep(self, waiting: list[NewEvent], error: OCCError) -> None:
        if not self._unstored:
            log.warning("execution %s: output cannot be stored yet: %s", self._execution.execution_id, error)
        self._unstored = waiting
        self._retry_at = time.monotonic() + RETRY_SECONDS
        if sum(map(rows.size, waiting)) > _UNSTORED_BYTES:
            self.overflow = ("INTERNAL", f"The output could not be stored, so the execution was ended: {error}")
