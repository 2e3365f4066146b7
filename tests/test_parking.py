"""Executions that wait for a person without a process, with the real CLI: parked, resumed, and never run unasked."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from occ_app.claude import transcripts
from occ_app.errors import Refused
from occ_app.executions import holding, queries
from tests import real_cli, sentences
from tests.conftest import Occ, names, occ_in, wait_until
from tests.model_api import FAKE_KEY, serve
from tests.promises import kill
from tests.test_approvals import Machine, Running, results
from tests.test_hostile_workspaces import Canaries, poison
from tests.test_real_cli import reply

pytestmark = pytest.mark.real_cli

ROUNDS = int(os.environ.get("FAULT_ROUNDS", "2"))
HOLD = "0.3"  # seconds; so that calls are parked almost at once
COUNT = {"name": "Bash", "input": {"command": "echo ran >> count && echo done", "description": "d"}}


@contextlib.contextmanager
def started(folder: Path, claude: Path, **settings: str) -> Iterator[Machine]:
    """An agent that parks calls almost at once, and knows the version of its CLI."""
    with serve() as model, occ_in(folder, HOME=str(folder), OCC_WORKERS="2") as occ:
        reach = {"OCC_CLAUDE_BIN": str(claude), "ANTHROPIC_BASE_URL": model.url, "ANTHROPIC_API_KEY": FAKE_KEY}
        occ.environment.update({**reach, "OCC_PERMISSIONS": "full", "OCC_HOLD_SECONDS": HOLD, **settings})
        occ.start()
        wait_until(lambda: occ.client.health()["claude"]["version"], "the version to be known")
        yield Machine(occ, model)


@pytest.fixture(scope="module", params=real_cli.deferring())
def release(request: pytest.FixtureRequest) -> str:
    """A release whose calls can be parked."""
    return str(request.param)


@pytest.fixture(scope="module")
def machine(real_claude: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    with started(tmp_path_factory.mktemp("machine"), real_claude) as machine:
        yield machine


def parked(run: Running) -> dict[str, Any]:
    """Read events until the execution is parked, and return its question."""
    question = run.question()
    event = next(event for event in run.events if event.name in ("parked", "complete", "error"))
    assert event.name == "parked", event
    assert event.data["approvalId"] == question["approvalId"]
    return question


def record(run: Running) -> dict[str, Any]:
    found: dict[str, Any] = run.machine.call("GET", f"/executions/{run.execution_id}")
    return found


def ran(run: Running) -> int:
    """Return how often the call ran."""
    count = run.folder / "count"
    return len(count.read_text().split()) if count.exists() else 0


def test_a_parked_execution_has_no_process_and_goes_on_in_the_same_stream(machine: Machine) -> None:
    run = machine.begin({"tools": [COUNT]}, {"text": "Done."}, maxTurns=2, maxBudgetUsd=1)
    question = parked(run)
    waiting = record(run)
    assert waiting["state"] == "parked"
    assert question["approvalId"] in waiting["waitsFor"]
    assert machine.occ.client.health()["workers"]["busy"] == 0
    assert "parked (waits for a person" in machine.occ.command("jobs").stdout
    assert ran(run) == 0
    assert run.answer(question, "allow")["state"] == "allowed"
    events = run.end()
    assert names(events)[:2] == ["resumed", "approval_resolved"]
    assert "started" not in names(events)
    assert results(events) == [("done", False)]
    assert ran(run) == 1
    stored = list(machine.occ.client.events(run.execution_id))
    assert [event.seq for event in stored] == list(range(1, len(stored) + 1))
    done = record(run)
    assert (done["state"], done["numTurns"], done["waitsFor"]) == ("succeeded", 2, None)
    assert events[-1].data["costUsd"] == done["costUsd"]
    plain = machine.begin({"tools": [COUNT]}, {"text": "Done."}, permissions="full")
    plain.end()
    unparked = record(plain)
    assert done["costUsd"] == pytest.approx(unparked["costUsd"], rel=0.1)
    assert done["usage"]["input_tokens"] == pytest.approx(unparked["usage"]["input_tokens"], rel=0.1)


def test_a_parked_call_that_is_denied_never_runs_whatever_is_granted_meanwhile_and_the_run_goes_on(
    machine: Machine,
) -> None:
    run = machine.begin({"tools": [COUNT]}, {"text": "Done."})
    question = parked(run)
    settings = Path(machine.occ.environment["HOME"]) / ".claude" / "settings.json"
    settings.parent.mkdir(exist_ok=True)
    granted = {"allow": ["Bash"], "defaultMode": "bypassPermissions"}
    settings.write_text(json.dumps({"permissions": granted, "disableAllHooks": True}))
    try:
        run.answer(question, "deny", message="Use the other tool.")
        events = run.end()
    finally:
        settings.unlink()
    ((text, is_error),) = results(events)
    assert is_error
    assert "Use the other tool." in text
    assert events[-1].name == "complete"
    assert ran(run) == 0


@pytest.mark.parametrize("ceiling", ["edit", "plan"] if os.environ.get("TEST_ALL") else ["edit"])
def test_a_parked_call_meets_a_ceiling_that_was_lowered(machine: Machine, ceiling: str) -> None:
    run = machine.begin({"tools": [COUNT]}, {"text": "Done."})
    question = parked(run)
    machine.occ.command("workspaces", "limit", run.folder.name, ceiling)
    run.answer(question, "allow")
    events = run.end()
    assert [is_error for _, is_error in results(events)] == [True]
    assert events[-1].name == "complete", events[-1]
    assert ran(run) == 0
    assert row(machine.occ, run)["delivered_at"] is not None


def test_a_parked_call_that_is_edited_runs_as_it_was_edited_and_later_ones_are_asked_once_each(
    machine: Machine,
) -> None:
    target = machine.occ.home / "workspaces" / f"work-{machine.runs + 1}" / "b.txt"
    write = {"name": "Write", "input": {"file_path": str(target), "content": "x\n"}}
    run = machine.begin(
        {"tools": [COUNT]}, {"tools": [write]}, {"tools": [COUNT]}, {"tools": [COUNT]}, {"text": "Done."}
    )
    question = parked(run)
    run.answer(question, "allow", updatedInput={"command": "echo ran >> edited", "description": "d"})
    second = parked(run)
    assert (run.folder / "edited").read_text() == "ran\n"
    assert target.read_text() == "x\n"  # an edit in the workspace asks nobody, as before
    assert ran(run) == 0
    assert second["approvalId"] != question["approvalId"]
    run.answer(second, "allow")
    run.answer(run.question(), "allow")
    events = run.end()
    assert "approval" not in names(events)
    assert results(events)[-1] == ("done", False)
    assert events[-1].name == "complete"
    assert ran(run) == 2


def test_a_parked_question_gets_its_answer(machine: Machine) -> None:
    options = [{"label": label, "description": "d"} for label in ("Red", "Blue")]
    asked = {"question": "Which colour?", "header": "C", "options": options, "multiSelect": False}
    run = machine.begin({"tools": [{"name": "AskUserQuestion", "input": {"questions": [asked]}}]}, {"text": "Done."})
    question = parked(run)
    assert question["kind"] == "question"
    run.answer(question, "allow", answers={"Which colour?": "Blue"})
    ((text, is_error),) = results(run.end())
    assert not is_error
    assert "Blue" in text


def test_the_second_of_two_calls_is_parked_once_the_first_is_over(machine: Machine) -> None:
    calls = [{"name": "Bash", "input": {"command": f"echo ran >> made-{n}", "description": "d"}} for n in range(2)]
    run = machine.begin({"tools": calls}, {"text": "Done."})
    first = run.question()
    # Two are open, so this one is denied and not parked.
    closed = next(event for event in run.events if event.name in ("parked", "approval_resolved"))
    assert closed.data["state"] == "expired"
    second = parked(run)
    assert second["input"]["command"] != first["input"]["command"]
    run.answer(second, "allow")
    assert run.end()[-1].name == "complete"
    assert [path.name for path in run.folder.glob("made-*")] == ["made-1"]
    assert (run.folder / "made-1").read_text() == "ran\n"


def test_a_call_of_a_sub_agent_is_denied_and_not_parked(machine: Machine) -> None:
    call = {"description": "d", "prompt": f"Do it. {reply({'tools': [COUNT]}, {'text': 'Inner.'})}"}
    agent = {"name": "Agent", "input": {**call, "subagent_type": "general-purpose"}}
    run = machine.begin({"tools": [agent]}, {"text": "Outer."})
    question = parked(run)
    assert question["tool"] in ("Agent", "Task")
    run.answer(question, "allow")
    assert run.question()["subagent"]
    events = run.end()
    assert [event.data["state"] for event in events if event.name == "approval_resolved"] == ["expired"]
    assert "parked" not in names(events)
    assert ran(run) == 0


def test_a_granted_tool_is_not_parked(machine: Machine) -> None:
    settings = Path(machine.occ.environment["HOME"]) / ".claude" / "settings.json"
    settings.parent.mkdir(exist_ok=True)
    settings.write_text(json.dumps({"permissions": {"allow": ["Bash(echo *)"], "defaultMode": "bypassPermissions"}}))
    try:
        run = machine.begin({"tools": [COUNT]}, {"text": "Done."})
        run.question()
        events = run.end()
    finally:
        settings.unlink()
    assert [event.data["state"] for event in events if event.name == "approval_resolved"] == ["expired"]
    assert "parked" not in names(events)
    assert ran(run) == 0


def test_nothing_in_a_workspace_runs_or_lets_a_parked_call_run(machine: Machine, tmp_path: Path) -> None:
    run = machine.begin({"tools": [COUNT]}, {"text": "Done."})
    question = parked(run)
    canaries = Canaries(tmp_path / "canaries")
    with serve() as attacker:
        poison(run.folder, canaries, attacker)  # as a run that edits might, or a person
        run.answer(question, "deny")
        assert run.end()[-1].name == "complete"
        assert attacker.requests() == []
    assert canaries.sung == []
    assert ran(run) == 0


def test_a_parked_run_keeps_its_workspace_until_it_is_cancelled(machine: Machine) -> None:
    run = machine.begin({"tools": [COUNT]}, {"text": "Done."})
    question = parked(run)
    workspace = run.folder.name
    for call in (
        lambda: machine.call("DELETE", f"/workspaces/{workspace}"),
        lambda: machine.occ.workspace(workspace, {"b.txt": "b\n"}),
    ):
        with pytest.raises(Refused) as refused:
            call()
        assert refused.value.code == "WORKSPACE_BUSY"
        assert refused.value.details["reason"] == "parked"
    other = machine.occ.client.execute(workspace, "Next. " + reply({"text": "x"}), executionId=f"{workspace}-next")
    next(other)
    waits = machine.call("GET", f"/executions/{workspace}-next")["waitsFor"]
    assert waits == f"execution {run.execution_id}, {sentences.WAITS_FOR_AN_APPROVAL}"
    assert machine.call("POST", f"/executions/{run.execution_id}/cancel")["state"] == "cancelled"
    end = run.end()[-1].data
    assert end["code"] == "EXECUTION_CANCELLED"
    assert end["costUsd"] > 0
    assert list(other)[-1].name == "complete"
    with pytest.raises(Refused) as refused:
        run.answer(question, "allow")
    assert refused.value.code == "APPROVAL_CLOSED"
    assert ran(run) == 0
    machine.call("DELETE", f"/workspaces/{workspace}")


# -- kills and stops


@pytest.fixture(scope="module")
def killable(real_claude: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    folder = tmp_path_factory.mktemp("killable")
    with started(folder, gated(folder, real_claude)) as machine:
        yield machine


def gated(folder: Path, claude: Path) -> Path:
    """Return a program that is the CLI, but does not start to resume a call while there is a file `closed`."""
    program = folder / "gated-claude"
    wait = f'case "$*" in *--await-initialize*) while [ -e "{folder}/closed" ]; do sleep 0.02; done ;; esac'
    program.write_text(f'#!/bin/sh\n{wait}\nexec "{claude}" "$@"\n')
    program.chmod(0o700)
    return program


def row(occ: Occ, run: Running) -> sqlite3.Row:
    """Return the state of an execution, its worker, and its call that is deferred, not one that is held only."""
    with contextlib.closing(occ.database) as database, database.read() as connection:
        found: sqlite3.Row = connection.execute(
            """
            SELECT x.state, x.owner_pid, p.approval_id,
                (SELECT max(delivered_at) FROM approvals a WHERE a.execution = x.number) AS delivered_at
            FROM executions x LEFT JOIN parkings p ON p.execution = x.number AND NOT p.held
            WHERE x.execution_id = ?
            """,
            (run.execution_id,),
        ).fetchone()
    return found


def kill_worker(run: Running, when: Callable[[sqlite3.Row], Any]) -> bool:
    """Kill the worker of an execution in the instant in which its row is so; False when that instant was missed."""
    occ, deadline = run.machine.occ, time.monotonic() + 30
    while time.monotonic() < deadline:
        now = row(occ, run)
        if now["owner_pid"] and when(now):
            os.kill(now["owner_pid"], signal.SIGKILL)
            return True
        if now["state"] not in ("queued", "running"):
            return False
        time.sleep(0.002)  # longer, and it is missed
    pytest.fail("the instant did not come")


def events_of(run: Running) -> list[str]:
    return names(list(run.machine.occ.client.events(run.execution_id)))


def test_a_worker_killed_while_a_call_is_deferred_loses_nothing(killable: Machine) -> None:
    run = killable.begin({"tools": [COUNT]}, {"text": "Done."})
    question = run.question()
    kill_worker(run, lambda now: now["approval_id"])
    wait_until(lambda: row(killable.occ, run)["state"] == "parked", "it to be parked")
    assert ran(run) == 0
    run.answer(question, "allow")
    asked = next(event for event in run.events if event.name in ("approval", "complete", "error"))
    if asked.name == "approval":  # the CLI had not written the call down: the model was asked again, and a person is
        assert asked.data["approvalId"] != question["approvalId"]
        assert ran(run) == 0
        again = killable.call("GET", f"/approvals/{asked.data['approvalId']}")
        run.answer(again, "allow")
        asked = run.end()[-1]
    if asked.name == "complete":
        assert ran(run) == 1
    else:  # nor the session
        assert asked.data["code"] == "SESSION_NOT_FOUND"
        assert ran(run) == 0


def test_a_worker_killed_before_the_answer_is_delivered_is_replaced(killable: Machine) -> None:
    run = killable.begin({"tools": [COUNT]}, {"text": "Done."})
    question = parked(run)
    gate = killable.occ.home.parent / "closed"
    gate.touch()
    run.answer(question, "allow")
    assert next(run.events).name == "resumed"
    assert kill_worker(run, lambda now: now["approval_id"])
    assert next(run.events).name == "parked"
    gate.unlink()
    events = [next(run.events), *run.end()]
    assert events[-1].name == "complete", events[-1]
    assert names(events)[0] == "resumed"
    assert ran(run) == 1


def test_a_worker_killed_after_the_answer_was_delivered_ends_the_run(killable: Machine) -> None:
    slow = {"name": "Bash", "input": {"command": "echo ran >> count && sleep 30", "description": "d"}}
    run = killable.begin({"tools": [slow]}, {"text": "Done."})
    run.answer(parked(run), "allow")
    assert next(run.events).name == "resumed"
    assert kill_worker(run, lambda now: now["delivered_at"])
    end = run.end()[-1].data
    assert end["code"] == "WORKER_LOST"
    assert sentences.MAY_HAVE_RUN in end["message"]
    assert ran(run) <= 1
    assert events_of(run).count("resumed") == 1


def test_a_parked_run_survives_the_death_of_everything(killable: Machine) -> None:
    occ = killable.occ
    run = killable.begin({"tools": [COUNT]}, {"text": "Done."})
    question = parked(run)
    wait_until(lambda: kill(occ, "everything"), "everything to be killed")
    wait_until(lambda: not occ.processes(), "nothing of the daemon to be left")
    occ.start()
    assert record(run)["state"] == "parked"
    run.answer(question, "allow")
    wait_until(lambda: kill(occ, "everything"), "everything to be killed")  # the answer is on the disk
    wait_until(lambda: not occ.processes(), "nothing of the daemon to be left")
    occ.start()
    stored = list(occ.client.events(run.execution_id))
    assert [event.seq for event in stored] == list(range(1, len(stored) + 1))
    if stored[-1].name == "complete":
        assert ran(run) == 1
    else:  # killed after the answer was delivered
        assert stored[-1].data["code"] == "WORKER_LOST"
        assert ran(run) <= 1


@pytest.fixture(scope="module")
def holder(real_claude: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """An agent that holds each call to the end of the test."""
    with started(tmp_path_factory.mktemp("holder"), real_claude, OCC_HOLD_SECONDS="600") as machine:
        yield machine


def held(run: Running) -> Path:
    """Wait until a killed worker's execution would be parked, and return its transcript."""
    occ = run.machine.occ
    claude = Path(occ.environment["HOME"]) / ".claude"

    def whole() -> bool:
        with contextlib.closing(occ.database) as database:
            found = queries.get(database, run.execution_id)
            call = holding.held(database, found.number)
        return bool(call and transcripts.waits_for(claude, run.folder, found.session_id or "", call))

    wait_until(whole, "the call to be in the transcript")
    (transcript,) = claude.glob(f"projects/*/{record(run)['sessionId']}.jsonl")
    return transcript


