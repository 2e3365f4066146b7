"""The intake of an agent's events into a hub's rows.

Events are checked, those already stored are skipped, and gaps are kept.
"""

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
    """The intake of one relay.

    `append` stores new events after those of `recorder`; it may be called with none.
    """

    def __init__(
        self, db: Database, execution: Execution, recorder: Recorder, append: Callable[[list[NewEvent]], None]
    ) -> None:
        self._db = db
        self._execution = execution
        self._recorder = recorder
        self._append = append
        self._broken = self._counted = 0  # events that broke their schema

    def store(self, batch: Sequence[RawEvent]) -> RawEvent | None:
        """Store the new events of a batch.

        Returns its final event, which is not stored; None without one.
        """
        fresh = list[NewEvent]()
        for event in batch:
            if event.final:
                self._append(fresh)
                return self._checked(event)
            missing = event.seq - self._recorder.seq - len(fresh) - 1
            if missing < 0 or event.seq > MAX_SEQ:
                continue  # stored already, or a number that no agent reaches
            if missing > 0 or event.name == "gap":
                # Retention on the agent removed these events; readers of the hub's rows get a gap, too.
                self._append(fresh)
                fresh, self._recorder.seq = [], event.seq - (event.name != "gap")
            if event.name != "gap":
                sound = self._checked(event)
                fresh.append((sound.name, sound.data))
        self._append(fresh)
        return None

    def count_broken(self) -> None:
        """Add the events that broke their schema to the count that /health shows.

        An error while counting does not affect the execution.
        """
        if self._broken > self._counted:
            with contextlib.suppress(OCCError):
                notes.count(self._db, notes.REFUSED, self._broken - self._counted)
                self._counted = self._broken

    def _checked(self, event: RawEvent) -> RawEvent:
        """Return an event as its schema loads it, or the event that replaces it.

        Events that break their schema are counted, and the first is logged.
        """
        sound = checked(event)
        if sound is not None:
            return sound
        if not self._broken:
            log.warning(
                "execution %s: agent %s sent an event %s that breaks its schema; a gap replaces it",
                *(self._execution.execution_id, self._execution.agent_id, event.name[:64]),
            )
        self._broken += 1
        return replacement(event)
