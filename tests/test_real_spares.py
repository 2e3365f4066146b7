"""Spare processes of the real Claude Code CLI, each release that can start ahead."""

from __future__ import annotations

import contextlib
import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import real_cli, sentences
from tests.conftest import Occ, is_gone, names, occ_in, output
from tests.model_api import FAKE_KEY, ModelApi
from tests.spare_processes import spare_for
from tests.test_approvals import Machine, Running, results
from tests.test_real_cli import reply

pytestmark = pytest.mark.real_cli

TOOLS = "Read,Edit,Write,Grep,Glob,Bash"


@pytest.fixture(scope="module", params=real_cli.deferring())
def release(request: pytest.FixtureRequest) -> str:
    """A release that can start ahead."""
    return str(request.param)


def agent_in(folder: Path, real_claude: Path, model: ModelApi) -> contextlib.AbstractContextManager[Occ]:
    settings = {"OCC_WORKERS": "1", "OCC_WARM_PROCESSES": "1", "OCC_TOOLS": TOOLS, "OCC_DENY": "Bash(touch never)"}
    reach = {"ANTHROPIC_BASE_URL": model.url, "ANTHROPIC_API_KEY": FAKE_KEY}
    return occ_in(folder, program=real_claude, **settings, **reach)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, real_claude: Path, served_model: ModelApi) -> Iterator[Occ]:
    with agent_in(tmp_path_factory.mktemp("shared"), real_claude, served_model) as occ:
        yield occ.start()


@pytest.fixture
def real(shared: Occ, model: ModelApi) -> Occ:
    """An agent with Bash, but for one command, that has one spare process for `edit`, and a workspace; it is shared."""
    shared.workspace("work", {"README.md": "A small project.\n", "CLAUDE.md": "Speak like a pirate.\n"})
    spare_for(shared, "edit")
    return shared


def bash(command: str) -> dict[str, object]:
    return {"name": "Bash", "input": {"command": command, "description": "d"}}


def served(occ: Occ) -> int:
    """How many executions a spare process has served."""
    return (occ.home / "logs/worker.log").read_text().count(sentences.HAS_THE_SPARE_PROCESS)


def test_a_new_conversation_has_a_spare_process_and_goes_on_in_another(real: Occ, model: ModelApi) -> None:
    spare, before, spent = spare_for(real, "edit"), served(real), real.client.usage()["total"]["costUsd"]
    folder = real.home / "workspaces/work"
    write = {"name": "Write", "input": {"file_path": str(folder / "made.txt"), "content": "made\n"}}
    outside = {"name": "Write", "input": {"file_path": str(real.home / "run/warm/empty/out.txt"), "content": "x"}}
    turns = ({"text": "W.", "tools": [write]}, {"text": "O.", "tools": [outside]}, {"text": "Done."})
    events = real.run("Write. " + reply(*turns), executionId="e1", model="claude-haiku-4-5")
    final = events[-1].data
    assert (names(events)[-1], output(events)) == ("complete", "W.O.Done.")
    assert (folder / "made.txt").read_text() == "made\n"
    assert list((real.home / "run/warm/empty").iterdir()) == []
    assert [denial["tool_name"] for denial in final["permissionDenials"]] == ["Write"]
    assert next(event.data["sessionId"] for event in events if event.name == "started") == final["sessionId"]
    asked = [request["body"] for request in model.requests() if request["path"] == "/v1/messages"]
    assert {body["model"] for body in asked} == {"claude-haiku-4-5"}
    assert "Speak like a pirate." in json.dumps(asked[0])
    first_cost, usage = final["costUsd"], final["usage"]
    assert usage["output_tokens"] > 0
    assert served(real) == before + 1
    assert is_gone(spare)

    model.forget()
    spare_for(real, "edit", spare.pid)
    events = real.run("And now? " + reply({"text": "Again."}), executionId="e2", continues="e1")
    assert output(events) == "Again."
    assert events[-1].data["sessionId"] == final["sessionId"]
    assert served(real) == before + 1  # a session that exists cannot have one
    assert "Done." in json.dumps([request["body"] for request in model.requests()])
    spent = real.client.usage()["total"]["costUsd"] - spent
    assert spent == pytest.approx(first_cost + events[-1].data["costUsd"])
    assert events[-1].data["costUsd"] < first_cost  # its own cost, not that of the session


@pytest.mark.parametrize("permissions", ["edit", "ask", "plan"])
def test_a_spare_sends_the_same_request_as_another_process_and_has_the_same_events(
    real: Occ, model: ModelApi, permissions: str
) -> None:
    seen, before = [], served(real)
    for limits in ({}, {"maxTurns": 5}):  # a limit makes another process start
        spare_for(real, permissions)
        model.forget()
        prompt = "Hello. " + reply({"text": "Hello back.", "chunks": 3})
        events = real.run(prompt, permissions=permissions, **limits)
        final = events[-1].data
        (asked,) = (request["body"] for request in model.requests() if request["path"] == "/v1/messages")
        del asked["metadata"]  # the id of the session
        asked = re.sub(r"plans/[a-z-]+\.md", "plans/x.md", json.dumps(asked))  # each session has a file for its plan
        seen.append((asked, names(events), output(events), final["costUsd"], final["usage"], final["numTurns"]))
    assert served(real) == before + 1
    assert seen[0] == seen[1]