ONE = {"name": "Bash", "input": {"command": "echo ran >> one", "description": "d"}}


def test_a_worker_killed_while_a_call_is_held_is_replaced_and_the_call_asked_again(holder: Machine) -> None:
    run = holder.begin({"tools": [ONE]}, {"tools": [COUNT]}, {"text": "Done."})
    run.answer(run.question(), "allow")
    question = run.question()
    held(run)
    worker = psutil.Process(row(holder.occ, run)["owner_pid"])
    for child in worker.children(recursive=True):
        child.suspend()  # else the CLI may note, before it dies, that its input was closed: then the run is lost
    worker.kill()
    assert next(event for event in run.events if event.name in ("parked", "complete", "error")).name == "parked"
    assert ran(run) == 0
    run.answer(question, "allow")
    again = run.question()  # the model was asked again, and the answer was for the call of before
    assert again["approvalId"] != question["approvalId"]
    assert ran(run) == 0
    run.answer(again, "allow")
    events = run.end()
    assert events[-1].name == "complete", events[-1]
    assert ran(run) == 1
    assert (run.folder / "one").read_text() == "ran\n"
    stored = list(holder.occ.client.events(run.execution_id))
    assert [event.seq for event in stored] == list(range(1, len(stored) + 1))


def test_a_worker_killed_before_the_transcript_is_whole_ends_the_run_and_runs_nothing(holder: Machine) -> None:
    run = holder.begin({"tools": [ONE]}, {"tools": [COUNT]}, {"text": "Done."})
    run.answer(run.question(), "allow")
    question = run.question()
    transcript = held(run)
    lines = transcript.read_bytes().splitlines(keepends=True)
    last = max(number for number, line in enumerate(lines) if b"tool_result" in line)
    transcript.write_bytes(b"".join(lines[:last]))  # as it is a moment after the question
    os.kill(row(holder.occ, run)["owner_pid"], signal.SIGKILL)
    assert run.end()[-1].data["code"] == "WORKER_LOST"
    assert holder.call("GET", f"/approvals/{question['approvalId']}")["state"] == "withdrawn"
    assert ran(run) == 0
    assert (run.folder / "one").read_text() == "ran\n"


