"""Places for server threads that wait, so that a few threads always stay free.

Each holder, a key, a machine or an address, has a share of the places. The holder of the server's token may have all.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from occ_app import errors

_PATIENCE_SECONDS = 10.0
_FILE_READS, _READ_WAITERS = 48, 16
THREADS = _FILE_READS + _READ_WAITERS  # that read files of workspaces at once; on a hub each may wait for a machine


class Shares:
    """A number of places, of which each holder may have a share."""

    def __init__(self, limit: int, share: int, message: str, waiters: int = 0) -> None:
        """Make `limit` places, at most `share` of them for one holder.

        `waiters` may wait a few seconds for a place, a holder half of them; `message` is for requests without one.
        """
        self._limit, self._share, self._message = limit, share, message
        self._waiters, self._held, self._waiting = waiters, Counter[str | None](), Counter[str | None]()
        self._changed = threading.Condition()

    def place(self, holder: str | None, share: int | None = None) -> ExitStack:
        """Take a place, which is free again when the returned stack closes.

        The holder None may have all places, any other `share` of them, or the usual share. Waits a few seconds where
        that is allowed. Raises Unavailable (BUSY).
        """
        share = self._limit if holder is None else share or self._share
        with self._changed:
            if not self._has_room(holder, share) and not self._wait(holder, share):
                raise errors.Unavailable("BUSY", f"{self._message} Try again in a moment.")
            self._held[holder] += 1
        place = ExitStack()
        place.callback(self._release, holder)
        return place

    def _wait(self, holder: str | None, share: int) -> bool:
        """Wait for a place, holding a thread.

        False when that takes too long, or too many wait already.
        """
        limit = self._waiters if holder is None else self._waiters // 2
        if self._waiting.total() >= self._waiters or self._waiting[holder] >= limit:
            return False
        with _counted(self._waiting, holder):
            return self._changed.wait_for(lambda: self._has_room(holder, share), _PATIENCE_SECONDS)

    def _has_room(self, holder: str | None, share: int) -> bool:
        return self._held.total() < self._limit and self._held[holder] < share

    def _release(self, holder: str | None) -> None:
        with self._changed:
            self._held[holder] -= 1
            self._held += Counter()  # without those that have none
            self._changed.notify_all()


@contextmanager
def _counted(counter: Counter[str | None], holder: str | None) -> Iterator[None]:
    counter[holder] += 1
    try:
        yield
    finally:
        counter[holder] -= 1
        if not counter[holder]:
            del counter[holder]


def file_reads() -> Shares:
    """Return the places for requests that read files of a workspace.

    Archives and changes are among them.
    """
    message = "Too many files are being read already; a key may have half of the places."
    return Shares(_FILE_READS, _FILE_READS // 2, message, _READ_WAITERS)