def test_the_rules_hold_in_a_spare_process(real: Occ) -> None:
    before = served(real)
    spare_for(real, "edit")
    turns = ({"text": "a", "tools": [bash("touch never")]}, {"text": "b", "tools": [bash("touch often")]})
    events = real.run("Touch. " + reply(*turns, {"text": "c"}))
    assert events[-1].name == "complete"
    results = [event.data["isError"] for event in events if event.name == "tool" and "isError" in event.data]
    assert results == [True, False]
    assert [path.name for path in (real.home / "workspaces/work").glob("*e*n*")] == ["often"]
    assert served(real) == before + 1


def test_a_person_is_asked_in_a_spare_process(real: Occ, model: ModelApi, tmp_path: Path) -> None:
    spare, before = spare_for(real, "ask"), served(real)
    outside = [tmp_path / name for name in ("denied.txt", "allowed.txt")]
    writes = [{"name": "Write", "input": {"file_path": str(path), "content": "x"}} for path in outside]
    turns = [{"text": "a", "tools": [tool]} for tool in (bash("touch never"), *writes)]
    prompt = "Write. " + reply(*turns, {"text": "Done."})
    events = real.client.execute("work", prompt, executionId="asked", permissions="ask")
    run = Running(Machine(real, model), "asked", real.home / "workspaces/work", events)
    question = run.question()
    assert question["input"]["file_path"] == str(outside[0])
    assert served(real) == before + 1
    run.answer(question, "deny", message="Not there.")
    question = run.question()
    assert question["input"]["file_path"] == str(outside[1])
    run.answer(question, "allow")
    events = run.end()
    assert events[-1].name == "complete"
    assert [is_error for _, is_error in results(events)] == [False]
    assert [path.exists() for path in outside] == [False, True]
    assert not (run.folder / "never").exists()
    assert is_gone(spare)


def test_a_spare_process_for_a_plan_only_reads(real: Occ, model: ModelApi, tmp_path: Path) -> None:
    spare, before, folder = spare_for(real, "plan"), served(real), real.home / "workspaces/work"
    write = {"name": "Write", "input": {"file_path": str(folder / "made.txt"), "content": "x"}}
    outside = {"name": "Read", "input": {"file_path": "/etc/hostname"}}
    read = {"name": "Read", "input": {"file_path": str(folder / "README.md")}}
    turns = [{"text": "a", "tools": [tool]} for tool in (write, outside, read)]
    events = real.run("Plan. " + reply(*turns, {"text": "Done."}), permissions="plan")
    assert events[-1].name == "complete"
    assert [is_error for _, is_error in results(events)] == [True, True, False]
    assert not (folder / "made.txt").exists()
    assert served(real) == before + 1
    assert is_gone(spare)


def test_a_cancel_ends_a_spare_process_that_runs(real: Occ) -> None:
    spare, before = spare_for(real, "edit"), served(real)
    stream, _ = real.under_way("Wait. " + reply({"text": "on", "hang": "mid"}), "cancelled")
    assert served(real) == before + 1
    real.client.cancel("cancelled")
    assert list(stream)[-1].data["code"] == "EXECUTION_CANCELLED"
    assert is_gone(spare)


def runs_once_in_another(occ: Occ, model: ModelApi, number: signal.Signals) -> None:
    """Send a signal to the spare process, and run an execution."""
    spare, before = spare_for(occ, "edit"), served(occ)
    spare.send_signal(number)
    events = occ.run("Hello. " + reply({"text": "Hello back."}))
    assert (names(events)[-1], output(events)) == ("complete", "Hello back.")
    assert served(occ) == before
    assert is_gone(spare)
    assert len([request for request in model.requests() if request["path"] == "/v1/messages"]) == 1


def test_an_execution_whose_spare_was_killed_runs_once(real: Occ, model: ModelApi) -> None:
    runs_once_in_another(real, model, signal.SIGKILL)


def test_an_execution_whose_spare_was_stopped_runs_once(tmp_path: Path, real_claude: Path, model: ModelApi) -> None:
    """After this failure the worker has no spare process for a while."""
    with agent_in(tmp_path, real_claude, model) as occ:
        occ.start()
        occ.workspace()
        runs_once_in_another(occ, model, signal.SIGSTOP)


def test_two_workspaces_and_two_spares_do_not_meet(real: Occ, model: ModelApi) -> None:
    before = served(real)
    for number in range(2):
        real.workspace(f"w{number}", {"CLAUDE.md": f"The secret is {number}{number}{number}.\n"})
        spare_for(real, "edit")
        model.forget()
        real.run("Hello. " + reply({"text": "hi"}), f"w{number}")
        asked = json.dumps([request["body"] for request in model.requests()])
        assert f"The secret is {number}{number}{number}." in asked
        assert f"The secret is {1 - number}{1 - number}" not in asked
    assert served(real) == before + 2