def test_kills_at_random_instants_of_the_hold_run_nothing_unasked_and_nothing_twice(holder: Machine) -> None:
    ends = Counter[tuple[str, str]]()
    for number in range(ROUNDS):
        run = holder.begin({"tools": [ONE]}, {"tools": [COUNT]}, {"text": "Done."})
        run.answer(run.question(), "allow")
        question = run.question()
        threading.Event().wait(random.choice((0.0, random.uniform(0, 0.1), random.uniform(0, 1.0))))  # noqa: S311 - any instant
        if number % 4 == 0 and kill(holder.occ, "everything"):
            wait_until(lambda: not holder.occ.processes(), "nothing of the daemon to be left")
            holder.occ.start()
        else:
            os.kill(row(holder.occ, run)["owner_pid"], signal.SIGKILL)
        after = lambda: row(holder.occ, run)["state"] not in ("running",)  # noqa: B023, E731 - called in this round
        wait_until(after, "the execution to be looked at")
        assert ran(run) == 0
        answers = Counter[str]()
        end = allow_to_the_end(run, answers)
        ends[end, "asked again" if answers.total() > 1 else "asked once"] += 1
        assert (run.folder / "one").read_text() == "ran\n"
        assert ran(run) == (1 if end == "succeeded" else 0)
        if end != "succeeded":
            assert holder.call("GET", f"/approvals/{question['approvalId']}")["state"] == "withdrawn"
        stored = list(holder.occ.client.events(run.execution_id))
        assert [event.seq for event in stored] == list(range(1, len(stored) + 1))
    print(f"\n{ROUNDS} kills: {dict(ends)}")
    assert {end for end, _ in ends} <= {"succeeded", "WORKER_LOST"}


