"""A wall clock that is wrong: nothing is deleted by it, plans survive it, and no duration is negative."""

from __future__ import annotations

import contextlib
import sqlite3
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from occ_app import errors
from occ_app.database.database import Database
from occ_app.executions import tally, usage
from occ_app.home import clock
from occ_app.home.clock import Reading
from occ_app.hub import deliveries
from tests.conftest import Occ, wait_until
from tests.databases import make_database
from tests.test_stops import SHIFTED

DAY = 86400.0
START = Reading(1_800_000_000.0, 1000.0, "first boot")


@pytest.fixture
def database(tmp_path: Path) -> Database:
    (tmp_path / "lock").touch()
    make_database(tmp_path / "occ.db")
    return Database(tmp_path / "occ.db")


def later(reading: Reading, seconds: float, jump: float = 0.0) -> Reading:
    return replace(reading, wall=reading.wall + seconds + jump, since_boot=reading.since_boot + seconds)


@pytest.mark.parametrize("days", [31, 400, -31])
def test_a_clock_that_jumps_is_not_believed_until_it_is_back(database: Database, days: int) -> None:
    assert clock.beat(database, START) is None
    wrong = later(START, 60, days * DAY)
    assert f"{days:+d} days" in (clock.beat(database, wrong) or "")
    assert clock.problem(database, later(wrong, 60)) is not None
    assert clock.beat(database, later(wrong, 120)) is not None
    assert clock.beat(database, later(START, 240)) is None


def test_a_clock_that_stays_where_it_jumped_to_is_believed_after_a_week_of_running(database: Database) -> None:
    clock.beat(database, START)
    reading = later(START, 60, 31 * DAY)
    assert clock.beat(database, reading) is not None
    for _ in range(6):
        reading = later(reading, DAY)
        assert clock.beat(database, reading) is not None
    assert [clock.beat(database, later(reading, days * DAY)) is None for days in (1.5, 1.6)] == [True, True]


@pytest.mark.parametrize("days", [0, 1, 3, 13])
def test_a_machine_that_was_off_or_asleep_for_days_is_believed(database: Database, days: int) -> None:
    clock.beat(database, START)
    asleep = later(START, days * DAY)
    assert clock.beat(database, asleep) is None
    assert clock.beat(database, Reading(asleep.wall + days * DAY + 90, 30.0, "second boot")) is None


def test_a_machine_that_comes_up_with_a_date_far_ahead_is_not_believed(database: Database) -> None:
    clock.beat(database, START)
    assert clock.beat(database, Reading(START.wall + 400 * DAY, 30.0, "second boot")) is not None


def test_without_a_stored_beat_the_newest_row_is_compared(database: Database) -> None:
    with database.write() as connection:
        connection.execute(
            "INSERT INTO executions (execution_id, workspace_id, state, request_hash, prompt, timeout_seconds,"
            " idle_timeout_seconds, created_at) VALUES ('one', 'work', 'queued', '', 'hi', 1, 1, '2026-01-01')"
        )
    wall = datetime(2026, 1, 3, tzinfo=UTC).timestamp()
    assert clock.problem(database, Reading(wall, 30.0, "a boot")) is None
    assert clock.problem(database, Reading(wall + 100 * DAY, 30.0, "a boot")) is not None


def test_nothing_is_forgotten_by_a_clock_that_is_a_year_ahead(occ: Occ, tmp_path: Path) -> None:
    jump = tmp_path / "jump"
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SHIFTED.format(path=str(jump)))
    occ.start(PYTHONPATH=str(tmp_path / "site"))
    occ.workspace()
    occ.run("keep me", executionId="kept")
    jump.write_text(str(400 * 86400))
    wait_until(lambda: "jumped by +400 days" in occ.logs(), "the control process to look", 75)
    record = occ.client.execution("kept")
    assert record["prompt"] == "keep me"
    assert any("jumped by +400 days" in problem for problem in occ.client.health()["problems"])
    pruned = occ.command("jobs", "prune", "--older-than", "1d", check=False)
    assert (pruned.returncode, "jumped by" in pruned.stderr) == (1, True)
    jump.write_text("0")
    wait_until(lambda: occ.client.health()["problems"] == [], "the clock to be believed again")
    assert occ.client.execution("kept")["prompt"] == "keep me"


def test_a_delivery_that_is_planned_survives_a_clock_set_back(database: Database) -> None:
    with contextlib.closing(sqlite3.connect(database.path)) as connection, connection:
        connection.execute("PRAGMA foreign_keys = OFF")
        connection.execute(
            "INSERT INTO deliveries (delivery_id, webhook_id, event, execution, state, attempts, next_at, created_at)"
            " VALUES ('delivery-1', 'hook', 'execution.finished', 1, 'waiting', 1, '2027-06-01T00:00:00.000Z', '')"
        )
    now, latest = "2026-06-01T00:00:00.000Z", "2026-06-02T04:00:00.000Z"
    assert deliveries.due(database, now, latest) == [("hook", 1)]
    assert deliveries.due(database, now, "2027-06-02T00:00:00.000Z") == []


def test_no_duration_is_negative(database: Database) -> None:
    with database.write() as connection:
        connection.execute(
            "INSERT INTO executions (execution_id, workspace_id, state, request_hash, prompt, timeout_seconds,"
            " idle_timeout_seconds, created_at, started_at, finished_at, last_seq) VALUES ('one', 'work', 'succeeded',"
            " '', 'hi', 1, 1, '2026-01-03T00:00:00Z', '2026-01-02T00:00:00Z', '2026-01-01T00:00:00Z', 1)"
        )
        row = connection.execute(f"SELECT waited, ran FROM ({tally._ROWS})").fetchone()  # noqa: S608 - a constant of OCC
        total = connection.execute(f"SELECT {usage._SUMS['run_seconds']} FROM executions x").fetchone()[0]  # noqa: S608 - as above
    assert tuple(row) == (0.0, 0.0)
    assert total == 0.0


def test_pruning_asks_the_clock_first(database: Database) -> None:
    clock.beat(database, replace(Reading.now(), wall=Reading.now().wall - 31 * DAY))
    with pytest.raises(errors.OCCError, match="jumped by"):
        clock.require(database)
