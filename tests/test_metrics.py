"""What Prometheus collects, from the real daemon; and counting executions as they come and go."""

from __future__ import annotations

import json
import platform
import random
import re
import sqlite3
import time
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from occ_app.database.database import Database
from occ_app.executions import events, lifecycle
from occ_app.executions.records import Outcome, Request
from occ_app.executions.tally import Tally
from occ_app.system.process_identity import own_identity
from tests import fake_hub
from tests.conftest import Occ, steps, wait_until
from tests.databases import make_database

PROTOCOL = (Path(__file__).parents[1] / "docs" / "protocol.md").read_text()


def scrape(agent: Occ) -> dict[str, float]:
    """Every sample by its name, with the values of its labels in the order of their names."""
    response = agent.request("GET", "/metrics")
    assert response.status == 200
    assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    return {
        sample.name + "".join(f" {value}" for value in sample.labels.values()): sample.value
        for family in text_string_to_metric_families(response.data.decode())
        for sample in family.samples
    }


def shown(samples: Mapping[str, float], *names: str) -> list[float]:
    return [samples[name] for name in names]


def test_what_happened_is_counted_and_goes_on_after_a_restart(occ: Occ) -> None:
    agent = occ.start()
    agent.workspace()
    agent.run("one")
    agent.run(steps({"exit": 3}))
    stream, _ = agent.under_way(steps({"say": "on"}, {"sleep": 60}), "running")
    later = agent.client.execute("work", "later", executionId="later")
    next(later)
    wait_until(lambda: scrape(agent)["occ_streams_open"] == 2, "the streams of those that are over to be let go")
    samples = scrape(agent)
    states = shown(samples, *(f"occ_executions {state}" for state in ("queued", "running", "succeeded", "failed")))
    assert states == [1, 1, 1, 1]
    assert samples["occ_executions_ended_total  succeeded"] == 1
    assert samples["occ_executions_ended_total CLAUDE_EXIT failed"] == 1
    assert shown(samples, "occ_queue_depth", "occ_workers", "occ_workers_busy") == [1, 2, 1]
    assert shown(samples, "occ_queue_wait_seconds_count", "occ_run_seconds_count") == [3, 2]
    assert shown(samples, "occ_queue_wait_seconds_bucket +Inf", "occ_run_seconds_bucket 30.0") == [3, 2]
    assert 0 < samples["occ_run_seconds_sum"] < 60
    assert samples["occ_streams_open"] == 2
    listed = agent.client.executions()["executions"]
    assert samples["occ_events_total"] == sum(record["lastSeq"] for record in listed)
    agent.client.cancel("running")
    assert [list(follower)[-1].name for follower in (stream, later)] == ["error", "complete"]
    assert scrape(agent)["occ_executions succeeded"] == 2
    assert scrape(agent)["occ_executions_ended_total EXECUTION_CANCELLED cancelled"] == 1
    wait_until(lambda: scrape(agent)["occ_streams_open"] == 0, "the streams to be let go")
    before = scrape(agent)
    agent.stop()
    agent.start()
    after = scrape(agent)
    names = [name for name in before if name.startswith(("occ_executions", "occ_run", "occ_queue", "occ_events"))]
    assert len(names) > 20
    assert shown(after, *names) == shown(before, *names)


def test_the_process_and_the_database_are_told(agent: Occ) -> None:
    samples = scrape(agent)
    assert samples["occ_database_bytes"] == pytest.approx(agent.database.used_bytes(), rel=0.2)
    assert samples["occ_database_log_bytes"] == pytest.approx((agent.home / "occ.db-wal").stat().st_size, rel=0.2)
    version = agent.client.health()["version"]
    assert samples[f"occ_info {platform.python_version()} {version}"] == 1
    web = next(pid for pid, command in agent.commands().items() if "occ_app.wsgi" in command)
    assert samples["process_start_time_seconds"] == pytest.approx(psutil.Process(web).create_time(), abs=5)
    assert samples["process_resident_memory_bytes"] > 1_000_000


def test_each_refusal_is_counted_by_its_code(agent: Occ) -> None:
    codes = ("UNAUTHORIZED", "EXECUTION_NOT_FOUND", "NOT_FOUND", "INVALID_REQUEST")

    def refused() -> list[float]:
        samples = scrape(agent)
        return [samples.get(f"occ_refusals_total {code}", 0) for code in codes]

    before = refused()
    for _ in range(2):
        assert agent.request("GET", "/metrics", Authorization="Bearer wrong").status == 401
    assert agent.request("GET", "/executions/none").status == 404
    assert agent.request("GET", "/nowhere").status == 404
    assert agent.request("GET", "/metrics?x=1").status == 422
    assert [now - then for now, then in zip(refused(), before, strict=True)] == [2, 1, 1, 1]


def test_an_agent_by_itself_has_no_heartbeat_to_tell_the_age_of(agent: Occ) -> None:
    samples = scrape(agent)
    assert samples["occ_heartbeat_consecutive_failures"] == 0
    assert "occ_heartbeat_age_seconds" not in samples


