"""Slow work that may hold only so many threads: what finds no place waits on a list, and not in a thread."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

log = logging.getLogger("occ.control")


class Places:
    """`do` is called with each number, by at most `most` threads at once."""

    def __init__(self, most: int, do: Callable[[int], None]) -> None:
        self._free = most
        self._do = do
        self._waiting: deque[int] = deque()
        self._lock = threading.Lock()

    def take(self, number: int) -> None:
        """Do it in this thread, and then what came meanwhile; or leave it to those with a place and return at once."""
        with self._lock:
            self._waiting.append(number)
            if self._free == 0:
                return
            self._free -= 1
        while (following := self._next()) is not None:
            try:
                self._do(following)
            except Exception:  # what waits behind it is done all the same
                log.exception("job %d met a fault of OCC", following)

    def _next(self) -> int | None:
        """What is to be done next; without any the place is given back."""
        with self._lock:
            if not self._waiting:
                self._free += 1
                return None
            return self._waiting.popleft()