def allow_to_the_end(run: Running, answered: Counter[str] | None = None) -> str:
    """Allow every call of an execution until it is over, and return how it ended. `answered` counts the answers."""

    def over() -> bool:
        for question in run.machine.call("GET", "/approvals?state=open")["approvals"]:
            if question["executionId"] == run.execution_id:
                with contextlib.suppress(Refused):  # it was withdrawn meanwhile
                    run.answer(question, "allow")
                    if answered is not None:
                        answered[question["approvalId"]] += 1
        return record(run)["state"] not in ("queued", "running", "parked")

    wait_until(over, "it to be over", 60)
    done = record(run)
    return str(done["errorCode"] or done["state"])


def test_kills_at_random_instants_run_a_call_once_for_each_answer_that_was_delivered(killable: Machine) -> None:
    occ, ends = killable.occ, Counter[str]()
    for number in range(ROUNDS):
        run = killable.begin({"tools": [COUNT]}, {"text": "Done."})
        if number % 2:
            run.answer(parked(run), "allow")
        else:
            run.question()
        threading.Event().wait(random.uniform(0, 2.0))  # noqa: S311 - any instant
        if number % 3 == 0 and kill(occ, "everything"):
            wait_until(lambda: not occ.processes(), "nothing of the daemon to be left")
            occ.start()
        elif (owner := row(occ, run)["owner_pid"]) is not None:
            os.kill(owner, signal.SIGKILL)
        end = allow_to_the_end(run)
        ends[end] += 1
        with contextlib.closing(occ.database) as database, database.read() as connection:
            delivered = connection.execute(
                """
                SELECT count(*) FROM approvals a JOIN executions x ON x.number = a.execution
                WHERE x.execution_id = ? AND a.delivered_at IS NOT NULL
                """,
                (run.execution_id,),
            ).fetchone()[0]
        assert ran(run) == delivered if end == "succeeded" else ran(run) <= delivered, (end, ran(run), delivered)
        stored = list(occ.client.events(run.execution_id))
        assert [event.seq for event in stored] == list(range(1, len(stored) + 1))
    print(f"\n{ROUNDS} kills: {dict(ends)}")
    assert set(ends) <= {"succeeded", "WORKER_LOST", "SESSION_NOT_FOUND"}


