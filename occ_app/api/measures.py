"""Measurements of an agent or a hub, as plain values.

GET /metrics writes them for Prometheus. A measure is a function that returns metrics; further ones are added to the
list.
"""

from __future__ import annotations

import contextlib
import platform
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from occ_app import __version__
from occ_app.config.config import Config
from occ_app.database.database import Database
from occ_app.executions import queries as executions
from occ_app.executions.tally import Counted, Distribution, Tally
from occ_app.home import health
from occ_app.streams.followers import StreamLimit


@dataclass(frozen=True)
class Metric:
    """One metric with its values by the values of its labels.

    Without labels there is one value, under (). A counter's name lacks the `_total` that it has on the wire.
    """

    name: str
    meaning: str
    values: Mapping[tuple[str, ...], float]
    labels: tuple[str, ...] = ()
    kind: Literal["gauge", "counter"] = "gauge"


@dataclass(frozen=True)
class Histogram:
    """How long something took, each time it happened."""

    name: str
    meaning: str
    distribution: Distribution


Measure = Callable[[], Iterable[Metric | Histogram]]


class Refusals:
    """Counts refusals by their code since the process began."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_code: Counter[str] = Counter()

    def add(self, code: str) -> None:
        with self._lock:
            self._by_code[code] += 1

    def by_code(self) -> dict[str, int]:
        with self._lock:
            return dict(self._by_code)


def common(db: Database, streams: StreamLimit, refusals: Refusals) -> Measure:
    """Return the measure that agents and hubs share."""
    tally = Tally(db)

    def measure() -> Iterable[Metric | Histogram]:
        yield from _of_executions(tally.look())
        yield gauge("occ_database_bytes", "Bytes of occ.db that hold something.", db.used_bytes())
        yield gauge("occ_database_log_bytes", "Bytes of the write-ahead log of occ.db.", _bytes(f"{db.path}-wal"))
        yield gauge("occ_streams_open", "Event streams that are open.", streams.open)
        refused: dict[tuple[str, ...], float] = {(code,): count for code, count in refusals.by_code().items()}
        yield Metric("occ_refusals", "Refusals by code.", refused, ("code",), "counter")
        version: tuple[str, ...] = (__version__, platform.python_version())
        yield Metric("occ_info", "The version that runs; always 1.", {version: 1}, ("version", "python"))

    return measure


def _of_executions(counted: Counted) -> Iterable[Metric | Histogram]:
    states: dict[tuple[str, ...], float] = {(state,): count for state, count in counted.states.items()}
    yield Metric("occ_executions", "Executions by state.", states, ("state",))
    meaning = "Executions that are over, by state and error code."
    yield Metric("occ_executions_ended", meaning, counted.ended, ("state", "code"), "counter")
    yield gauge("occ_queue_depth", "Executions that wait.", counted.states["queued"])
    yield Histogram("occ_queue_wait_seconds", "From an execution's acceptance to its start.", counted.waited)
    yield Histogram("occ_run_seconds", "From an execution's start to its end.", counted.ran)
    meaning = "Events stored, those that were forgotten since included."
    yield Metric("occ_events", meaning, {(): counted.events}, kind="counter")


def of_agent(config: Config, db: Database) -> Measure:
    """Measure the workers and the heartbeat, which only an agent has."""

    def measure() -> Iterable[Metric]:
        yield gauge("occ_workers", "Executions that can run at once.", config.workers)
        yield gauge("occ_workers_busy", "Executions that run.", executions.counts(db)[0])
        beat = health.heartbeat(config, db)
        failures = beat["consecutiveFailures"]
        yield gauge("occ_heartbeat_consecutive_failures", "Heartbeats in a row that the hub did not take.", failures)
        if beat["lastSuccessfulAt"] is not None:
            age = max(0.0, (datetime.now(UTC) - datetime.fromisoformat(beat["lastSuccessfulAt"])).total_seconds())
            yield gauge("occ_heartbeat_age_seconds", "Since the hub last took a heartbeat.", max(age, 0.0))

    return measure


def gauge(name: str, meaning: str, value: float) -> Metric:
    """Return a metric of one value."""
    return Metric(name, meaning, {(): value})


def _bytes(path: str) -> int:
    with contextlib.suppress(FileNotFoundError):
        return Path(path).stat().st_size
    return 0
