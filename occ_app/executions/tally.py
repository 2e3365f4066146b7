"""Counts of all executions, and of their waiting and running times.

A count is cheap however many there are. Finished executions never change, so they are read once: a count reads the
rows that were added since the last one and those that were unfinished then.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from occ_app.database.database import Database
from occ_app.executions.records import ERROR_CODES, FINAL_STATES, STATES

OTHER_CODE = "OTHER"  # all codes that OCC does not know: a machine could send a new one each time

# The upper limits of the histograms, in seconds.
WAIT_BUCKETS = (0.05, 0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 14400)
RUN_BUCKETS = (1, 5, 15, 30, 60, 120, 300, 600, 1800, 3600, 14400, 86400)

_ROWS = """
    SELECT number, state, coalesce(error_code, '') AS code,
           max(0.0, julianday(started_at) - julianday(created_at)) * 86400 AS waited,
           max(0.0, (julianday(finished_at) - julianday(started_at)) * 86400 - parked_seconds) AS ran,
           coalesce(CASE typeof(last_seq) WHEN 'integer' THEN last_seq END,
                    (SELECT max(seq) FROM events WHERE execution = number), 0) AS events
    FROM executions
"""


@dataclass(frozen=True)
class Distribution:
    """How many took at most so many seconds, for each limit, ascending.

    Then their number and their sum.
    """

    up_to: tuple[tuple[float, int], ...]
    count: int
    seconds: float


@dataclass(frozen=True)
class Counted:
    """All executions that ever existed.

    `ended` counts by state and error code; `events` includes deleted ones.
    """

    states: dict[str, int]
    ended: dict[tuple[str, ...], int]
    waited: Distribution
    ran: Distribution
    events: int


class Tally:
    """Counts of the executions of one database; safe to share between threads."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._lock = threading.Lock()
        self._newest = 0
        self._open: dict[int, bool] = {}  # not over yet, and whether its wait is counted
        self._ended: Counter[tuple[str, ...]] = Counter()
        self._events = 0
        self._waited = _Histogram(WAIT_BUCKETS)
        self._ran = _Histogram(RUN_BUCKETS)

    def look(self) -> Counted:
        """Read and count new rows. Raises Unavailable when the database is held."""
        with self._lock:
            with self._db.read() as connection:
                rows = connection.execute(
                    f"{_ROWS} WHERE number > ? UNION ALL {_ROWS} WHERE number IN (SELECT value FROM json_each(?))",  # noqa: S608 - made of the literal above
                    (self._newest, json.dumps(list(self._open))),
                )
                states: Counter[str] = Counter()
                events = 0
                for row in rows:
                    if not self._count(row):
                        states[row["state"]] += 1
                        events += row["events"]
            states.update(dict.fromkeys(STATES, 0))
            for (state, *_), times in self._ended.items():
                states[state] += times
            waited, ran = self._waited.distribution(), self._ran.distribution()
            return Counted(dict(states), dict(self._ended), waited, ran, self._events + events)

    def _count(self, row: sqlite3.Row) -> bool:
        """Count an execution as it is now; True when it will not change any more."""
        number, over = row["number"], row["state"] in FINAL_STATES
        self._newest = max(self._newest, number)
        counted = self._open.pop(number, False)
        if not counted and row["waited"] is not None:
            self._waited.add(row["waited"])
            counted = True
        if not over:
            self._open[number] = counted
            return False
        if row["ran"] is not None:
            self._ran.add(row["ran"])
        code = row["code"] if row["code"] in ERROR_CODES or row["code"] == "" else OTHER_CODE
        self._ended[row["state"], code] += 1
        self._events += row["events"]
        return True


class _Histogram:
    def __init__(self, limits: Sequence[float]) -> None:
        self._limits = tuple(limits)
        self._counts = [0] * (len(limits) + 1)
        self._seconds = 0.0

    def add(self, seconds: float) -> None:
        seconds = max(seconds, 0.0)  # somebody may have set the clock back meanwhile
        self._counts[bisect_left(self._limits, seconds)] += 1
        self._seconds += seconds

    def distribution(self) -> Distribution:
        up_to = tuple(zip(self._limits, accumulate(self._counts), strict=False))
        return Distribution(up_to, sum(self._counts), self._seconds)
