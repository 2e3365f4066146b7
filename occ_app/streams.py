"""Events on their way to readers: from the tail to a response, over any transport, however readers come and go."""

from __future__ import annotations

import logging
import select
import threading
from collections.abc import Callable, Iterator

from flask import Response, request

from occ_app import errors, events, tail
from occ_app.db import Database
from occ_app.records import Execution
from occ_app.tail import Tail

log = logging.getLogger("occ.web")

KEEPALIVE_SECONDS = 15.0


class Streams:
    """Counts the streams that are open, so that they never take the last thread from everybody else."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._open = 0
        self._lock = threading.Lock()

    def enter(self) -> None:
        """Take a place. Raises Unavailable when there is none."""
        with self._lock:
            if self._open >= self._most:
                raise errors.Unavailable(
                    "TOO_MANY_STREAMS", f"{self._open} streams are open already; close one or raise OCC_MAX_STREAMS."
                )
            self._open += 1

    def leave(self) -> None:
        with self._lock:
            self._open -= 1


class Departures:
    """Tells at once when a client closes its connection, where a server notices only at its next write."""

    def __init__(self) -> None:
        self._poll = select.epoll()
        self._callbacks: dict[int, Callable[[], None]] = {}
        threading.Thread(target=self._watch, name="departures", daemon=True).start()

    def watch(self, descriptor: int, callback: Callable[[], None]) -> None:
        self._callbacks[descriptor] = callback
        self._poll.register(descriptor, select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR | select.EPOLLONESHOT)

    def forget(self, descriptor: int) -> None:
        if self._callbacks.pop(descriptor, None) is not None:
            try:
                self._poll.unregister(descriptor)
            except (OSError, ValueError):
                log.debug("a stream's connection was closed before it was forgotten")

    def _watch(self) -> None:
        while True:
            for descriptor, _ in self._poll.poll():
                callback = self._callbacks.get(descriptor)
                if callback is not None:
                    callback()


class Follower:
    """One reader of one execution, over any transport: events in order from a cursor to the final one.

    Use it as a context manager; `batches` yields lists of events, and an empty list where a keep-alive is due.
    """

    def __init__(self, db: Database, tailing: Tail, execution: Execution, after: int) -> None:
        self._db = db
        self._tail = tailing
        self._execution = execution
        self._after = after
        self._key = tail.execution_key(execution.number)
        self.gone = False

    def __enter__(self) -> Follower:
        self._channel = self._tail.join(self._key, self._execution.last_seq)
        return self

    def __exit__(self, *_: object) -> None:
        self._tail.leave(self._key)

    def leave(self) -> None:
        """Called from elsewhere when the client is gone: the next wait ends."""
        with self._channel.changed:
            self.gone = True
            self._channel.changed.notify_all()

    def stored(self) -> Iterator[list[events.Event]]:
        """What is there now, then the end."""
        while batch := events.after(self._db, self._execution.number, self._after):
            yield self._told(batch)

    def batches(self) -> Iterator[list[events.Event]]:
        """Everything to the final event, as it comes."""
        over = self._repeated_final()
        if over is not None:
            yield [over]
            return
        while not self.gone:
            batch = self._tail.next_events(self._channel, self._execution.number, self._after)
            if batch:
                yield self._told(batch)
                if batch[-1].final:
                    return
                continue
            if self._tail.closed:
                return
            moved = self._tail.wait(
                self._channel, lambda: self.gone or self._channel.newest > self._after, KEEPALIVE_SECONDS
            )
            if not moved:
                yield []

    def _told(self, batch: list[events.Event]) -> list[events.Event]:
        """A batch as the reader gets it: with a `gap` before it where retention removed what came between."""
        missing = events.gap(self._after, batch[0])
        self._after = batch[-1].seq
        return batch if missing is None else [missing, *batch]

    def _repeated_final(self) -> events.Event | None:
        """The final event for a reader that has it already, or claims to: it is always sent."""
        if self._execution.over and self._after >= self._execution.last_seq:
            return events.final(self._db, self._execution.number)
        return None


def event_stream(follower: Follower, streams: Streams, departures: Departures, *, follow: bool) -> Response:
    """An execution's events as server-sent events. The caller took a place among the streams; this gives it back."""
    connection = request.environ.get("gunicorn.socket")
    descriptor = -1 if connection is None else connection.fileno()
    released = threading.Event()

    def release() -> None:
        if not released.is_set():
            released.set()
            streams.leave()

    def generate() -> Iterator[bytes]:
        with follower:
            if descriptor >= 0:
                departures.watch(descriptor, follower.leave)
            try:
                yield b": follows\n\n"
                for batch in follower.batches() if follow else follower.stored():
                    yield b"".join(event.sse for event in batch) if batch else b": still here\n\n"
            finally:
                departures.forget(descriptor)
                release()

    response = Response(generate(), content_type="text/event-stream; charset=utf-8")
    # A generator that was never begun runs no `finally`; the response's own close always comes.
    response.call_on_close(release)
    response.headers.update({"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
    return response
