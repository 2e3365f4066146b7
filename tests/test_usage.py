"""What executions took: counted on the real daemon, and on rows of many days and keys."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from occ_app.database.database import Database
from occ_app.executions import usage
from occ_app.executions.records import STATES
from tests.conftest import Occ, shared_agent, steps
from tests.databases import make_database

NOTHING = dict.fromkeys(STATES, 0)


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Occ]:
    """An agent with one worker in whose workspaces one of everything has happened."""
    with shared_agent(tmp_path_factory.mktemp("used")) as agent:
        agent.workspace("work")
        agent.workspace("other")
        tokens = {"input_tokens": 10, "output_tokens": 20, "cache_read_input_tokens": 30, "service_tier": "standard"}
        agent.run(steps({"say": "x"}, {"result": {"total_cost_usd": 0.25, "usage": tokens, "num_turns": 4}}))
        agent.run(steps({"say": "x"}, {"result": {"total_cost_usd": 0.5, "usage": tokens, "num_turns": 2}}), "other")
        agent.run(steps({"exit": 3}))
        running = agent.client.execute("work", steps({"say": "on"}, {"sleep": 600}))
        while next(running).name != "output":
            pass
        next(agent.client.execute("work", "later"))
        next(agent.client.execute("work", "never", executionId="cancelled"))
        agent.client.cancel("cancelled")
        yield agent


def test_a_workspace_s_executions_are_counted_and_summed_up(used: Occ) -> None:
    told = used.client.usage("workspace")
    other, work = told["groups"]
    assert (told["by"], other["group"], work["group"], told["omitted"]) == ("workspace", "other", "work", 0)
    assert work["name"] == "work"
    assert work["usage"].pop("runSeconds") > 0
    assert work["usage"] == {
        "executions": 5,
        "states": NOTHING | dict.fromkeys(("queued", "running", "succeeded", "failed", "cancelled"), 1),
        "costUsd": 0.25,
        "inexactCosts": 0,
        "inputTokens": 10,
        "outputTokens": 20,
        "cacheReadTokens": 30,
        "cacheCreationTokens": 0,
        "turns": 4,
    }
    assert (told["total"]["executions"], told["total"]["costUsd"], told["total"]["turns"]) == (6, 0.75, 6)


def test_a_day_is_what_is_counted_when_nothing_is_said(used: Occ) -> None:
    told = used.request("GET", "/usage").json()
    assert told["by"] == "day"
    days = {record["createdAt"][:10] for record in used.client.executions()["executions"]}
    assert {group["group"] for group in told["groups"]} == days


@pytest.mark.parametrize("by", ["agent", "key"])
def test_an_agent_by_itself_has_one_group_of_agents_and_keys(used: Occ, by: str) -> None:
    told = used.client.usage(by)
    assert [(group["group"], group["name"]) for group in told["groups"]] == [(None, None)]
    assert told["groups"][0]["usage"]["executions"] == 6


def test_a_span_without_executions_has_none(used: Occ) -> None:
    told = used.client.usage("workspace", since="2001-01-01", until="2001-02-01T12:00:00+02:00")
    assert (told["groups"], told["total"]["executions"], told["total"]["states"]) == ([], 0, NOTHING)
    assert used.client.usage("workspace", since="2001-01-01T00:00Z")["total"]["executions"] == 6


@pytest.mark.parametrize(
    "query",
    ["by=month", "since=yesterday", "since=2026-02-30", "until=0001-01-01T00:00%2B09:00", "since=2026-01-01%0A", "x=1"],
)
def test_a_wrong_query_is_refused_by_name(used: Occ, query: str) -> None:
    response = used.request("GET", f"/usage?{query}")
    assert (response.status, response.json()["code"]) == (422, "INVALID_REQUEST")
    assert list(response.json()["details"]) == [query.partition("=")[0]]


@pytest.fixture
def rows(tmp_path: Path) -> Database:
    path = tmp_path / "occ.db"
    make_database(path)
    return Database(path)


def add(rows: Database, moment: str, **columns: Any) -> None:
    """An execution accepted at `moment` and over ten seconds after its start, with these columns."""
    with rows.write() as connection:
        number = connection.execute("SELECT count(*) FROM executions").fetchone()[0]
        values = {
            "execution_id": f"e{number}",
            "workspace_id": "w",
            "state": "succeeded",
            "request_hash": "",
            "timeout_seconds": 1,
            "idle_timeout_seconds": 1,
            "created_at": moment,
            "started_at": "2026-01-01T00:00:00.000Z",
            "finished_at": "2026-01-01T00:00:10.500Z",
        } | columns
        names = ", ".join(values)
        connection.execute(
            f"INSERT INTO executions ({names}) VALUES ({', '.join('?' * len(values))})",  # noqa: S608 - the columns are the tests' own
            tuple(values.values()),
        )


def test_a_span_begins_with_its_first_moment_and_ends_before_its_last(rows: Database) -> None:
    for moment in ("2026-01-01T23:59:59.999Z", "2026-01-02T00:00:00.000Z", "2026-01-03T00:00:00.000Z"):
        add(rows, moment, cost_usd=0.1)
    told = usage.report(rows, "day", since="2026-01-02T00:00:00.000Z", until="2026-01-03T00:00:00.000Z")
    assert [(group.group, group.usage.executions) for group in told.groups] == [("2026-01-02", 1)]
    told = usage.report(rows, "day")
    assert [group.group for group in told.groups] == ["2026-01-03", "2026-01-02", "2026-01-01"]
    assert (told.total.cost_usd, told.total.run_seconds) == (0.3, 31.5)


def test_a_key_is_told_of_its_own_alone(rows: Database) -> None:
    with rows.write() as connection:
        connection.execute(
            "INSERT INTO keys (key_id, name, kind, admin, hash, created_at) VALUES ('k1', 'Ann', 'client', 0, 'h', '')"
        )
    add(rows, "2026-01-01", key_id="k1", owner_id="o1", cost_usd=1.0)
    add(rows, "2026-01-01", key_id="k2", owner_id="o2", cost_usd=2.0)
    everything = usage.report(rows, "key")
    assert [(group.group, group.name) for group in everything.groups] == [("k2", None), ("k1", "Ann")]
    for by in usage.GROUPINGS:
        own = usage.report(rows, by, visible_to="o1")
        assert (own.total.executions, own.total.cost_usd, len(own.groups)) == (1, 1.0, 1)
    assert usage.report(rows, "key", visible_to="o3").groups == []


def test_whatever_the_cli_reports_as_usage_can_be_summed(rows: Database) -> None:
    for reported in (None, [], "text", {"input_tokens": "many"}, {"input_tokens": None}, {"input_tokens": 2**62}):
        add(rows, "2026-01-01", usage=json.dumps(reported))
    add(rows, "2026-01-01", usage=json.dumps({"input_tokens": 2**62}))
    assert usage.report(rows, "day").total.input_tokens == 2**63


def test_of_very_many_groups_the_dearest_are_told_and_the_total_is_of_all(rows: Database) -> None:
    for number in range(usage.MAX_GROUPS + 5):
        add(rows, "2026-01-01", workspace_id=f"w{number}", cost_usd=float(number))
    told = usage.report(rows, "workspace")
    assert (len(told.groups), told.omitted) == (usage.MAX_GROUPS, 5)
    assert (told.groups[0].group, told.groups[-1].group) == ("w1004", "w5")
    assert told.total.executions == 1005
