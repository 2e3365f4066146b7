"""The time limits of one CLI process.

They count running time, not the time that a person takes to answer.
"""

from __future__ import annotations

import time

from occ_app.executions.records import Execution


class Limits:
    """The limits of an execution that took `seconds` before this process.

    All times are on the monotonic clock.
    """

    def __init__(self, execution: Execution, seconds: float) -> None:
        self._execution = execution
        self._left = execution.timeout_seconds - seconds
        self._heard = self._ticked = time.monotonic()
        self._deadline = self._ticked + self._left

    @property
    def next(self) -> float:
        """The time of the next limit."""
        return min(self._deadline, self._heard + self._execution.idle_timeout_seconds)

    @property
    def running_seconds(self) -> float:
        """The running time of this process."""
        return max(0.0, self._left - (self._deadline - time.monotonic()))

    def note_output(self) -> None:
        self._heard = time.monotonic()

    def tick(self, now: float, *, counts: bool) -> None:
        """Note the time.

        The time since the last tick is running time only if it `counts`.
        """
        if not counts:
            self._deadline += now - self._ticked
            self._heard = now
        self._ticked = now

    def exceeded(self, now: float) -> tuple[str, str] | None:
        """Return the code and the message of the exceeded limit; None within the limits."""
        if now >= self._deadline:
            seconds = self._execution.timeout_seconds
            return "EXECUTION_TIMEOUT", f"The execution was ended after its limit of {seconds:g} s."
        if now >= self._heard + self._execution.idle_timeout_seconds:
            seconds = self._execution.idle_timeout_seconds
            return "EXECUTION_IDLE", f"Claude Code printed nothing for {seconds:g} s and was ended."
        return None
