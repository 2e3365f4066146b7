"""Slow work that may hold only so many threads: what finds no place waits on a list, and not in a thread."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

log = logging.getLogger("occ.control")


class Places:
    """`do` is called with each number, by at most `limit` threads at once."""

    def __init__(self, limit: int, do: Callable[[int], None]) -> None:
        self._free = limit
        self._do = do
        self._waiting: deque[int] = deque()
        self._lock = threading.Lock()

    def take(self, number: int) -> None:
        """Run it in this thread, then the jobs that arrived meanwhile; or leave it to a running thread and return."""
        with self._lock:
            self._waiting.append(number)
            if self._free == 0:
                return
            self._free -= 1
        while (following := self._next()) is not None:
            try:
                self._do(following)
            except Exception:  # the jobs behind it still run
                log.exception("job %d met a fault of OCC", following)

    def _next(self) -> int | None:
        """Return the next job; without one the slot is released."""
        with self._lock:
            if not self._waiting:
                self._free += 1
                return None
            return self._waiting.popleft()
