"""The cost of one execution: its own, not its session's total, as newer CLIs report it; old rows are corrected."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlite_utils

from benchmarks.targets import ARGUMENTS
from occ_app.cli import job_table
from occ_app.client.event_checks import RawEvent, checked
from occ_app.database import schema
from occ_app.database.database import Database, connect
from occ_app.executions import events, lifecycle, queries, usage
from occ_worker.execution import command, outcome
from occ_worker.relay import outcomes
from tests.conftest import Occ
from tests.model_api import FAKE_KEY, ModelApi
from tests.test_real_cli import reply
from tests.test_stub_lines import printed, real_environment
from tests.test_usage import add

SESSION = "00000000-0000-4000-8000-000000000001"
OTHER = "00000000-0000-4000-8000-000000000002"


def result(**fields: Any) -> dict[str, Any]:
    return {"type": "result", "is_error": False, "session_id": SESSION, "num_turns": 1, "usage": {}} | fields


@pytest.mark.parametrize(
    ("fields", "cost"),
    [
        ({"total_cost_usd": 0.0802}, 0.0802),  # 2.1.197: the process's total
        ({"total_cost_usd": 0.1450, "model_usage_since_last_result": {"a": {"costUSD": 0.0217}}}, 0.0217),
        ({"total_cost_usd": 9, "model_usage_since_last_result": {"a": {"costUSD": 0.1}, "b": {"costUSD": 0.2}}}, 0.3),
        ({"total_cost_usd": 9, "model_usage_since_last_result": {}}, 0),  # nothing was asked of a model
        ({"total_cost_usd": 9, "model_usage_since_last_result": None}, 9),
        ({"total_cost_usd": 9, "model_usage_since_last_result": {"a": None, "b": {"costUSD": "x"}, "c": {}}}, 0),
        ({"total_cost_usd": 9, "model_usage_since_last_result": {"a": {"costUSD": float("inf")}}}, 0),
        ({}, None),
    ],
)
@pytest.mark.parametrize("is_error", [False, True])
def test_a_result_costs_what_it_used_since_the_last_one(
    fields: dict[str, Any], cost: float | None, is_error: bool
) -> None:
    said = outcome.of_result(result(**fields, is_error=is_error), "").data
    assert said.get("costUsd") == (None if cost is None else pytest.approx(cost))


@pytest.mark.real_cli
def test_every_turn_of_a_session_costs_its_own_with_the_real_cli(occ: Occ, real_claude: Path, model: ModelApi) -> None:
    occ.start(OCC_CLAUDE_BIN=str(real_claude), ANTHROPIC_BASE_URL=model.url, ANTHROPIC_API_KEY=FAKE_KEY)
    occ.workspace()
    prompt, options, costs = reply({"text": "Done."}), dict[str, Any](), list[float]()
    for _ in range(3):
        final = occ.run(prompt, **options)[-1]
        costs.append(final.data["costUsd"])
        options = {"sessionId": final.data["sessionId"]}
    assert costs[0] > 0
    assert costs == pytest.approx([costs[0]] * 3)
    assert occ.client.usage("workspace")["total"]["costUsd"] == pytest.approx(sum(costs), abs=1e-6)


def costs_of(lines: Sequence[bytes]) -> float:
    cost = outcome.of_result(json.loads(lines[-1]), "").data["costUsd"]
    assert isinstance(cost, float)
    return cost


@pytest.mark.real_cli
def test_forks_parallel_resumes_and_a_lost_turn_cost_their_own_with_the_real_cli(
    real_claude: Path, tmp_path: Path, model: ModelApi
) -> None:
    environment = real_environment(tmp_path, model)

    def run(*options: str, prompt: str = reply({"text": "Done."})) -> list[bytes]:
        return printed([real_claude, *ARGUMENTS, *options], prompt, tmp_path, environment)

    first = run()
    session = json.loads(first[-1])["session_id"]
    own = costs_of(first)
    assert own > 0
    assert costs_of(run("--resume", session)) == pytest.approx(own)
    assert costs_of(run("--resume", session, "--fork-session")) == pytest.approx(own)
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(run, "--resume", session) for _ in range(2)]
        assert [costs_of(one.result()) for one in both] == pytest.approx([own, own])
    killed_within([real_claude, *ARGUMENTS, "--resume", session], tmp_path, environment)
    assert costs_of(run("--resume", session)) == pytest.approx(own)


def killed_within(argv: Sequence[str | Path], folder: Path, environment: Mapping[str, str]) -> None:
    """Run a turn that asks the model twice, and kill it in the middle of the second answer."""
    read = {"name": "Glob", "input": {"pattern": "*"}}
    prompt = reply({"text": "First.", "tools": [read]}, {"text": "Second.", "hang": "mid"})
    with subprocess.Popen(
        argv, cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(command.prompt_line(prompt))
        process.stdin.flush()
        while b'"text":"Second."' not in (line := process.stdout.readline()):
            assert line
        process.kill()


@pytest.mark.parametrize(
    ("resumed", "version", "sent", "exact"),
    [
        (None, "2.1.332", {}, True),
        (SESSION, "2.1.332", {}, False),
        (SESSION, None, {}, False),
        (SESSION, "2.1.197", {}, True),
        (SESSION, "2.1.332", {"costExact": True}, True),
        (SESSION, "2.1.332", {"costExact": False}, False),
        (SESSION, "2.1.332", {"costUsd": 0}, None),
    ],
)
@pytest.mark.parametrize("name", ["complete", "error"])
def test_a_hub_marks_the_session_totals_of_machines_with_an_older_occ(
    old: Database, resumed: str | None, version: str | None, sent: dict[str, Any], exact: bool | None, name: str
) -> None:
    turn(old, 0, None, None, state="running", resume_session_id=resumed, claude_version=version)
    schema.ensure_schema(old.path, old.path.with_name("lock"))
    with old.write() as connection:
        events.insert(connection, 1, 1, [("queued", '{"position":0}')])
    row = queries.get(old, "e0")
    data = {"exitCode": 0, "costUsd": 0.3} if name == "complete" else {"code": "X", "message": "", "costUsd": 0.3}
    event = checked(RawEvent(2, name, json.dumps(data | sent)))
    assert event is not None
    final = outcomes.of_final(event, row)
    assert final.data.get("costExact") is exact
    lifecycle.finish(old, row.number, final)
    assert queries.get(old, "e0").cost_exact is (exact is not False)


@pytest.fixture
def old(tmp_path: Path) -> Database:
    """A database as it was before costs were corrected."""
    connection = connect(tmp_path / "occ.db")
    schema._migrations().apply(sqlite_utils.Database(connection), stop_before="m005_costs_of_one_run")
    connection.execute("PRAGMA user_version = 4")
    connection.close()
    return Database(tmp_path / "occ.db")


def turn(old: Database, start: int, end: int | None, cost: float | None, **columns: Any) -> None:
    """A run of SESSION from `start` to `end`, in seconds, with the total that the CLI reported."""
    values = {"session_id": SESSION, "resume_session_id": SESSION, "claude_version": "2.1.330", "cost_usd": cost}
    times = {"started_at": f"2026-01-01T00:00:{start:02}.000Z"}
    times["finished_at"] = None if end is None else f"2026-01-01T00:00:{end:02}.000Z"
    add(old, "2026-01-01T00:00:00.000Z", **(values | times | columns))


def corrected(old: Database) -> list[tuple[float | None, bool]]:
    schema.ensure_schema(old.path, old.path.with_name("lock"))
    with old.read() as connection:
        rows = connection.execute("SELECT cost_usd, cost_exact FROM executions ORDER BY number").fetchall()
    return [(row["cost_usd"], bool(row["cost_exact"])) for row in rows]


def test_a_chain_of_turns_is_corrected_by_difference(old: Database) -> None:
    for number, total in enumerate((0.0802, 0.1017, 0.1233, 0.1450)):
        turn(old, number, number + 1, total, **({} if number else {"resume_session_id": None}))
    assert corrected(old) == [(0.0802, True), (0.0215, True), (0.0216, True), (0.0217, True)]
    told = usage.report(Database(old.path), "day").total
    assert (told.cost_usd, told.inexact_costs) == (0.145, 0)


def test_a_turn_whose_cost_was_lost_leaves_the_sum_right_and_the_next_one_marked(old: Database) -> None:
    turn(old, 0, 1, 0.1, resume_session_id=None)
    turn(old, 1, 2, None, state="failed")
    turn(old, 2, 3, 0.4)
    turn(old, 3, 4, 0.5)
    assert corrected(old) == [(0.1, True), (None, True), (0.3, False), (0.1, True)]


def test_a_run_that_reported_nothing_spent_changes_nothing(old: Database) -> None:
    turn(old, 0, 1, 0.1, resume_session_id=None)
    turn(old, 1, 2, 0, state="failed", claude_version=None)  # an error before the model was asked
    turn(old, 2, 3, None, state="failed", claude_version=None, session_id=None)  # the CLI was not started
    add(old, "2026-01-01", resume_session_id=SESSION, state="cancelled", started_at=None)  # cancelled in the queue
    turn(old, 3, 4, 0.3)
    assert corrected(old)[-1] == (0.2, True)


@pytest.mark.parametrize(
    "first",
    [
        {"claude_version": "2.1.197"},  # its total is not known to be in the next one
        {"claude_version": None},
        {"finished_at": "2026-01-01T00:00:05.000Z"},  # side by side with the next
        {"finished_at": None, "state": "running"},
        {"session_id": OTHER},  # a fork: the session was begun by nobody here
        {"cost_usd": 0.9},  # more than the total after it
        {"resume_session_id": OTHER},
    ],
)
def test_what_is_no_chain_is_marked_and_keeps_its_number(old: Database, first: dict[str, Any]) -> None:
    turn(old, 0, 1, 0.1, **({"resume_session_id": None} | first))
    turn(old, 1, 2, 0.3)
    assert corrected(old)[-1] == (0.3, False)


def test_costs_of_older_clis_and_of_first_turns_were_right(old: Database) -> None:
    turn(old, 0, 1, 0.1, claude_version="2.1.197", resume_session_id=None)
    turn(old, 1, 2, 0.1, claude_version="2.1.197")
    turn(old, 2, 3, 0.3, session_id=OTHER, resume_session_id=None)
    turn(old, 3, 4, 0.3, claude_version="2.1.200")
    assert corrected(old) == [(0.1, True), (0.1, True), (0.3, True), (0.3, False)]


def test_a_marked_cost_is_shown_as_an_upper_bound(old: Database) -> None:
    turn(old, 0, 1, 0.3)
    corrected(old)
    record = job_table.record_of(queries.get(Database(old.path), "e0"))
    assert job_table._cost(record) == "≤ $0.3000"
    assert job_table._cost(record | {"costExact": True}) == "$0.3000"
    assert usage.report(Database(old.path), "day").total.inexact_costs == 1
