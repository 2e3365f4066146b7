"""A person in the run, with the real CLI: what is asked, what runs, and what never does."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from occ_app.errors import Refused
from occ_app.executions import approvals
from tests import real_cli, sentences
from tests.conftest import Occ, names, occ_in, processes_with, wait_until
from tests.model_api import FAKE_KEY, ModelApi, serve
from tests.test_real_cli import reply

pytestmark = pytest.mark.real_cli

ASKS = int(os.environ.get("ASKS", "220"))  # of one model in one message; 1,000 by hand
SECRET = "made-up-secret-of-the-machine"
BASH = {"name": "Bash", "input": {"command": "touch made-by-bash && echo done", "description": "d"}}


@dataclasses.dataclass
class Machine:
    """A running agent with two workers and the real CLI."""

    occ: Occ
    model: ModelApi
    runs: int = 0

    def begin(self, *turns: dict[str, Any], permissions: str = "ask", **options: Any) -> Running:
        self.runs += 1
        execution_id, workspace = f"run-{self.runs}", f"work-{self.runs}"
        self.occ.workspace(workspace, {"a.txt": "a\n"})
        # The stand-in model reads the last marker of a prompt, so that one inside another is escaped.
        script = json.dumps({"turns": turns}).replace("@reply", "\\u0040reply")
        events = self.occ.client.execute(
            workspace, f"Do it. @reply{script}", executionId=execution_id, permissions=permissions, **options
        )
        return Running(self, execution_id, self.occ.home / "workspaces" / workspace, events)

    def call(self, method: str, path: str, body: Any = None) -> Any:
        return self.occ.client.call(method, path, body)


@dataclasses.dataclass
class Running:
    """An execution under way, and the folder it works in."""

    machine: Machine
    execution_id: str
    folder: Path
    events: Iterator[Any]

    def question(self) -> dict[str, Any]:
        """Read events up to the next approval and return it as the API does."""
        event = next(event for event in self.events if event.name == "approval")
        found: dict[str, Any] = self.machine.call("GET", f"/approvals/{event.data['approvalId']}")
        assert found["inputHash"] == event.data["inputHash"]
        return found

    def answer(self, question: dict[str, Any], decision: str, **more: Any) -> dict[str, Any]:
        body = {"decision": decision, "inputHash": question["inputHash"], **more}
        found: dict[str, Any] = self.machine.call("POST", f"/approvals/{question['approvalId']}", body)
        return found

    def end(self) -> list[Any]:
        return list(self.events)


@pytest.fixture(scope="module")
def machine(real_claude: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """An agent for each release that this run of the tests tries."""
    folder = tmp_path_factory.mktemp("machine")
    with serve() as model, occ_in(folder, HOME=str(folder), OCC_WORKERS="2") as occ:
        settings = {"OCC_CLAUDE_BIN": str(real_claude), "ANTHROPIC_BASE_URL": model.url, "ANTHROPIC_API_KEY": FAKE_KEY}
        occ.start(**settings, OCC_PERMISSIONS="full", OCC_ENV_PASS="MADE_UP_TOKEN", MADE_UP_TOKEN=SECRET)
        wait_until(lambda: occ.client.health()["claude"]["version"], "the version to be known")
        yield Machine(occ, model)


def results(events: list[Any]) -> list[tuple[str, bool]]:
    return [(event.data["result"], event.data["isError"]) for event in events if "isError" in event.data]


def test_an_allowed_call_runs_and_a_question_holds_it_until_then(machine: Machine) -> None:
    run = machine.begin({"tools": [BASH]}, {"text": "Done."})
    question = run.question()
    assert (question["state"], question["kind"], question["tool"]) == ("open", "tool", "Bash")
    assert question["input"] == BASH["input"]
    assert not (run.folder / "made-by-bash").exists()
    assert machine.call("GET", "/approvals?state=open")["approvals"] == [question]
    assert run.answer(question, "allow")["state"] == "allowed"
    events = run.end()
    assert (run.folder / "made-by-bash").exists()
    assert [event.data["state"] for event in events if event.name == "approval_resolved"] == ["allowed"]
    assert results(events) == [("done", False)]
    assert events[-1].name == "complete"
    assert machine.call("GET", f"/approvals/{question['approvalId']}")["deliveredAt"] is not None


def test_a_denied_call_never_runs_and_the_model_reads_the_reason(machine: Machine) -> None:
    run = machine.begin({"tools": [BASH]}, {"text": "Done."})
    run.answer(run.question(), "deny", message="Use the other tool.")
    events = run.end()
    assert not (run.folder / "made-by-bash").exists()
    ((text, is_error),) = results(events)
    assert is_error
    assert "Use the other tool." in text
    assert events[-1].name == "complete"


def test_an_edited_call_runs_as_it_was_edited(machine: Machine) -> None:
    run = machine.begin({"tools": [BASH]}, {"text": "Done."})
    question = run.question()
    run.answer(question, "allow", updatedInput={"command": "touch edited", "description": "d"})
    run.end()
    assert (run.folder / "edited").exists()
    assert not (run.folder / "made-by-bash").exists()


def test_a_call_outside_the_workspace_is_asked_about_with_the_reason(machine: Machine, tmp_path: Path) -> None:
    target = tmp_path / "outside.txt"
    write = {"name": "Write", "input": {"file_path": str(target), "content": "x\n"}}
    run = machine.begin({"tools": [write]}, {"text": "Done."})
    question = run.question()
    assert "outside" in question["reason"]
    assert not target.exists()
    run.answer(question, "allow")
    run.end()
    assert target.read_text() == "x\n"


def test_an_edit_inside_the_workspace_asks_nobody(machine: Machine) -> None:
    run = machine.begin({"tools": [{"name": "Bash", "input": {"command": "ls", "description": "d"}}]}, {"text": "x"})
    run.answer(run.question(), "deny")
    run.end()
    target = machine.occ.home / "workspaces" / f"work-{machine.runs + 1}" / "b.txt"
    write = {"name": "Write", "input": {"file_path": str(target), "content": "x\n"}}
    events = machine.begin({"tools": [write]}, {"text": "Done."}).end()
    assert "approval" not in names(events)
    assert target.read_text() == "x\n"


def test_a_question_of_the_model_gets_the_person_s_answer(machine: Machine) -> None:
    options = [{"label": "Red", "description": "warm"}, {"label": "Blue", "description": "cold"}]
    asked = {"question": "Which colour?", "header": "Colour", "options": options, "multiSelect": False}
    run = machine.begin({"tools": [{"name": "AskUserQuestion", "input": {"questions": [asked]}}]}, {"text": "Done."})
    question = run.question()
    assert question["kind"] == "question"
    with pytest.raises(Refused) as refused:
        run.answer(question, "allow")
    assert refused.value.code == "INVALID_REQUEST"
    assert run.answer(question, "allow", answers={"Which colour?": "Blue"})["state"] == "answered"
    ((text, is_error),) = results(run.end())
    assert not is_error
    assert "Blue" in text


def test_full_runs_a_tool_unasked_and_edit_does_not_have_it(machine: Machine) -> None:
    run = machine.begin({"tools": [BASH]}, {"text": "Done."}, permissions="full")
    events = run.end()
    assert "approval" not in names(events)
    assert (run.folder / "made-by-bash").exists()
    run = machine.begin({"tools": [BASH]}, {"text": "Done."}, permissions="edit")
    assert results(run.end())[0][1]
    assert not (run.folder / "made-by-bash").exists()


def test_the_first_answer_wins_and_the_same_again_changes_nothing(machine: Machine) -> None:
    run = machine.begin({"tools": [BASH]}, {"text": "Done."})
    question = run.question()
    for body in ({"decision": "allow"}, {"decision": "allow", "inputHash": "0" * 64}):
        with pytest.raises(Refused) as refused:
            machine.call("POST", f"/approvals/{question['approvalId']}", body)
        assert refused.value.code == "INVALID_REQUEST"
    for _ in range(2):
        assert run.answer(question, "deny", message="no")["state"] == "denied"
    with pytest.raises(Refused) as refused:
        run.answer(question, "allow")
    assert (refused.value.status, refused.value.code) == (409, "APPROVAL_CLOSED")
    run.end()
    assert not (run.folder / "made-by-bash").exists()


def test_a_replayed_or_forged_answer_lets_no_later_call_of_the_same_input_run(machine: Machine) -> None:
    call = {"name": "Bash", "input": {"command": "echo ran >> count", "description": "d"}}
    run = machine.begin({"tools": [call]}, {"tools": [call]}, {"text": "Done."})
    first = run.question()
    forged = first | {"approvalId": "approval-of-nobody"}
    with pytest.raises(Refused) as refused:
        run.answer(forged, "allow")
    assert refused.value.code == "APPROVAL_NOT_FOUND"
    run.answer(first, "allow")
    second = run.question()
    assert second["inputHash"] == first["inputHash"]
    assert run.answer(first, "allow")["state"] == "allowed"  # again
    assert machine.call("GET", f"/approvals/{second['approvalId']}")["state"] == "open"
    run.answer(second, "deny")
    assert [is_error for _, is_error in results(run.end())] == [True]  # that of the first came before
    assert (run.folder / "count").read_text() == "ran\n"


def test_reads_outside_the_workspace_are_open_at_once_and_each_gets_its_own_answer(
    machine: Machine, tmp_path: Path
) -> None:
    """The CLI asks about calls that only read together."""
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text(f"TEXT-{number}\n")
    calls = [{"name": "Read", "input": {"file_path": str(tmp_path / f"{number}.txt")}} for number in range(3)]
    run = machine.begin({"tools": calls}, {"text": "Done."})
    questions = {question["input"]["file_path"]: question for question in (run.question() for _ in range(3))}
    for number, decision in ((2, "allow"), (0, "deny"), (1, "allow")):
        run.answer(questions[str(tmp_path / f"{number}.txt")], decision)
    events = run.end()
    assert events[-1].name == "complete"
    read = "".join(text for text, is_error in results(events) if not is_error)
    assert ["TEXT-0" in read, "TEXT-1" in read, "TEXT-2" in read] == [False, True, True]


def test_processes_that_commands_leave_behind_end_with_the_run(machine: Machine) -> None:
    left = "sleep 98766"
    leave = {"name": "Bash", "input": {"command": f"(setsid nohup {left} >/dev/null 2>&1 &)", "description": "d"}}
    stay = {
        "name": "Bash",
        "input": {"command": f"trap '' TERM INT HUP; touch here; {left}; {left}", "description": "d"},
    }
    run = machine.begin({"tools": [leave]}, {"text": "Done."}, permissions="full")
    assert run.end()[-1].name == "complete"
    mark = f"OCC_EXECUTION_ID={run.execution_id}\0".encode()
    wait_until(lambda: not processes_with(mark), "the processes of the first run to be gone")
    run = machine.begin({"tools": [leave]}, {"tools": [stay]}, {"text": "Done."}, permissions="full")
    next(run.events)  # it is sent when its first event is read
    wait_until((run.folder / "here").exists, "the command to run")
    machine.call("POST", f"/executions/{run.execution_id}/cancel")
    assert run.end()[-1].data["code"] == "EXECUTION_CANCELLED"
    mark = f"OCC_EXECUTION_ID={run.execution_id}\0".encode()
    wait_until(lambda: not processes_with(mark), "the processes of the second run to be gone")


def test_a_cancel_withdraws_what_is_open(machine: Machine) -> None:
    run = machine.begin({"tools": [BASH]}, {"text": "Done."})
    question = run.question()
    machine.call("POST", f"/executions/{run.execution_id}/cancel")
    assert run.end()[-1].data["code"] == "EXECUTION_CANCELLED"
    assert machine.call("GET", f"/approvals/{question['approvalId']}")["state"] == "withdrawn"
    with pytest.raises(Refused) as refused:
        run.answer(question, "allow")
    assert refused.value.code == "APPROVAL_CLOSED"
    assert not (run.folder / "made-by-bash").exists()


def test_the_time_limit_does_not_count_while_a_person_is_asked(machine: Machine) -> None:
    begun = time.monotonic()
    machine.begin({"text": "x"}, permissions="full").end()
    limit = max(6.0, 4 * (time.monotonic() - begun))  # the CLI itself is silent for longer on a machine that is busy
    run = machine.begin({"tools": [BASH]}, {"text": "Done."}, idleTimeoutSeconds=limit)
    question = run.question()
    asked = time.monotonic()
    machine.begin({"text": "x", "first_delay": limit + 0.5}, permissions="edit").end()
    assert time.monotonic() > asked + limit
    run.answer(question, "allow")
    assert run.end()[-1].name == "complete"


def test_a_secret_of_the_machine_is_not_shown_and_such_an_input_is_not_edited(machine: Machine) -> None:
    call = {"name": "Bash", "input": {"command": f"echo {SECRET} | wc -c > size", "description": "d"}}
    run = machine.begin({"tools": [call]}, {"text": "Done."})
    question = run.question()
    assert question["redacted"]
    assert SECRET not in json.dumps(question)
    with pytest.raises(Refused) as refused:
        run.answer(question, "allow", updatedInput={"command": "echo [redacted]", "description": "d"})
    assert (refused.value.status, refused.value.code) == (409, "INPUT_REDACTED")
    run.answer(question, "allow")
    run.end()
    assert (run.folder / "size").read_text().strip() == str(len(SECRET) + 1)  # the whole command ran


def test_an_input_that_is_too_large_to_be_shown_never_runs(machine: Machine) -> None:
    call = {"name": "Bash", "input": {"command": "touch made-by-bash #" + "x" * 1_000_000, "description": "d"}}
    run = machine.begin({"tools": [call]}, {"text": "Done."})
    events = run.end()
    assert "approval" not in names(events)
    assert "too large" in results(events)[0][0]
    assert not (run.folder / "made-by-bash").exists()


@pytest.mark.skipif(not os.environ.get("TEST_ALL"), reason="tried by `make test-all`; test_permissions.py in both")
@pytest.mark.parametrize("release", [real_cli.VERSION], indirect=True)  # the bound is OCC's own
def test_a_model_that_asks_all_the_time_is_asked_about_two_hundred_times(machine: Machine) -> None:
    calls = [{"name": "Bash", "input": {"command": f"touch made-{n}", "description": "d"}} for n in range(ASKS)]
    run = machine.begin({"tools": calls}, {"text": "Done."})
    events, asked = [], 0
    for event in run.events:
        events.append(event)
        if event.name == "approval":
            asked += 1
            run.answer(event.data, "deny")
    assert asked == approvals.MOST_ASKED
    assert [is_error for _, is_error in results(events)] == [True] * ASKS
    assert events[-1].name == "complete"
    assert list(run.folder.glob("made-*")) == []


def test_a_call_of_a_sub_agent_is_asked_about(machine: Machine) -> None:
    inner = reply({"tools": [BASH]}, {"text": "Inner."})
    call = {"description": "d", "prompt": f"Do it. {inner}", "subagent_type": "general-purpose"}
    run = machine.begin({"tools": [{"name": "Agent", "input": call}]}, {"text": "Outer."})
    question = run.question()
    assert question["tool"] in ("Agent", "Task")
    run.answer(question, "allow")
    question = run.question()
    assert question["tool"] == "Bash"
    assert question["subagent"]
    run.answer(question, "deny")
    run.end()
    assert not (run.folder / "made-by-bash").exists()


def test_a_grant_in_the_user_s_settings_does_not_skip_the_person(machine: Machine) -> None:
    settings = Path(machine.occ.environment["HOME"]) / ".claude" / "settings.json"
    settings.parent.mkdir(exist_ok=True)
    granted = {"allow": ["Bash"], "defaultMode": "bypassPermissions"}
    settings.write_text(json.dumps({"permissions": granted, "disableAllHooks": True}))
    try:
        run = machine.begin({"tools": [BASH]}, {"text": "Done."})
        run.answer(run.question(), "deny")
        run.end()
        assert not (run.folder / "made-by-bash").exists()
    finally:
        settings.unlink()


def test_the_commands_list_show_and_answer(machine: Machine) -> None:
    run = machine.begin({"tools": [BASH]}, {"text": "Done."})
    question = run.question()
    listed = machine.occ.command("approvals").stdout
    assert question["approvalId"] in listed
    assert "touch made-by-bash" in listed
    done = machine.occ.command("approve", question["approvalId"])
    assert "touch made-by-bash && echo done" in done.stdout
    assert "is allowed" in done.stderr
    run.end()
    assert (run.folder / "made-by-bash").exists()
    assert machine.occ.command("approvals").stdout == f"{sentences.NOTHING_WAITS_FOR_A_PERSON}\n"
    run = machine.begin({"tools": [BASH]}, {"text": "Done."})
    machine.occ.command("deny", run.question()["approvalId"], "not that")
    assert "not that" in results(run.end())[0][0]
    options = [{"label": label, "description": "d"} for label in ("Red", "Blue")]
    asked = {"question": "Which colour?", "header": "C", "options": options, "multiSelect": False}
    run = machine.begin({"tools": [{"name": "AskUserQuestion", "input": {"questions": [asked]}}]}, {"text": "Done."})
    machine.occ.command("answer", run.question()["approvalId"], "Green")
    assert "Green" in results(run.end())[0][0]


def test_several_calls_at_once_are_asked_one_by_one(machine: Machine) -> None:
    calls = [{"name": "Bash", "input": {"command": f"touch made-{n}", "description": "d"}} for n in range(3)]
    run = machine.begin({"tools": calls}, {"text": "Done."})
    allowed = set()
    for decision in ("allow", "deny", "allow"):
        question = run.question()
        run.answer(question, decision)
        if decision == "allow":
            allowed.add(question["input"]["command"].removeprefix("touch "))
    run.end()
    assert {path.name for path in run.folder.glob("made-*")} == allowed
    assert len(allowed) == 2


def test_a_plan_reads_and_waits_and_is_carried_out_once_it_is_approved(machine: Machine, tmp_path: Path) -> None:
    version = machine.occ.client.health()["claude"]["version"]
    target = machine.occ.home / "workspaces" / f"work-{machine.runs + 1}" / "planned.txt"
    write = {"name": "Write", "input": {"file_path": str(target), "content": "x\n"}}
    leave = {"name": "ExitPlanMode", "input": {"plan": "Write a file."}}
    turns = ({"tools": [write]}, {"tools": [leave]}, {"tools": [leave]}, {"tools": [write]}, {"text": "x"})
    run = machine.begin(*turns, permissions="plan")
    if version == "2.1.197":
        assert run.end()[-1].data["code"] == "CLAUDE_ERROR"
        return
    question = run.question()
    assert question["kind"] == "plan"
    run.answer(question, "deny", message="Think again.")
    question = run.question()
    assert question["kind"] == "plan"
    assert not target.exists()
    run.answer(question, "allow")
    events = run.end()
    assert events[-1].name == "complete"
    assert target.read_text() == "x\n"
    assert any("Think again." in text for text, _ in results(list(machine.occ.client.events(run.execution_id))))


def test_a_call_that_nobody_answers_is_denied_and_never_runs(tmp_path: Path, real_claude: Path) -> None:
    with serve() as model, occ_in(tmp_path, HOME=str(tmp_path), OCC_WORKERS="1") as occ:
        settings = {"OCC_CLAUDE_BIN": str(real_claude), "ANTHROPIC_BASE_URL": model.url, "ANTHROPIC_API_KEY": FAKE_KEY}
        occ.start(**settings, OCC_HOLD_SECONDS="0.5")
        machine = Machine(occ, model)
        run = machine.begin({"tools": [BASH, BASH]}, {"text": "Done."})  # two at once cannot be parked
        question = run.question()
        resolved = next(event for event in run.events if event.name == "approval_resolved")
        assert resolved.data["state"] == "expired"
        machine.call("POST", f"/executions/{run.execution_id}/cancel")
        run.end()
        assert not (run.folder / "made-by-bash").exists()
        assert machine.call("GET", f"/approvals/{question['approvalId']}")["state"] == "expired"
        with pytest.raises(Refused) as refused:
            run.answer(question, "allow")
        assert refused.value.code == "APPROVAL_CLOSED"
        with pytest.raises(Refused) as refused:
            machine.begin({"text": "x"}, permissions="full").end()
        assert (refused.value.status, refused.value.code) == (403, "PERMISSION_CEILING")


def test_the_last_worker_is_not_held_while_others_wait(tmp_path: Path, release: str, real_claude: Path) -> None:
    with serve() as model, occ_in(tmp_path, HOME=str(tmp_path), OCC_WORKERS="1") as occ:
        settings = {"OCC_CLAUDE_BIN": str(real_claude), "ANTHROPIC_BASE_URL": model.url, "ANTHROPIC_API_KEY": FAKE_KEY}
        occ.start(**settings)
        wait_until(lambda: occ.client.health()["claude"]["version"], "the version to be known")
        machine = Machine(occ, model)
        run = machine.begin({"tools": [BASH]}, {"text": "Done."})
        question = run.question()
        assert machine.begin({"text": "Mine."}, permissions="edit").end()[-1].name == "complete"
        assert not (run.folder / "made-by-bash").exists()
        closed = machine.call("GET", f"/approvals/{question['approvalId']}")["state"]
        assert closed == ("expired" if release == "2.1.197" else "open")  # denied, or parked
        if closed == "open":
            run.answer(question, "deny")
        assert run.end()[-1].name == "complete"