def test_the_heartbeat_is_told_and_the_documented_metrics_are_those_there_are(occ: Occ) -> None:
    with fake_hub.serve() as hub:
        occ.start("--remote-url", hub.url, "--bind-address", "127.0.0.1", OCC_API_KEY=fake_hub.API_KEY)
        wait_until(lambda: scrape(occ).get("occ_heartbeat_age_seconds", 99) < 3, "a heartbeat")
        assert "occ_refusals_total UNAUTHORIZED" not in scrape(occ)
        occ.request("GET", "/nowhere")
        occ.workspace()
        occ.run("one")
        documented(scrape(occ))
        hub.beat_with = 500
        wait_until(lambda: scrape(occ)["occ_heartbeat_consecutive_failures"] >= 2, "two refused heartbeats")
        assert scrape(occ)["occ_heartbeat_age_seconds"] > 1
        occ.stop()
        occ.start()  # by itself from now on
        assert "occ_heartbeat_age_seconds" not in scrape(occ)
        assert occ.client.health()["heartbeat"]["lastSuccessfulAt"] is None


def documented(samples: Mapping[str, float]) -> None:
    """Compare the names of metrics with those of the protocol."""
    names = {name.split(" ")[0] for name in samples}
    there = {re.sub(r"(_seconds)_(bucket|count|sum)$", r"\1", name) for name in names}
    section = PROTOCOL.partition("## For Prometheus")[2].partition("\nValues about executions")[0]
    assert set(re.findall(r"`((?:occ|process)_[a-z_]+)`", section)) == there


@pytest.fixture
def rows(tmp_path: Path) -> Database:
    path = tmp_path / "occ.db"
    make_database(path)
    rows = Database(path)
    with rows.write() as connection:
        for workspace in range(5):
            connection.execute(
                "INSERT INTO workspaces (workspace_id, name, description, path, files, bytes, skipped, created_at,"
                " updated_at) VALUES (?, '', '', '', 0, 0, '[]', '', '')",
                (f"w{workspace}",),
            )
    return rows


def step(rows: Database, dice: random.Random, number: int) -> None:
    """Something that happens: one more execution, a start, some output, an end, a cancel."""
    kind = dice.randrange(5)
    active = [row["number"] for row in select(rows, "SELECT number FROM executions WHERE state = 'running'")]
    if kind == 0:
        asked = Request(f"e{number}", f"w{dice.randrange(5)}", "x", 9, 9, None, None, None, None, "")
        lifecycle.create(rows, asked, max_queue=10**6)
    elif kind == 1:
        lifecycle.claim(rows, own_identity())
    elif kind == 2 and active:
        one = dice.choice(active)
        events.append(rows, one, events.newest(rows, one) + 1, [("output", json.dumps({"chunk": "x"}))])
    elif kind == 3 and active:
        outcome = Outcome("succeeded", "complete", {}) if dice.random() < 0.5 else Outcome.failure("CLAUDE_EXIT", "")
        lifecycle.finish(rows, dice.choice(active), outcome)
    elif number > 1:
        for row in select(rows, f"SELECT execution_id FROM executions WHERE number = {dice.randrange(1, number)}"):  # noqa: S608 - a number
            lifecycle.cancel(rows, row["execution_id"], "EXECUTION_CANCELLED", "")


def select(rows: Database, sql: str) -> list[sqlite3.Row]:
    with rows.read() as connection:
        return connection.execute(sql).fetchall()


@pytest.mark.parametrize("seed", range(3))
def test_counting_as_they_come_and_go_gives_what_counting_all_of_them_gives(rows: Database, seed: int) -> None:
    dice = random.Random(seed)  # noqa: S311 - no secret, and the same each time
    tally = Tally(rows)
    for number in range(300):
        step(rows, dice, number)
        if dice.random() < 0.3:
            told, counted = tally.look(), Tally(rows).look()
            assert (told.waited.seconds, told.ran.seconds) == pytest.approx(
                (counted.waited.seconds, counted.ran.seconds)
            )
            assert (told.states, told.ended, told.events) == (counted.states, counted.ended, counted.events)
            assert (told.waited.up_to, told.ran.up_to) == (counted.waited.up_to, counted.ran.up_to)
    counted = tally.look()
    assert sum(counted.states.values()) == len(select(rows, "SELECT 1 FROM executions")) > 30
    assert counted.events == len(select(rows, "SELECT 1 FROM events"))


def test_a_look_at_a_long_past_costs_next_to_nothing(rows: Database) -> None:
    with rows.write() as connection:
        connection.executemany(
            "INSERT INTO executions (execution_id, workspace_id, state, request_hash, timeout_seconds,"
            " idle_timeout_seconds, created_at, started_at, finished_at, last_seq)"
            " VALUES (?, 'w0', 'succeeded', '', 1, 1, ?, ?, ?, 7)",
            [
                (f"e{n}", "2026-01-01T00:00:00.000Z", "2026-01-01T00:00:00.050Z", "2026-01-01T00:01:00.000Z")
                for n in range(20_000)
            ],
        )
    tally = Tally(rows)
    begun = time.thread_time()
    tally.look()
    first, begun = time.thread_time() - begun, time.thread_time()
    counted = tally.look()
    assert time.thread_time() - begun < first / 2
    assert (counted.states["succeeded"], counted.events) == (20_000, 140_000)
    assert counted.ran.up_to[:6] == ((1, 0), (5, 0), (15, 0), (30, 0), (60, 20_000), (120, 20_000))
