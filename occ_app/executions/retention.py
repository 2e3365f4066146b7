"""Deletion of old output, in steps so small that no other writer waits.

Id, state, final event and request hash of an execution stay for ever, so an old id attaches and never runs again; its
readers get a `gap` for the missing events.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from occ_app.database.database import Database
from occ_app.executions import events, lifecycle, search
from occ_app.executions import queries as executions
from occ_app.system.timestamps import iso

_STEP_EVENTS = 2000


@dataclass(frozen=True)
class Pruned:
    """How much was forgotten; `more` when the time ran out first."""

    executions: int
    events: int
    more: bool


def enforce(db: Database, days: float | None, limit_bytes: int, seconds: float) -> Pruned:
    """Delete output older than `days`, then the oldest above `limit_bytes`.

    The limit is the size of the database. With None for `days`, for a clock that is not trusted, age counts for
    nothing. Stops after about `seconds`; the next call continues.
    """
    deadline = time.monotonic() + seconds
    aged = Pruned(0, 0, False) if days is None else prune(db, older_than(days), deadline)
    forgotten, deleted = aged.executions, aged.events
    while not aged.more and db.used_bytes() > limit_bytes and time.monotonic() < deadline:
        oldest = executions.oldest_stored(db, None)
        if oldest is None:
            break
        deleted += _forget(db, oldest, deadline)
        forgotten += 1
    return Pruned(forgotten, deleted, time.monotonic() >= deadline)


def prune(db: Database, before: str, deadline: float) -> Pruned:
    """Forget the output and prompt of executions that ended before an ISO time."""
    forgotten = deleted = 0
    while time.monotonic() < deadline:
        oldest = executions.oldest_stored(db, before)
        if oldest is None:
            return Pruned(forgotten, deleted, False)
        deleted += _forget(db, oldest, deadline)
        forgotten += 1
    return Pruned(forgotten, deleted, True)


def older_than(days: float) -> str:
    """Return the moment `days` ago, in the format of the rows."""
    try:
        moment = datetime.now(UTC) - timedelta(days=days)
    except OverflowError:
        moment = datetime.min.replace(tzinfo=UTC)
    return iso(moment)


def _forget(db: Database, number: int, deadline: float) -> int:
    """Delete one execution's events but the final one, a step at a time.

    The prompt is deleted last.
    """
    search.forget(db, number)  # before the text, so that no search finds a half-deleted execution
    deleted = 0
    while step := events.purge(db, number, _STEP_EVENTS):
        deleted += step
        if time.monotonic() >= deadline:
            return deleted
    lifecycle.forget_prompt(db, number)
    return deleted
