"""Parked executions as rows: their states, their order, their limits and their ends."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from occ_app.config import config as configuration
from occ_app.database.database import Database
from occ_app.errors import Conflict
from occ_app.executions import answers, approvals, events, holding, inputs, lifecycle, parking, queries, tally, usage
from occ_app.executions.answers import Answer, Approval, Person
from occ_app.executions.records import Execution, Outcome
from occ_app.executions.spent import Spent
from occ_app.home import clock
from occ_app.home.notes import note
from occ_app.snapshots.store import snapshots_of
from occ_app.streams.doorbell import Ringer
from occ_app.system.process_identity import ProcessIdentity, own_identity
from occ_app.system.timestamps import iso
from occ_app.workspaces import workspace as workspaces
from occ_worker.control.agent import Control
from occ_worker.execution.deferral import grants
from tests import sentences
from tests.databases import make_database
from tests.test_ownership import on_hub
from tests.test_waiting import accept, begin, reason

DEAD = ProcessIdentity("another boot", 1, 1)
SPENT = Spent(seconds=3.0, turns=2, cost_usd=0.5, duration_ms=700, usage={"input_tokens": 10, "nested": {"a": 1}})
DAY = 86400.0


@pytest.fixture
def rows(tmp_path: Path) -> Iterator[Database]:
    make_database(tmp_path / "occ.db")
    rows = Database(tmp_path / "occ.db")
    yield rows
    rows.close()


def asked(rows: Database, execution: Execution) -> Approval:
    request = answers.Request("tool", "Bash", {"command": "ls"}, "0" * 64)
    return approvals.ask(rows, execution.number, request, 120)


def park(rows: Database, name: str) -> tuple[Execution, Approval]:
    """Accept an execution in a workspace of its own, run it, and park it."""
    on_hub(rows, name, "")
    accept(rows, name, name)
    execution = begin(rows)
    assert execution.execution_id == name
    approval = asked(rows, execution)
    assert holding.intend(rows, execution.number, approval.approval_id, f"call-{name}", SPENT)
    assert parking.park(rows, execution.number, SPENT, 7 * DAY)
    return execution, approval


def answer(rows: Database, approval: Approval, decision: str = "allow") -> None:
    approvals.decide(rows, approval.approval_id, Answer(decision, approval.input_hash), Person("token"))


def state(rows: Database, name: str) -> str:
    return queries.get(rows, name).state


def names(rows: Database, execution: Execution) -> list[str]:
    stored = events.after(rows, execution.number, 0)
    assert [event.seq for event in stored] == list(range(1, len(stored) + 1))
    return [event.name for event in stored]


def test_a_hundred_parked_executions_take_no_worker_from_others(rows: Database) -> None:
    parked = [park(rows, f"p{number}") for number in range(100)]
    assert queries.counts(rows) == (0, 0)
    assert queries.claimable(rows) == 0
    on_hub(rows, "other", "")
    for number in range(5):
        accept(rows, f"other-{number}", "other")
        lifecycle.finish(rows, begin(rows).number, Outcome.failure("CLAUDE_ERROR", "x"))
    accept(rows, "late", "other")
    answer(rows, parked[70][1])
    with rows.write() as connection:  # both answers may come in one millisecond
        connection.execute("UPDATE approvals SET decided_at = '2026-01-01' WHERE decided_at IS NOT NULL")
    answer(rows, parked[30][1], "deny")
    assert queries.claimable(rows) == 3
    # In the order of the answers, and before what is queued.
    assert [begin(rows).execution_id for _ in range(3)] == ["p70", "p30", "late"]
    assert lifecycle.claim(rows, own_identity()) is None
    assert tally.Tally(rows).look().states["parked"] == 98
    assert names(rows, parked[70][0]) == ["queued", "parked", "resumed"]


def test_a_parked_execution_holds_its_workspace_and_is_counted_apart(rows: Database) -> None:
    execution, approval = park(rows, "a")
    accept(rows, "a2", "a")
    assert lifecycle.claim(rows, own_identity()) is None
    assert reason(rows, "a2") == f"execution a, {sentences.WAITS_FOR_AN_APPROVAL}"
    with rows.write() as connection, pytest.raises(Conflict) as refused:
        workspaces.refuse_busy(connection, "a", execution.workspace_generation)
    assert refused.value.details["reason"] == "parked"
    assert queries.get(rows, "a").waits_for == f"{sentences.A_PERSON_TO_ANSWER} {approval.approval_id}"
    assert tally.Tally(rows).look().states["parked"] == 1
    assert usage.report(rows, "day").total.states["parked"] == 1
    assert [each.execution_id for each in queries.listing(rows, state="parked")[0]] == ["a"]
    lifecycle.cancel(rows, "a", "EXECUTION_CANCELLED", "x")
    assert begin(rows).execution_id == "a2"


def test_no_more_than_the_limit_are_parked(rows: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holding, "MAX_PARKED", 3)
    for number in range(holding.MAX_PARKED):
        park(rows, f"p{number}")
    on_hub(rows, "more", "")
    accept(rows, "more", "more")
    execution = begin(rows)
    approval = asked(rows, execution)
    assert not holding.intend(rows, execution.number, approval.approval_id, "call", SPENT)
    assert not parking.park(rows, execution.number, SPENT, DAY)
    assert state(rows, "more") == "running"


def test_only_an_open_call_of_a_running_execution_is_parked(rows: Database) -> None:
    on_hub(rows, "a", "")
    accept(rows, "a", "a")
    execution = begin(rows)
    approval = asked(rows, execution)
    answer(rows, approval)
    assert not holding.intend(rows, execution.number, approval.approval_id, "call", SPENT)
    second = asked(rows, execution)
    assert holding.intend(rows, execution.number, second.approval_id, "call", SPENT)
    lifecycle.cancel(rows, "a", "EXECUTION_CANCELLED", "x")  # by its worker
    assert not holding.intend(rows, execution.number, second.approval_id, "call", SPENT)
    assert not parking.park(rows, execution.number, SPENT, DAY)


def test_a_call_that_a_process_held_is_parked_once_its_transcript_was_found_whole(rows: Database) -> None:
    on_hub(rows, "a", "")
    accept(rows, "a", "a")
    execution = begin(rows)
    approval = asked(rows, execution)
    assert holding.hold(rows, execution.number, approval.approval_id, "call-a", SPENT)
    assert holding.held(rows, execution.number) == "call-a"
    text = inputs.accept(rows, "a", inputs.Given("text-1", "Also this.", "steer"), max_queue=9)
    assert inputs.mark_sent(rows, text.number)
    assert holding.held(rows, execution.number) is None  # the process may have the text
    assert inputs.settle(rows, text.number, "delivered")
    answer(rows, approval)
    assert holding.held(rows, execution.number) == "call-a"
    assert not parking.park(rows, execution.number, None, DAY)
    holding.confirm(rows, execution.number)
    assert parking.park(rows, execution.number, None, DAY)
    assert begin(rows).execution_id == "a"
    assert parking.spent(rows, execution.number) == SPENT
    parked = parking.of(rows, execution.number)
    assert parked is not None
    assert parked.tool_use_id == "call-a"


def test_a_held_call_whose_answer_is_about_to_be_delivered_is_never_parked(rows: Database) -> None:
    on_hub(rows, "a", "")
    accept(rows, "a", "a")
    execution = begin(rows)
    approval = asked(rows, execution)
    assert holding.hold(rows, execution.number, approval.approval_id, "call-a", SPENT)
    answer(rows, approval)
    assert parking.deliver(rows, approval.approval_id)
    assert holding.held(rows, execution.number) is None
    holding.confirm(rows, execution.number)
    assert not parking.park(rows, execution.number, None, DAY)


def test_an_answer_is_delivered_once_and_no_process_is_replaced_afterwards(rows: Database) -> None:
    execution, approval = park(rows, "a")
    answer(rows, approval)
    assert lifecycle.claim(rows, DEAD) is not None
    assert parking.of(rows, execution.number) is not None
    assert parking.park(rows, execution.number, None, DAY)  # its process died before the delivery
    assert lifecycle.claim(rows, DEAD) is not None
    assert parking.deliver(rows, approval.approval_id)
    assert not parking.deliver(rows, approval.approval_id)
    assert parking.of(rows, execution.number) is None
    assert not parking.park(rows, execution.number, None, DAY)
    assert lifecycle.claim(rows, own_identity()) is None
    assert approvals.delivered_tool(rows, execution.number) == "Bash"
    assert names(rows, execution) == ["queued", "parked", "resumed", "parked", "resumed"]


def test_an_answer_that_was_dropped_resumes_nothing(rows: Database) -> None:
    execution, approval = park(rows, "a")
    answer(rows, approval)
    begin(rows)
    parking.settle(rows, execution.number)
    assert not parking.park(rows, execution.number, None, DAY)


def test_the_figures_of_all_processes_are_added_up(rows: Database) -> None:
    total = SPENT.plus(Spent(1.0, 1, 0.25, 50, {"input_tokens": 5, "nested": {"a": 2}, "tier": "standard"}))
    assert total == Spent(4.0, 3, 0.75, 750, {"input_tokens": 15, "nested": {"a": 3}, "tier": "standard"})
    execution, approval = park(rows, "a")
    answer(rows, approval)
    begin(rows)
    data = {"exitCode": 0, "costUsd": 0.25, "numTurns": 1, "durationMs": 50, "usage": {"input_tokens": 5}}
    last = Outcome("succeeded", "complete", data, {"input_tokens": 5})
    lifecycle.finish(rows, execution.number, parking.spent(rows, execution.number).with_outcome(last))
    done = queries.get(rows, "a")
    assert (done.cost_usd, done.num_turns, done.duration_ms) == (0.75, 3, 750)
    assert done.usage["input_tokens"] == 15
    assert parking.spent(rows, execution.number) == Spent()  # no row is left


def test_parked_time_is_no_running_time(rows: Database) -> None:
    execution, _ = park(rows, "a")
    with rows.write() as connection:
        connection.execute(
            "UPDATE executions SET started_at = :start, parked_at = :start WHERE number = :number",
            {"start": iso(datetime.now(UTC) - timedelta(days=3)), "number": execution.number},
        )
    lifecycle.cancel(rows, "a", "EXECUTION_CANCELLED", "x")
    assert queries.get(rows, "a").parked_seconds == pytest.approx(3 * DAY, abs=60)
    assert usage.report(rows, "day").total.run_seconds < 60
    assert tally.Tally(rows).look().ran.seconds < 60


def wait(rows: Database, days: float) -> None:
    """Let what is parked be parked for so many days, by both clocks."""
    with rows.write() as connection:
        connection.execute("UPDATE parkings SET since_boot = since_boot - :seconds", {"seconds": days * DAY})
    jump(rows, days)


def jump(rows: Database, days: float) -> None:
    """Let the wall clock be so many days ahead."""
    past = iso(datetime.now(UTC) + timedelta(days=7 - days))
    with rows.write() as connection:
        connection.execute("UPDATE approvals SET expires_at = :past", {"past": past})


def test_an_approval_that_expired_ends_its_execution(rows: Database) -> None:
    execution, approval = park(rows, "a")
    other, _ = park(rows, "b")
    wait(rows, 6.9)
    assert parking.overdue(rows) == []
    wait(rows, 0.2)
    assert [each.execution_id for each in parking.overdue(rows)] == ["a", "b"]
    answer(rows, approvals.listing(rows, "open")[1])  # in the last moment
    assert lifecycle.expire(rows, execution.number)
    assert not lifecycle.expire(rows, other.number)
    done = queries.get(rows, "a")
    assert (done.state, done.error_code, done.cost_usd) == ("failed", "APPROVAL_EXPIRED", 0.5)
    assert approvals.get(rows, approval.approval_id).state == "expired"
    assert state(rows, "b") == "parked"


def test_a_clock_that_jumps_expires_nothing(rows: Database, tmp_path: Path) -> None:
    park(rows, "a")
    jump(rows, 8)
    assert parking.overdue(rows) == []
    with rows.write() as connection:
        connection.execute("UPDATE parkings SET boot_id = 'an earlier boot'")
    settings = {"OCC_HOME": str(tmp_path / "home"), "HOME": str(tmp_path), "PATH": ""}
    config = configuration.load(settings)
    config.make_folders()
    rings = list[int]()
    control = Control(
        config,
        rows,
        Ringer(config.run / "tail"),
        heartbeat=None,  # type: ignore[arg-type]  # not asked
        queued=lambda: 0,
        ring=lambda: rings.append(1),
        snapshots=snapshots_of(config),
        sharing=None,  # type: ignore[arg-type]  # not asked
    )
    now = clock.Reading.now()
    kept = {"since_boot": now.since_boot, "boot": now.boot, "ahead": 0.0, "held": 0.0}
    note(rows, "clock", {"wall": now.wall - 8 * DAY, **kept})
    control.forget()
    assert state(rows, "a") == "parked"
    note(rows, "clock", {"wall": now.wall, **kept})
    control.forget()
    assert queries.get(rows, "a").error_code == "APPROVAL_EXPIRED"
    assert rings == [1]  # its workspace is free
    control.close()


def test_a_copy_of_the_rows_has_no_parked_execution(rows: Database) -> None:
    park(rows, "a")
    assert lifecycle.abandon_all(rows, Outcome.failure("WORKER_LOST", "x")) == 1
    assert state(rows, "a") == "failed"


def test_on_a_hub_the_state_follows_the_machine(rows: Database) -> None:
    on_hub(rows, "a", "")
    accept(rows, "a", "a")
    execution = begin(rows)
    assert parking.relay(rows, execution.number, parked=True)
    assert not parking.relay(rows, execution.number, parked=True)
    assert state(rows, "a") == "parked"
    assert [each.execution_id for each in queries.relayed(rows)] == ["a"]
    assert parking.relay(rows, execution.number, parked=False)
    assert parking.relay(rows, execution.number, parked=True)
    assert not lifecycle.finish(rows, execution.number, Outcome.failure("CLAUDE_ERROR", "x"))
    assert lifecycle.finish(rows, execution.number, Outcome.failure("APPROVAL_EXPIRED", "x"), relayed=True)
    assert state(rows, "a") == "failed"


def listed(*rules: tuple[str, str, str]) -> object:
    return {"state": {"rules": [{"behavior": one, "source": two, "rule": three} for one, two, three in rules]}}


@pytest.mark.parametrize(
    ("rule", "tool"),
    [
        ("Bash", "Bash"),
        ("Bash(ls *)", "Bash"),
        ("mcp__box", "mcp__box__hello"),
        ("mcp__box__hello", "mcp__box__hello"),
        ("*", "WebFetch"),
        ("mcp__*", "mcp__box__hello"),
    ],
)
def test_a_rule_of_the_cli_may_grant_a_tool(rule: str, tool: str) -> None:
    assert grants(tool, listed(("allow", "userSettings", rule)))
    assert not grants(tool, listed(("deny", "userSettings", rule), ("ask", "flagSettings", rule)))
    assert not grants(tool, listed(("allow", "session", rule)))  # ends with its process


def test_rules_that_cannot_be_read_grant_everything() -> None:
    for unknown in (None, {}, {"state": {}}, {"state": {"rules": [{"behavior": "allow"}]}}, {"state": {"rules": [3]}}):
        assert grants("Bash", unknown)
    assert not grants("Bash", listed(("allow", "userSettings", "WebFetch"), ("allow", "userSettings", "BashOutput")))