def test_a_stop_parks_what_waits_for_a_person(tmp_path: Path, real_claude: Path) -> None:
    with started(tmp_path, real_claude, OCC_HOLD_SECONDS="600") as machine:
        occ = machine.occ
        run = machine.begin({"tools": [COUNT]}, {"text": "Done."})
        question = run.question()
        held(run)  # a stop waits 1.5 s for Claude Code, which is busy before
        occ.command("stop")
        occ.start()
        # A process that did not leave in time is parked by the recovery, just after the start.
        wait_until(lambda: record(run)["state"] == "parked", "it to be parked")
        run.answer(question, "allow")
        assert list(occ.client.events(run.execution_id))[-1].name == "complete"
        assert ran(run) == 1
        run = machine.begin({"tools": [COUNT]}, {"text": "Done."})
        question = run.question()
        held(run)  # a stop waits 1.5 s for Claude Code, which is busy before
        occ.command("stop", "--drain")
        occ.start()
        # A process that did not leave in time is parked by the recovery, just after the start.
        wait_until(lambda: record(run)["state"] == "parked", "it to be parked")
        run.answer(question, "deny")
        assert list(occ.client.events(run.execution_id))[-1].name == "complete"
        assert ran(run) == 0


@pytest.mark.skipif(real_cli.tested() == real_cli.deferring(), reason="tried by `make test-all`")
def test_an_older_cli_denies_what_it_cannot_park(tmp_path: Path) -> None:
    with started(tmp_path, real_cli.require("2.1.197"), OCC_HOLD_SECONDS="600") as machine:
        run = machine.begin({"tools": [COUNT]}, {"text": "Done."})
        question = run.question()
        os.kill(row(machine.occ, run)["owner_pid"], signal.SIGKILL)
        assert run.end()[-1].data["code"] == "WORKER_LOST"
        assert machine.call("GET", f"/approvals/{question['approvalId']}")["state"] == "withdrawn"
        assert ran(run) == 0
        run = machine.begin({"tools": [COUNT]}, {"text": "Done."})
        question = run.question()
        machine.occ.command("stop")
        machine.occ.start(OCC_HOLD_SECONDS=HOLD)
        end = list(machine.occ.client.events(run.execution_id))[-1].data
        assert end["code"] == "DAEMON_STOPPED"
        assert machine.call("GET", f"/approvals/{question['approvalId']}")["state"] == "withdrawn"
        assert ran(run) == 0
        run = machine.begin({"tools": [COUNT]}, {"text": "Done."})
        run.question()
        events = run.end()
        assert [event.data["state"] for event in events if event.name == "approval_resolved"] == ["expired"]
        assert sentences.ONE_THING_AT_A_TIME in results(events)[0][0]
        assert ran(run) == 0
