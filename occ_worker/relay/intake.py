"""The events of an agent on their way into a hub's rows: checked, without those that are stored, with their gaps."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence

from occ_app.client.event_checks import MAX_SEQ, RawEvent, checked, replacement
from occ_app.database.database import Database
from occ_app.errors import OCCError
from occ_app.executions.events import NewEvent
from occ_app.executions.records import Execution
from occ_app.home import notes
from occ_worker.recorder import Recorder

log = logging.getLogger("occ.relay")


class Intake:
    """The reading part of one relay. `append` stores new events after those of `recorder`, or none."""

    def __init__(
        self, db: Database, execution: Execution, recorder: Recorder, append: Callable[[list[NewEvent]], None]
    ) -> None:
        self._db = db
        self._execution = execution
        self._recorder = recorder
        self._append = append
        self._broken = self._counted = 0  # events that broke their schema

    def store(self, batch: Sequence[RawEvent]) -> RawEvent | None:
        """Store the new events of a batch. Returns its final event, which is not stored; None without one."""
        fresh = list[NewEvent]()
        for event in batch:
            if event.final:
                self._append(fresh)
                return self._checked(event)
            missing = event.seq - self._recorder.seq - len(fresh) - 1
            if missing < 0 or event.seq > MAX_SEQ:
                continue  # stored already, or a number that no agent comes to
            if missing > 0 or event.name == "gap":
                # The agent has forgotten these; a reader of the hub's rows gets a gap in the same way.
                self._append(fresh)
                fresh, self._recorder.seq = [], event.seq - (event.name != "gap")
            if event.name != "gap":
                sound = self._checked(event)
                fresh.append((sound.name, sound.data))
        self._append(fresh)
        return None

    def count_broken(self) -> None:
        """Add the events that broke their schema to the count that /health shows; a lost count costs no execution."""
        if self._broken > self._counted:
            with contextlib.suppress(OCCError):
                notes.count(self._db, notes.REFUSED, self._broken - self._counted)
                self._counted = self._broken

    def _checked(self, event: RawEvent) -> RawEvent:
        """Return the event as its schema has it, or what takes its place; counts and logs those that break it."""
        sound = checked(event)
        if sound is not None:
            return sound
        if not self._broken:
            log.warning(
                "execution %s: agent %s sent an event %s that breaks its schema; a gap takes its place",
                *(self._execution.execution_id, self._execution.agent_id, event.name[:64]),
            )
        self._broken += 1
        return replacement(event)
