"""Processes of the real Claude Code CLI that are kept for the next turn, each release that can be."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import real_cli, sentences
from tests.conftest import Occ, is_gone, names, occ_in, output, wait_until
from tests.model_api import FAKE_KEY, ModelApi
from tests.spare_processes import one_spare
from tests.test_approvals import Machine, Running, results
from tests.test_kept import kept
from tests.test_real_cli import reply

pytestmark = pytest.mark.real_cli

SETTINGS = {
    "OCC_WORKERS": "1",
    "OCC_WARM_PROCESSES": "2",
    "OCC_PERMISSIONS": "full",
    "OCC_TOOLS": "Read,Edit,Write,Grep,Glob,Bash",
    "OCC_DENY": "Bash(touch never)",
    "OCC_HOLD_SECONDS": "1",
}


@pytest.fixture(scope="module", params=real_cli.deferring())
def release(request: pytest.FixtureRequest) -> str:
    """A release that can start ahead."""
    return str(request.param)


@contextlib.contextmanager
def agent(folder: Path, program: Path, model: ModelApi, **settings: str) -> Iterator[Occ]:
    """An agent with Bash, but for one command, that may keep one process."""
    reach = {"ANTHROPIC_BASE_URL": model.url, "ANTHROPIC_API_KEY": FAKE_KEY}
    with occ_in(folder, program=program, **(SETTINGS | settings), **reach) as occ:
        occ.start()
        occ.workspace("first")
        one_spare(occ)  # from then on the version of the CLI is known
        # In a new home the CLI makes folders, and then is not kept.
        assert occ.run("Hello. " + reply({"text": "hi"}), "first")[-1].name == "complete"
        yield occ


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory, real_claude: Path, served_model: ModelApi) -> Iterator[Occ]:
    with agent(tmp_path_factory.mktemp("warm"), real_claude, served_model) as occ:
        yield occ


@pytest.fixture(scope="module")
def cold(tmp_path_factory: pytest.TempPathFactory, real_claude: Path, served_model: ModelApi) -> Iterator[Occ]:
    with agent(tmp_path_factory.mktemp("cold"), real_claude, served_model, OCC_KEEP_SECONDS="0") as occ:
        yield occ


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory, real_claude: Path, served_model: ModelApi) -> Iterator[Occ]:
    """An agent without rules that holds a call until it is answered."""
    settings = {"OCC_HOLD_SECONDS": "600", "OCC_TOOLS": "Read,Edit,Write,Grep,Glob", "OCC_DENY": ""}
    with agent(tmp_path_factory.mktemp("patient"), real_claude, served_model, **settings) as occ:
        yield occ


def workspace(occ: Occ, name: str) -> str:
    return occ.workspace(name, {"README.md": "A small project.\n", "CLAUDE.md": "Speak like a pirate.\n"})


def served(occ: Occ) -> int:
    """How many executions a kept process has served."""
    return (occ.home / "logs/worker.log").read_text().count(sentences.HAS_THE_KEPT_PROCESS)


def bash(command: str) -> dict[str, object]:
    return {"name": "Bash", "input": {"command": command, "description": "d"}}


def two_turns(occ: Occ, model: ModelApi, name: str, permissions: str) -> list[object]:
    """Run two turns with tools of each kind, and return all that is seen of the second one, without ids and times."""
    work, spent = occ.home / "workspaces" / workspace(occ, name), occ.client.usage()["total"]["costUsd"]
    one, two = f"{name}-1", f"{name}-2"
    read = {"name": "Read", "input": {"file_path": str(work / "README.md")}}
    edit = {"file_path": str(work / "README.md"), "old_string": "small", "new_string": "large"}
    write = {"name": "Write", "input": {"file_path": str(work / "made.txt"), "content": "made\n"}}
    outside = {"name": "Write", "input": {"file_path": "/proc/out.txt", "content": "x"}}
    turns = ({"text": "a", "tools": [read]}, {"text": "b"})
    first = occ.run("First. " + reply(*turns), name, executionId=one, permissions=permissions)
    assert first[-1].name == "complete"
    model.forget()
    turns = (
        {"text": "a", "tools": [{"name": "Edit", "input": edit}]},
        {"text": "b", "tools": [write]},
        {"text": "c", "tools": [bash("touch never")]},
        {"text": "d", "tools": [bash("touch often")]},
        {"text": "e", "tools": [outside]},
        {"text": "f", "chunks": 3},
    )
    events = occ.run("Second. " + reply(*turns), name, executionId=two, continues=one, permissions=permissions)
    final = events[-1].data
    changes = wait_until(lambda: occ.client.execution(two).get("changes"), "its changes")
    asked = [request["body"]["messages"][-1] for request in model.requests() if request["path"] == "/v1/messages"]
    results = [event.data["isError"] for event in events if event.name == "tool" and "isError" in event.data]
    denials = [denial["tool_name"] for denial in final["permissionDenials"]]
    figures = (final["costUsd"], final["usage"], final["numTurns"], final["exitCode"], final["sessionId"] is not None)
    total = round(occ.client.usage()["total"]["costUsd"] - spent, 6)
    same = occ.client.execution(one)["sessionId"] == final["sessionId"]
    return [names(events), output(events), results, denials, figures, total, same, changes, len(asked)]


@pytest.mark.parametrize("permissions", ["edit", "full"])
def test_a_kept_process_does_what_a_new_one_does(warm: Occ, cold: Occ, model: ModelApi, permissions: str) -> None:
    seen, before = [], served(warm)
    for occ in (warm, cold):
        seen.append(two_turns(occ, model, f"tools-{permissions}", permissions))
    assert seen[0] == seen[1]
    assert (served(warm) - before, served(cold)) == (1, 0)


def test_turns_of_a_kept_process_are_in_the_session_that_another_one_resumes(warm: Occ, model: ModelApi) -> None:
    former: dict[str, Any] = {}
    work, before = workspace(warm, "session"), served(warm)
    for number, options in enumerate(({}, {}, {}, {"maxTurns": 3}, {"fork": True}, {})):
        model.forget()
        name = f"session-{number}"
        prompt = f"Prompt {number}. " + reply({"text": f"Answer {number}."})
        assert warm.run(prompt, work, executionId=name, **former, **options)[-1].name == "complete"
        asked = json.dumps([request["body"] for request in model.requests()])
        assert all(f"Answer {earlier}." in asked for earlier in range(number))
        former = {"continues": name}
    assert served(warm) - before == 2  # not the one with a limit, the fork, and those after them


def test_a_turn_runs_once_when_its_kept_process_was_killed(warm: Occ, model: ModelApi) -> None:
    work, before = workspace(warm, "killed"), served(warm)
    one = warm.run("One. " + reply({"text": "First."}), work, executionId="killed-1")
    assert one[-1].name == "complete"
    (process,) = kept(warm)
    process.kill()
    model.forget()
    events = warm.run("Two. " + reply({"text": "Second."}), work, executionId="killed-2", continues="killed-1")
    assert (names(events)[-1], output(events)) == ("complete", "Second.")
    asked = [request["body"] for request in model.requests() if request["path"] == "/v1/messages"]
    assert len(asked) == 1
    assert "First." in json.dumps(asked)
    assert served(warm) == before
    assert is_gone(process)


def test_a_folder_to_which_a_command_changed_is_left_with_the_turn(warm: Occ, model: ModelApi) -> None:
    work, before = workspace(warm, "changed"), served(warm)
    one = reply({"text": "a", "tools": [bash("mkdir sub; cd sub")]}, {"text": "b"})
    assert warm.run("One. " + one, work, executionId="changed-1")[-1].name == "complete"
    two = reply({"text": "a", "tools": [bash("touch here")]}, {"text": "b"})
    assert warm.run("Two. " + two, work, executionId="changed-2", continues="changed-1")[-1].name == "complete"
    assert (warm.home / "workspaces/changed/here").exists()
    assert served(warm) == before


def test_a_turn_of_a_kept_process_that_is_parked_goes_on_in_another(warm: Occ, model: ModelApi) -> None:
    work, before = workspace(warm, "parked"), served(warm)
    one = warm.run("One. " + reply({"text": "First."}), work, executionId="parked-1", permissions="ask")
    assert one[-1].name == "complete"
    (process,) = kept(warm)
    options = [{"label": label, "description": "d"} for label in ("Red", "Blue")]
    asked = {"question": "Which colour?", "header": "C", "options": options, "multiSelect": False}
    two = reply({"tools": [{"name": "AskUserQuestion", "input": {"questions": [asked]}}]}, {"text": "Done."})
    following = {"executionId": "parked-2", "continues": "parked-1", "permissions": "ask"}
    events = warm.client.execute(work, "Two. " + two, **following)
    run = Running(Machine(warm, model), "parked-2", warm.home / "workspaces" / work, events)
    question = run.question()
    assert next(event for event in run.events if event.name in ("parked", "complete", "error")).name == "parked"
    assert served(warm) == before + 1
    assert is_gone(process)
    assert kept(warm) == []
    run.answer(question, "allow", answers={"Which colour?": "Blue"})
    ((text, is_error),) = results(run.end())
    assert "Blue" in text
    assert not is_error
    assert served(warm) == before + 1


def outside(path: Path) -> str:
    """The script of a turn that writes outside its workspace."""
    return reply({"text": "a", "tools": [{"name": "Write", "input": {"file_path": str(path), "content": "x"}}]}, DONE)


DONE = {"text": "Done."}


@dataclasses.dataclass
class Conversation:
    """A conversation with an agent, in a workspace of the same name."""

    occ: Occ
    model: ModelApi
    name: str
    turns: int = 0

    def begin(self, prompt: str, permissions: str) -> Running:
        """Send the next turn."""
        former = {"continues": f"{self.name}-{self.turns}"} if self.turns else {}
        self.turns += 1
        turn = f"{self.name}-{self.turns}"
        events = self.occ.client.execute(self.name, prompt, executionId=turn, permissions=permissions, **former)
        return Running(Machine(self.occ, self.model), turn, self.occ.home / "workspaces" / self.name, events)

    def turn(self, prompt: str, permissions: str) -> list[Any]:
        """Run the next turn to its end."""
        events = self.begin(prompt, permissions).end()
        assert events[-1].name == "complete"
        return events


@pytest.fixture
def talk(patient: Occ, model: ModelApi) -> Conversation:
    return Conversation(patient, model, workspace(patient, f"w{uuid.uuid4().hex}"))


def test_a_person_answers_in_a_kept_process_and_the_answer_is_for_that_call_alone(
    talk: Conversation, tmp_path: Path
) -> None:
    before = served(talk.occ)
    talk.turn("One. " + reply(DONE), "ask")
    (process,) = kept(talk.occ)
    target = tmp_path / "outside.txt"
    for decision, exists in (("deny", False), ("allow", True), ("deny", False)):
        run = talk.begin("Again. " + outside(target), "ask")
        question = run.question()
        assert not target.exists()
        run.answer(question, decision)
        events = run.end()
        assert [is_error for _, is_error in results(events)] == [not exists]
        assert target.exists() is exists
        target.unlink(missing_ok=True)
        assert kept(talk.occ) == [process]
    assert served(talk.occ) == before + 3


def test_a_turn_inherits_nothing_from_one_with_other_permissions(talk: Conversation, tmp_path: Path) -> None:
    """The CLI shows the model tools of earlier turns, and refuses them."""
    before, outside = served(talk.occ), tmp_path / "outside.txt"
    made = talk.occ.home / "workspaces" / talk.name / "made"
    write = {"name": "Write", "input": {"file_path": str(outside), "content": "x"}}
    script = reply({"text": "a", "tools": [write]}, {"text": "b", "tools": [bash(f"touch {made}")]}, DONE)
    for permissions in ("edit", "ask", "full", "ask", "edit"):
        run = talk.begin(f"Turn {talk.turns}. {script}", permissions)
        if permissions != "edit":
            run.answer(run.question(), "allow" if permissions == "full" else "deny")  # outside the workspace
        if permissions == "ask":
            run.answer(run.question(), "deny")
        assert run.end()[-1].name == "complete"
        assert (outside.exists(), made.exists()) == (permissions == "full", permissions == "full")
        outside.unlink(missing_ok=True)
        made.unlink(missing_ok=True)
    assert served(talk.occ) == before
