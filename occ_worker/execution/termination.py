"""The termination of a CLI: an interrupt, SIGTERM after 2 s, SIGKILL after 4 s."""

from __future__ import annotations

import contextlib
import os
import signal
import time

from occ_worker.execution import command as claude
from occ_worker.execution.child import Child
from occ_worker.execution.child_input import ChildInput
from occ_worker.execution.deferral import Deferral

INTERRUPT_SECONDS = 2.0  # from the interrupt to SIGTERM
TERMINATE_SECONDS = 4.0  # from the interrupt to SIGKILL


class Termination:
    """The termination of one CLI.

    `reason` is the code and the message of the first reason; None before.
    """

    def __init__(self, child: Child, child_input: ChildInput, deferral: Deferral) -> None:
        self._child = child
        self._input = child_input
        self._deferral = deferral
        self.reason: tuple[str, str] | None = None
        self._begun = 0.0
        self._signalled = 0

    @property
    def code(self) -> str | None:
        return None if self.reason is None else self.reason[0]

    @property
    def next_step(self) -> float:
        """The time of the next signal on the monotonic clock, once it has begun."""
        return self._begun + (INTERRUPT_SECONDS, TERMINATE_SECONDS, 60)[self._signalled]

    def begin(self, code: str, message: str) -> None:
        """Interrupt the CLI; the first reason counts."""
        if self.reason is not None:
            return
        self.reason, self._begun = (code, message), time.monotonic()
        if code == "DAEMON_STOPPED" and self._deferral.undelivered:
            self._child.signal_group(signal.SIGKILL)  # an interrupt would be written down as the answer
        elif self._input.is_written:
            with contextlib.suppress(OSError, ValueError):
                os.write(self._child.stdin.fileno(), claude.INTERRUPT)
        else:
            # It has not even read its prompt: the interrupt cannot reach it through the same pipe.
            self._child.signal_group(signal.SIGINT)

    def press(self, now: float) -> None:
        """Send the signal that is due at `now` on the monotonic clock."""
        elapsed = now - self._begun
        if self._signalled == 0 and elapsed >= INTERRUPT_SECONDS:
            self._signalled = 1
            self._child.signal_group(signal.SIGTERM)
        elif self._signalled == 1 and elapsed >= TERMINATE_SECONDS:
            self._signalled = 2
            self._child.signal_group(signal.SIGKILL)
