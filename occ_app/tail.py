"""Follows executions for every reader in this process: one thread listens for rings and reads each new event once.

A reader has a cursor of its own. What it needs is either among the newest frames of the channel, built once for all
readers, or read from the table; so a slow reader costs nobody anything, and late, live and returning readers are one.
"""

from __future__ import annotations

import itertools
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from occ_app import events
from occ_app.db import Database
from occ_app.doorbell import Doorbell
from occ_app.errors import OCCError

_REREAD_SECONDS = 1.0
_RECENT = 512


class Channel:
    """One followed key: the newest events, and a condition that its readers wait on."""

    def __init__(self, newest: int) -> None:
        self.changed = threading.Condition()
        self.readers = 0
        self.rings = 0
        self.newest = newest
        self.recent: deque[events.Event] = deque(maxlen=_RECENT)


class Tail:
    """The listening thread and its channels; `start` it once in a process, `close` it to let every reader go."""

    def __init__(self, db: Database, folder: Path) -> None:
        self._db = db
        self._folder = folder
        self._channels: dict[str, Channel] = {}
        self._lock = threading.Lock()
        self._bell: Doorbell | None = None
        self.closed = False

    def start(self) -> None:
        self._bell = Doorbell(self._folder)
        threading.Thread(target=self._listen, name="tail", daemon=True).start()

    def close(self) -> None:
        """End all following: readers get what is stored, then see `closed`."""
        self.closed = True
        with self._lock:
            channels = list(self._channels.values())
        for channel in channels:
            with channel.changed:
                channel.changed.notify_all()

    def join(self, key: str, newest: int = 0) -> Channel:
        """Begin to follow `key`, whose newest stored event is `newest` or later; must be paired with `leave`."""
        with self._lock:
            channel = self._channels.get(key)
            if channel is None:
                channel = self._channels[key] = Channel(newest)
            channel.readers += 1
            return channel

    def leave(self, key: str) -> None:
        with self._lock:
            channel = self._channels[key]
            channel.readers -= 1
            if channel.readers == 0:
                del self._channels[key]

    def next_events(self, channel: Channel, number: int, after: int) -> list[events.Event]:
        """The next events of execution `number` above `after`, at once; empty when there are none yet."""
        with channel.changed:
            if channel.recent and channel.recent[0].seq <= after + 1:
                first = after + 1 - channel.recent[0].seq
                return list(itertools.islice(channel.recent, first, None))
        return events.after(self._db, number, after)

    def wait(self, channel: Channel, ready: Callable[[], bool], seconds: float) -> bool:
        """Wait until `ready` holds, asked anew at each ring, at most `seconds`. False when the time ran out."""
        with channel.changed:
            return channel.changed.wait_for(lambda: self.closed or ready(), seconds)

    def _listen(self) -> None:
        assert self._bell is not None  # noqa: S101 - start() made it before this thread
        poller = select.poll()
        poller.register(self._bell, select.POLLIN)
        reread = time.monotonic()
        while not self.closed:
            poller.poll(_REREAD_SECONDS * 1000)
            rung = self._bell.keys()
            # Reading everything followed once a second makes a lost ring cost a second and no event.
            everything = time.monotonic() >= reread
            if everything:
                reread = time.monotonic() + _REREAD_SECONDS
            with self._lock:
                due = [(k, c) for k, c in self._channels.items() if everything or k in rung]
            for key, channel in due:
                self._advance(key, channel)
        self._bell.close()

    def _fresh(self, number: int, newest: int) -> list[events.Event]:
        """What came above `newest`; after a burst only the end of it, since each reader fetches what lies between."""
        fresh = events.after(self._db, number, newest, _RECENT)
        if len(fresh) == _RECENT:
            fresh = events.after(self._db, number, max(newest, events.newest(self._db, number) - _RECENT), 2 * _RECENT)
        return fresh

    def _advance(self, key: str, channel: Channel) -> None:
        fresh: list[events.Event] = []
        if key.startswith("e"):
            try:
                fresh = self._fresh(int(key[1:]), channel.newest)
            except OCCError:
                return  # a locked database is met again at the next ring or re-read
            if not fresh:
                return
        with channel.changed:
            if fresh and fresh[0].seq != channel.newest + 1:
                channel.recent.clear()
            channel.recent.extend(fresh)
            channel.newest = fresh[-1].seq if fresh else channel.newest
            channel.rings += 1
            channel.changed.notify_all()


def execution_key(number: int) -> str:
    return f"e{number}"


def job_key(number: int) -> str:
    return f"w{number}"
