"""The tail: one thread that follows executions for every reader in this process.

It receives the rings and reads each new event once. Each reader has a cursor. The events it needs are either among the
newest events of the channel, framed once for all readers, or read from the table; so a slow reader delays nobody, and
late, live and returning readers use the same code.

That thread also serves the connections of live readers: waking a thread for each of them costs more than sending.
Other readers wait for a key in their own threads.
"""

from __future__ import annotations

import itertools
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from occ_app.database.database import Database
from occ_app.errors import OCCError
from occ_app.executions import events
from occ_app.streams.doorbell import Doorbell
from occ_app.system.event_loop import Loop

_REREAD_SECONDS = 1.0
_RECENT = 512
_LAST_WORDS_SECONDS = 2.0  # at a stop, for connections to take the stored events
_LOOK_SECONDS = 0.05  # meanwhile


class Live(Protocol):
    """A connection that the tail's thread serves."""

    def push(self) -> None:
        """Send stored events; called in the tail's thread after a ring, and once a second."""


class Channel:
    """One followed key: the newest events, and who waits for more, in threads or live."""

    def __init__(self, newest: int) -> None:
        self.changed = threading.Condition()
        self.readers = 0
        self.rings = 0
        self.newest = newest
        self.recent: deque[events.StoredEvent] = deque(maxlen=_RECENT)
        self.live: set[Live] = set()
        self.over = False  # the newest event is the final one


class Tail:
    """The listening thread and its channels.

    Call `start` once in a process, and `close` to release every reader.
    """

    def __init__(self, db: Database, folder: Path) -> None:
        self._db = db
        self._folder = folder
        self._channels: dict[str, Channel] = {}
        self._lock = threading.Lock()
        self._loop = Loop()
        self._thread = threading.Thread(target=self._loop.run, name="tail", daemon=True)
        # For those that the tail's thread serves; event_loop.py documents them.
        self.watch, self.forget, self.soon = self._loop.watch, self._loop.forget, self._loop.soon
        self.at = self._loop.at
        self.closed = False

    def start(self) -> None:
        self._rung: dict[str, list[events.StoredEvent]] = {}
        self._bell = Doorbell(self._folder)
        self.watch(self._bell.fileno(), select.EPOLLIN, lambda _: self._hear())
        self._loop.at(time.monotonic() + _REREAD_SECONDS, self._reread)
        self._thread.start()

    def close(self) -> None:
        """End all following: readers get the stored events, then see `closed`."""
        self.closed = True
        self.soon(lambda: self._say_last_words(time.monotonic() + _LAST_WORDS_SECONDS))

    def join_thread(self) -> None:
        """After `close`: wait until the live readers have all stored events."""
        self._thread.join(_LAST_WORDS_SECONDS + 1)

    def subscribe(self, key: str, newest: int = 0) -> Channel:
        """Begin to follow `key`, whose newest stored event is `newest` or later.

        Pair it with `unsubscribe`.
        """
        with self._lock:
            channel = self._channels.get(key)
            if channel is None:
                channel = self._channels[key] = Channel(newest)
            channel.readers += 1
            return channel

    def unsubscribe(self, key: str) -> None:
        with self._lock:
            channel = self._channels[key]
            channel.readers -= 1
            if channel.readers == 0:
                del self._channels[key]

    def next_events(self, channel: Channel, number: int, after: int) -> list[events.StoredEvent]:
        """Return the next events of execution `number` above `after`, at once.

        Empty when there are none yet. The final one is sent for any `after`: a reader may have events that a power cut
        removed from the table.
        """
        with channel.changed:
            if channel.over:
                after = min(after, channel.newest - 1)
            if channel.recent and channel.recent[0].seq <= after + 1:
                first = after + 1 - channel.recent[0].seq
                return list(itertools.islice(channel.recent, first, None))
        return events.sendable(self._db, number, after, channel.newest)

    def wait(self, channel: Channel, ready: Callable[[], bool], seconds: float) -> bool:
        """Wait at most `seconds` until `ready` holds, checked at each ring.

        False when the time ran out.
        """
        with channel.changed:
            return channel.changed.wait_for(lambda: self.closed or ready(), seconds)

    def when_gone(self, connection: socket.socket, gone: Callable[[], None]) -> Callable[[], None]:
        """Have the tail's thread call `gone` once when the peer closes.

        Returns a function that ends the watch; any thread may call it. Raises OSError for a connection that is closed
        here.
        """
        # The owner may close the connection at any time, and its number be reused; this duplicate is ours.
        descriptor = os.dup(connection.fileno())
        self.soon(lambda: self.watch(descriptor, select.EPOLLRDHUP | select.EPOLLONESHOT, lambda _: gone()))

        def end() -> None:
            self.forget(descriptor)
            os.close(descriptor)

        return lambda: self.soon(end)

    # -- the tail's thread

    def _hear(self) -> None:
        rings, heard_all = self._bell.rings()
        for key, news in rings:
            self._rung.setdefault(key, []).extend(events.from_news(news))
        self._advance(not heard_all)

    def _reread(self) -> None:
        """Read everything that is followed, once a second.

        A lost ring then delays an event by a second.
        """
        self._loop.at(time.monotonic() + _REREAD_SECONDS, self._reread)
        if self._channels:
            self._advance(True)

    def _say_last_words(self, deadline: float) -> None:
        """Let every waiting thread see `closed`, and send the stored events."""
        self._advance(True)
        if self._rung or (self._any_live() and time.monotonic() < deadline):
            self._loop.at(time.monotonic() + _LOOK_SECONDS, lambda: self._say_last_words(deadline))
            return
        self._bell.close()
        self._loop.stop()

    def _any_live(self) -> bool:
        return any(channel.live for channel in list(self._channels.values()))

    def _advance(self, everything: bool = False) -> None:
        """Read new rows of the keys that rang, or of all, and wake their waiters."""
        rung, self._rung = self._rung, {}
        with self._lock:
            due = [(key, channel) for key, channel in self._channels.items() if everything or key in rung]
        for key, channel in due:
            fresh = self._fresh(key, channel, rung.get(key, []))
            if len(fresh) >= _RECENT:
                self._rung[key] = []
            if fresh or everything or key.startswith("w"):
                self._tell(channel, fresh)
        if self._rung:
            self.soon(self._advance)  # the rest, after those who wait for the thread

    def _fresh(self, key: str, channel: Channel, news: list[events.StoredEvent]) -> list[events.StoredEvent]:
        if not key.startswith("e"):
            return []
        if news and news[0].seq <= channel.newest + 1 and news[-1].seq - news[0].seq == len(news) - 1:
            return news[channel.newest + 1 - news[0].seq :]  # without a gap to the known events: no need to read
        try:
            return events.sendable(self._db, int(key[1:]), channel.newest, channel.newest, _RECENT)
        except OCCError:
            return []  # a locked database is met again at the next ring or re-read

    def _tell(self, channel: Channel, fresh: list[events.StoredEvent]) -> None:
        with channel.changed:
            if fresh and fresh[0].seq != channel.newest + 1:
                channel.recent.clear()
            channel.recent.extend(fresh)
            if fresh:
                channel.newest, channel.over = fresh[-1].seq, fresh[-1].final
            channel.rings += 1
            channel.changed.notify_all()
        for reader in tuple(channel.live):
            reader.push()


def execution_key(number: int) -> str:
    return f"e{number}"


def job_key(number: int) -> str:
    return f"w{number}"
