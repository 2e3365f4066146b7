"""The readers of executions: their number and their positions.

A reader may use any transport.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack

from occ_app import errors
from occ_app.database.database import Database
from occ_app.executions import events
from occ_app.executions.records import Execution
from occ_app.streams import tail
from occ_app.streams.tail import Live, Tail

KEEPALIVE_SECONDS = 15.0


class StreamLimit:
    """A limit on open streams, so that they never use the last thread."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._open = Counter[str | None]()
        self._refused: dict[str, float] = {}  # when a key was last refused, on the monotonic clock
        self._lock = threading.Lock()

    def refuse(self, key_id: str) -> None:
        """End the streams that this key has open.

        They end within a second; a WebSocket within 15.
        """
        self._refused[key_id] = time.monotonic()

    def refuses(self, key_id: str | None, since: float) -> bool:
        """Whether this key was refused after `since`, in seconds on the monotonic clock."""
        return key_id is not None and self._refused.get(key_id, float("-inf")) >= since

    def place(self, key_id: str | None = None) -> ExitStack:
        """Take a place until the returned stack closes; `pop_all` hands it over.

        One key may use half of the places, the server's own token all. Raises Unavailable when there is none.
        """
        with self._lock:
            share = self._limit if key_id is None else max(1, self._limit // 2)
            if self._open.total() >= self._limit or self._open[key_id] >= share:
                mine = "" if key_id is None else f", {self._open[key_id]} of them by this key, which may have {share}"
                raise errors.Unavailable(
                    "TOO_MANY_STREAMS",
                    f"{self._open.total()} streams are open{mine}; close one, or raise OCC_MAX_STREAMS (on a hub"
                    " OCC_HUB_MAX_STREAMS).",
                )
            self._open[key_id] += 1
        place = ExitStack()
        place.callback(self._release, key_id)
        return place

    def _release(self, key_id: str | None) -> None:
        with self._lock:
            self._open[key_id] -= 1
            self._open += Counter()  # without keys that have none

    @property
    def open(self) -> int:
        """How many are open."""
        return self._open.total()


class Follower:
    """One reader of one execution, over any transport.

    It gets the events in order from a cursor to the final one. Use it as a context manager; `batches` yields lists of
    events, and an empty list where a keep-alive is due.
    """

    def __init__(
        self,
        db: Database,
        tailing: Tail,
        execution: Execution,
        after: int,
        refused: Callable[[], bool] = lambda: False,
    ) -> None:
        """`refused` tells whether its client may not read any more."""
        self.refused = refused
        self._db = db
        self._tail = tailing
        self._execution = execution
        self._after = after
        self._key = tail.execution_key(execution.number)
        self.gone = False

    def __enter__(self) -> Follower:
        # The final event counts as news, for others who follow and have not heard of the end.
        self._channel = self._tail.subscribe(self._key, self._execution.last_seq - self._execution.over)
        return self

    def __exit__(self, *_: object) -> None:
        self._tail.unsubscribe(self._key)

    def disconnect(self) -> None:
        """End the next wait: the client is gone. Callable from any thread."""
        with self._channel.changed:
            self.gone = True
            self._channel.changed.notify_all()

    @property
    def behind(self) -> bool:
        """Whether events beyond the reader's, or the end, are known to exist."""
        return self._after < self._channel.newest or self._channel.over

    def attach(self, reader: Live) -> None:
        """Have the tail call this reader's `push` at news."""
        self._channel.live.add(reader)

    def detach(self, reader: Live) -> None:
        self._channel.live.discard(reader)

    def stored(self) -> Iterator[list[events.StoredEvent]]:
        """Return the events stored by now."""
        final_seq = self._execution.last_seq if self._execution.over else 0
        while batch := events.sendable(self._db, self._execution.number, self._after, final_seq):
            yield self._with_gap(batch)
            if len(batch) < events.MAX_EVENTS_PER_READ:
                return  # that was all; asking would say so, and costs a look into the table

    def ready(self) -> list[events.StoredEvent]:
        """Return the next events at once; empty when there are none yet."""
        batch = self._tail.next_events(self._channel, self._execution.number, self._after)
        return self._with_gap(batch) if batch else []

    def batches(self) -> Iterator[list[events.StoredEvent]]:
        """Everything to the final event, as it comes."""
        over = self.repeated_final()
        if over is not None:
            yield [over]
            return
        while not self.gone and not self.refused():
            batch = self.ready()
            if batch:
                yield batch
                if batch[-1].final:
                    return
                continue
            if self._tail.closed:
                return
            moved = self._tail.wait(self._channel, lambda: self.gone or self.behind, KEEPALIVE_SECONDS)
            if not moved:
                yield []

    def repeated_final(self) -> events.StoredEvent | None:
        """Return the final event for a reader whose cursor is at or after it.

        It is always sent.
        """
        if self._execution.over and self._after >= self._execution.last_seq:
            return events.final(self._db, self._execution.number)
        return None

    def _with_gap(self, batch: list[events.StoredEvent]) -> list[events.StoredEvent]:
        """Return a batch with a `gap` before it where retention removed events."""
        missing = events.gap(self._after, batch[0])
        self._after = batch[-1].seq
        return batch if missing is None else [missing, *batch]
