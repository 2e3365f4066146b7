"""A thread that waits for many sockets at once.

It calls their handlers, which must not block.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import os
import select
import time
from collections import deque
from collections.abc import Callable

log = logging.getLogger("occ.loop")


class Loop:
    """`run` is the thread's work; an exception of a handler is logged.

    All but `soon` and `stop` is to be called from that thread, or before it runs.
    """

    def __init__(self) -> None:
        self._poll = select.epoll()
        self._alarm = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._happened: dict[int, Callable[[int], None]] = {}
        self._soon = deque[Callable[[], None]]()
        self._later = list[tuple[float, int, Callable[[], None]]]()
        self._count = itertools.count()
        self._stopped = False
        self.watch(self._alarm, select.EPOLLIN, lambda _: self._alarm_heard())

    def watch(self, descriptor: int, mask: int, happened: Callable[[int], None]) -> None:
        """Call `happened` when epoll reports `mask`, a hang-up or an error.

        Replaces an earlier watch. `happened` may be called without an event: a descriptor may be closed and its number
        reused.
        """
        watched = descriptor in self._happened
        self._happened[descriptor] = happened
        (self._poll.modify if watched else self._poll.register)(descriptor, mask)

    def forget(self, descriptor: int) -> None:
        """Stop watching a descriptor, before it is closed.

        Harmless when it is not watched.
        """
        if self._happened.pop(descriptor, None) is not None:
            self._poll.unregister(descriptor)

    def at(self, when: float, callback: Callable[[], None]) -> None:
        """Call this once, when the monotonic clock shows `when`."""
        heapq.heappush(self._later, (when, next(self._count), callback))

    def soon(self, callback: Callable[[], None]) -> None:
        """Call this in the loop's thread; from any thread."""
        self._soon.append(callback)
        os.eventfd_write(self._alarm, 1)

    def stop(self) -> None:
        """Have `run` return after the pending calls; from any thread."""
        self._stopped = True
        os.eventfd_write(self._alarm, 1)

    def run(self) -> None:
        """Wait and call, until `stop`."""
        while not self._stopped:
            for descriptor, mask in self._poll.poll(self._until_due()):
                happened = self._happened.get(descriptor)
                if happened is not None:
                    _call(happened, mask)
            self._call_what_is_due()
        self._call_soon()

    def close(self) -> None:
        """Give its descriptors back, once `run` has returned or was never called."""
        self._poll.close()
        os.close(self._alarm)

    def _until_due(self) -> float | None:
        return max(0.0, self._later[0][0] - time.monotonic()) if self._later else None

    def _call_what_is_due(self) -> None:
        self._call_soon()
        while self._later and self._later[0][0] <= time.monotonic():
            _call(heapq.heappop(self._later)[2])

    def _call_soon(self) -> None:
        for _ in range(len(self._soon)):
            _call(self._soon.popleft())

    def _alarm_heard(self) -> None:
        os.eventfd_read(self._alarm)


def _call(callback: Callable[..., None], *arguments: int) -> None:
    try:
        callback(*arguments)
    except Exception:
        log.exception("internal error of a handler")  # the thread must continue for all others
