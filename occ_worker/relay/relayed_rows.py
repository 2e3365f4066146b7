"""The rows of one relayed execution: its events, its state and its end."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence

from occ_app.client.event_checks import RawEvent
from occ_app.executions import lifecycle, parking
from occ_app.executions import queries as executions
from occ_app.executions.events import NewEvent
from occ_app.executions.records import Execution, Outcome
from occ_app.hub import approval_rows, inputs
from occ_app.streams import tail
from occ_app.system import timestamps
from occ_worker.recorder import Recorder
from occ_worker.relay import outcomes, reported_approvals
from occ_worker.relay.context import RelayContext
from occ_worker.relay.intake import Intake
from occ_worker.relay.patience import Patience


def _nothing() -> None: ...


class RelayedRows:
    """The rows of one execution.

    Nothing is stored once it is `over`. `parked` is its state on its agent.
    """

    def __init__(self, context: RelayContext, execution: Execution, patience: Patience) -> None:
        self._context = context
        self._execution = execution
        self._patience = patience
        self._recorder = Recorder(context.db, execution, context.config.max_output_bytes, self.ring)
        self._intake = Intake(context.db, execution, self._recorder, self._append)
        self._lock = threading.Lock()
        self._lag_seconds = 0.0
        self.over = False
        self.parked = execution.state == "parked"

    @property
    def seq(self) -> int:
        """Return the number of the newest stored event."""
        return self._recorder.seq

    @property
    def overflow(self) -> tuple[str, str] | None:
        """Return the code and message of an exceeded output limit; None within it."""
        return self._recorder.overflow

    def take_lag(self) -> float:
        """Return the longest time from an event to its row since the last call.

        In seconds, by the clocks of both machines.
        """
        lag, self._lag_seconds = self._lag_seconds, 0.0
        return lag

    def store(self, batch: Sequence[RawEvent]) -> Outcome | None:
        """Store the new events of a batch.

        Returns the execution's outcome when the batch has its final event.
        """
        final = self._intake.store(batch)
        self._intake.count_broken()
        if final is None:
            return None
        row = executions.find(self._context.db, self._execution.execution_id)
        return outcomes.of_final(final, row or self._execution)

    def _append(self, fresh: list[NewEvent]) -> None:
        if not fresh:
            return
        cut = reported_approvals.note(self._context, self._execution.number, fresh, self._patience)
        with self._lock:
            if self.over:
                return
            # First, so that a reader of the events finds the states that they report.
            self._note_parked(fresh)
            inputs.note_events(self._context.db, self._execution.number, fresh)
            self._recorder.append(fresh)
        self._patience.begun()
        sent_at = json.loads(fresh[0][1]).get("timestamp")
        if isinstance(sent_at, int):
            self._lag_seconds = max(self._lag_seconds, (timestamps.milliseconds() - sent_at) / 1000)
        reported_approvals.complete(self._context, cut)

    def _note_parked(self, fresh: list[NewEvent]) -> None:
        """Store the state of the execution on its agent: parked, or running again.

        Time spent parked does not count toward the execution's limit.
        """
        for name, text in fresh:
            if name in ("parked", "resumed"):
                self.parked = name == "parked"
                self._patience.hold(asked=self.parked)
                expires = json.loads(text).get("expiresAt")
                parking.relay(
                    self._context.db,
                    self._execution.number,
                    parked=self.parked,
                    expires=None if expires is None else approval_rows.moment(expires),
                )

    def finish(self, outcome: Outcome, prepare: Callable[[], None] = _nothing) -> bool:
        """Call `prepare`, and then store the end.

        Returns False, without calling `prepare`, when the execution is over already.
        """
        with self._lock:
            if self.over:
                return False
            prepare()
            number = self._execution.number
            seq = lifecycle.finish(self._context.db, number, outcome, after=self._recorder.seq, relayed=True)
            self.over = True
        self.ring(outcome.news(seq))
        return True

    def count_broken(self) -> None:
        """Count events that broke their schema; called by the thread that stores events."""
        self._intake.count_broken()

    def ring(self, news: bytes) -> None:
        """Wake the readers of the execution."""
        self._context.readers.ring(tail.execution_key(self._execution.number), news)
