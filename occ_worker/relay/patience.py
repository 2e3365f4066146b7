"""Limits on how long the hub waits for an agent to end an execution."""

from __future__ import annotations

import time
from collections.abc import Callable

from occ_app.executions.records import Outcome

CANCEL_GRACE_SECONDS = 3.0  # for the agent to end a cancelled execution
TIMEOUT_GRACE_SECONDS = 4.0  # for the agent to enforce a time limit, counted from its first event or from the prompt
WAITING_GRACE_SECONDS = 60.0  # for an agent whose workers are all busy: the execution may wait there


class Patience:
    """The clock of one execution on its agent.

    With `begun` the hub has events from the agent already.
    """

    def __init__(self, *, begun: bool) -> None:
        self._begun_at = time.monotonic() if begun else None
        self._prompt_sent_at: float | None = None
        self._cancel_seen_at: float | None = None
        self._asked_at: float | None = None
        self._held_seconds = 0.0

    def prompt_sent(self) -> None:
        """Record that the agent may have the execution now."""
        self._prompt_sent_at = self._prompt_sent_at or time.monotonic()

    def begun(self) -> None:
        """Record that the agent sent an event of the execution."""
        self._begun_at = self._begun_at or time.monotonic()

    def hold(self, *, asked: bool) -> None:
        """Record whether a person must answer now; that time does not count."""
        now = time.monotonic()
        if self._asked_at is not None:
            self._held_seconds += now - self._asked_at
        self._asked_at = now if asked else None

    def over(
        self, cancel_code: str | None, limit: float, is_full: Callable[[], bool] = lambda: False
    ) -> Outcome | None:
        """Return the outcome with which the hub ends an execution its agent did not end.

        Returns None while the agent has time. `limit` is the execution's time limit in seconds, 0 when the agent
        decides. `is_full` returns whether all workers of the agent are busy with other executions.
        """
        now = time.monotonic()
        if cancel_code is not None:
            self._cancel_seen_at = self._cancel_seen_at or now
            if now - self._cancel_seen_at >= CANCEL_GRACE_SECONDS:
                return Outcome.failure(cancel_code, "The execution was cancelled, and its agent did not confirm it.")
        if self._asked_at is not None:
            return None
        begun, sent = self._begun_at, self._prompt_sent_at
        named, limit = limit, limit and limit + self._held_seconds
        late = begun is not None and now > begun + limit + TIMEOUT_GRACE_SECONDS
        silent = begun is None and sent is not None and now > sent + limit + TIMEOUT_GRACE_SECONDS
        if silent and sent is not None and now <= sent + limit + WAITING_GRACE_SECONDS:
            silent = not is_full()
        if limit and (late or silent):
            return Outcome.failure(
                "EXECUTION_TIMEOUT", f"Its agent did not end it within its time limit of {named:g} s."
            )
        return None
