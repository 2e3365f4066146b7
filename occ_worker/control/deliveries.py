"""The schedule of deliveries: a few at once, one for each receiver.

No receiver has to wait for another that hangs.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from occ_app.database.database import Database
from occ_app.errors import NotFound, OCCError, Unreachable
from occ_app.hub import channels, deliveries
from occ_app.hub.channels import Channel
from occ_app.hub.deliveries import Claimed
from occ_app.system.timestamps import iso
from occ_worker.control.delivery import Patience, send
from occ_worker.notify.sending import Sent

log = logging.getLogger("occ.webhooks")

MAX_DELIVERIES_AT_ONCE = 2
_STATUS_GONE = 410  # the receiver wants no further deliveries
_LOST_SECONDS = 60.0


@dataclass
class _Place:
    """A delivery whose job is queued or has begun."""

    number: int
    put_at: float  # on the monotonic clock
    begun: bool = False


class Deliveries:
    """The deliveries of one process.

    At most MAX_DELIVERIES_AT_ONCE run, each in a thread of the control queue. A receiver has one at a time. Of the
    receivers whose last attempt failed, only one is called at once. The other place is for receivers that answer, so a
    receiver that hangs does not delay them.
    """

    def __init__(self, db: Database, patience: Patience, notify: Callable[[Claimed, Channel], Sent]) -> None:
        self._db = db
        self._patience = patience
        self._notify = notify
        self._lock = threading.Lock()
        self._places: dict[str, _Place] = {}
        self._failing: set[str] = set()
        self._called: dict[str, float] = {}

    def due(self) -> bool:
        """Return whether anything is to be delivered now."""
        with contextlib.suppress(OCCError):  # a locked database; the next call retries
            return bool(deliveries.due(self._db, _in(0), _in(self._patience.longest)))
        return False

    def put_due(self, put: Callable[[int], None]) -> None:
        """Enqueue a job for each due delivery that gets a place.

        The receiver that was called longest ago comes first.
        """
        waiting = dict(deliveries.due(self._db, _in(0), _in(self._patience.longest)))
        with self._lock:
            self._give_up_lost()
            chosen = {}
            for webhook_id in sorted(waiting, key=lambda name: self._called.get(name, 0.0)):
                if self._has_place(webhook_id):
                    chosen[webhook_id] = waiting[webhook_id]
                    self._places[webhook_id] = _Place(waiting[webhook_id], time.monotonic())
        for webhook_id, number in chosen.items():
            try:
                put(number)
            except OCCError:
                self._leave(webhook_id)
                raise

    def deliver(self, number: int, put: Callable[[int], None]) -> None:
        """Make a delivery that has a place, then enqueue the next due one.

        A delivery without a place comes from an old job, and is ignored.
        """
        webhook_id = self._begin(number)
        if webhook_id is None:
            return
        try:
            self._note(webhook_id, self._attempt(number))
        except OCCError as error:
            log.error("delivery number %d is postponed: %s", number, error)
            return
        finally:
            self._leave(webhook_id)
        self.put_due(put)

    def _attempt(self, number: int) -> bool | None:
        """Attempt a delivery, record the result, and return whether it succeeded.

        Returns None when the receiver was not called.
        """
        patience, latest = self._patience, _in(self._patience.longest)
        claimed = deliveries.claim(self._db, number, _in(0), _in(patience.lease), latest, _in(patience.repeat))
        if claimed is None:
            return None
        sent = self._send(claimed)
        if sent.problem is None:
            deliveries.delivered(self._db, claimed, sent.status, _in(patience.repeat))
            return True
        pause = None if sent.final else patience.pause(claimed.attempts)
        deliveries.failed(self._db, claimed, sent.status, sent.problem, None if pause is None else _in(pause))
        log.info("%s to %s: %s", claimed.delivery_id, claimed.receiver_id, sent.problem)
        if sent.gone:
            with contextlib.suppress(NotFound):
                channels.remove(self._db, claimed.receiver_id)
        return False

    def _send(self, claimed: Claimed) -> Sent:
        """Send a delivery in the way of its receiver."""
        try:
            if isinstance(claimed.receiver, Channel):
                return self._notify(claimed, claimed.receiver)
            status = send(claimed, claimed.receiver, self._patience.seconds)
        except Unreachable as error:
            return Sent(None, str(error))
        return Sent.of_status(status, final=(_STATUS_GONE,))

    def _note(self, webhook_id: str, well: bool | None) -> None:
        with self._lock:
            if well:
                self._failing.discard(webhook_id)
            elif well is not None:
                self._failing.add(webhook_id)

    def _has_place(self, webhook_id: str) -> bool:
        if webhook_id in self._places or len(self._places) >= MAX_DELIVERIES_AT_ONCE:
            return False
        return webhook_id not in self._failing or not self._failing & set(self._places)

    def _begin(self, number: int) -> str | None:
        with self._lock:
            for webhook_id, place in self._places.items():
                if place.number == number and not place.begun:
                    place.begun = True
                    self._called[webhook_id] = time.monotonic()
                    return webhook_id
        return None

    def _leave(self, webhook_id: str) -> None:
        with self._lock:
            self._places.pop(webhook_id, None)

    def _give_up_lost(self) -> None:
        """Free the places of jobs that never began: the queue's file may be gone."""
        now = time.monotonic()
        for webhook_id, place in list(self._places.items()):
            if not place.begun and now - place.put_at > _LOST_SECONDS:
                del self._places[webhook_id]


def _in(seconds: float) -> str:
    """Return the time that is `seconds` from now, in the format of the rows."""
    moment = datetime.now(UTC) + timedelta(seconds=seconds)
    return iso(moment)
