"""Branches of conversations: forks, and returns to an earlier turn with the files of that turn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from occ_app.database.database import Database
from occ_app.errors import InvalidRequest, NotFound
from occ_app.executions import branches, conversations, follow_ups, lifecycle
from occ_app.executions import queries as executions
from occ_app.executions.records import Execution, Request
from tests.conftest import Occ, occ_in, wait_until
from tests.hub_app import hub_app
from tests.model_api import FAKE_KEY, ModelApi, serve
from tests.test_conversations import SESSION, accept, rows, run
from tests.test_owners import add_workspace

__all__ = ["rows"]  # the fixture

FORKED = "0b0e4f3a-2222-4222-8333-444455556666"


def branch(rows: Database, execution_id: str, continues: str, **more: Any) -> Execution:
    request = Request(execution_id, "", "x", 9, 9, None, None, None, None, "h", continues=continues, **more)
    return lifecycle.create(rows, request, max_queue=100)[0]


@pytest.fixture
def three(rows: Database) -> Database:
    """A conversation of three turns that are over."""
    accept(rows, "one", "alpha")
    accept(rows, "two", continues="one")
    accept(rows, "three", continues="two")
    for _ in range(3):
        run(rows, SESSION)
    return rows


def test_a_fork_resumes_the_session_in_a_conversation_of_its_own(three: Database) -> None:
    forked = branch(three, "fork", "two", fork=True)
    assert forked.conversation == "fork"
    accept(three, "after", continues="fork")
    accept(three, "four", continues="three")
    follow_ups.resume(three, "one")
    assert run(three, FORKED).resume_session_id == SESSION
    assert run(three, FORKED).resume_session_id == FORKED  # `after`
    assert run(three, SESSION).resume_session_id == SESSION  # `four` goes on in the first conversation
    assert [turn.execution_id for turn in conversations.get(three, "fork")[1]] == ["fork", "after"]


def test_a_fork_is_not_paused_by_the_conversation_it_left(rows: Database) -> None:
    accept(rows, "one", "alpha")
    branch(rows, "fork", "one", fork=True)
    run(rows, SESSION, "failed")
    assert executions.get(rows, "fork").paused is None
    with pytest.raises(InvalidRequest):
        follow_ups.change(rows, "fork", {"paused": True})


def test_only_a_turn_of_the_conversation_that_is_over_can_be_returned_to(three: Database) -> None:
    accept(three, "other", "alpha")
    accept(three, "four", continues="three")
    for turn in ("other", "four"):
        with pytest.raises(InvalidRequest):
            branch(three, "x", "three", rewind_to=turn)
    with pytest.raises(NotFound):
        branch(three, "x", "three", rewind_to="unknown")
    back = branch(three, "back", "three", rewind_to="one")
    assert back.conversation == "one"
    assert back.rewind_to == executions.get(three, "one").number


def test_a_hub_names_the_session_and_the_turn(three: Database) -> None:
    request = Request("back", "alpha", "x", 9, 9, None, None, None, SESSION, "h", rewind_to="one")
    back, _ = lifecycle.create(three, request, max_queue=100)
    assert (back.conversation, back.rewind_to) == ("one", executions.get(three, "one").number)
    other = Request("no", "beta", "x", 9, 9, None, None, None, SESSION, "h", rewind_to="one")
    with pytest.raises(InvalidRequest):
        lifecycle.create(three, other, max_queue=100)


def test_a_turn_that_was_left_behind_cannot_be_returned_to(three: Database) -> None:
    branch(three, "back", "three", rewind_to="one")
    back = run(three, SESSION)
    found = branches.turn(three, back)
    assert found is not None
    assert [turn.execution_id for turn in branches.turns_after(three, found, back)] == ["three", "two"]
    for turn, there in (("two", False), ("one", True), ("back", True)):
        execution = branch(three, f"to-{turn}", "back", rewind_to=turn)
        assert (branches.turn(three, execution) is not None) is there, turn
    for turn in ("two", "one", "back"):
        lifecycle.cancel(three, f"to-{turn}", "EXECUTION_CANCELLED", "x")
    fork = branch(three, "fork", "back", fork=True, rewind_to="one")
    assert run(three, FORKED).number == fork.number
    again = branch(three, "again", "back", rewind_to="back")
    assert branches.turn(three, again) is not None  # a fork leaves nothing behind
    assert fork.conversation == "fork"


def test_the_request_is_checked(tmp_path: Path) -> None:
    with hub_app(tmp_path) as hub:
        ada, bob = hub.key("ada", "client"), hub.key("bob", "client")
        add_workspace(hub, "ada", "work")
        first = {"executionId": "one", "workspaceId": "work", "prompt": "x"}
        hub.call("POST", "/execute", ada, json=first, environ_overrides={"gunicorn.socket": None}).close()
        for body, status in (
            ({"fork": True, "workspaceId": "work"}, 422),
            ({"rewindTo": "one", "workspaceId": "work"}, 422),
            ({"rewindTo": "one", "continues": "one"}, 422),  # it is not over
            ({"fork": "yes", "continues": "one"}, 422),
        ):
            assert (
                hub.call("POST", "/execute", ada, json={"executionId": "x", "prompt": "x", **body}).status_code
                == status
            )
        reply = hub.call(
            "POST", "/execute", bob, json={"executionId": "x", "prompt": "x", "continues": "one", "fork": True}
        )
        assert reply.status_code == 404


# -- with the real CLI


class Talk:
    """A conversation with the real CLI, whose model writes files."""

    def __init__(self, occ: Occ, model: ModelApi) -> None:
        self.occ, self.model = occ, model
        occ.workspace("work", {"a.txt": "a\n"})
        self.folder = occ.home / "workspaces" / "work"

    def say(self, name: str, *tools: Any, **options: Any) -> dict[str, Any]:
        """Run a turn; returns its record."""
        calls = [
            {"name": "Write", "input": {"file_path": str(self.folder / path), "content": text}} for path, text in tools
        ]
        script = {"turns": [*([{"tools": calls}] if calls else []), {"text": f"ANSWER-{name}"}]}
        workspace = None if "continues" in options else "work"
        prompt = f"PROMPT-{name} @reply{json.dumps(script)}"
        list(self.occ.client.execute(workspace, prompt, executionId=name, **options))
        # An edit before the last snapshot of a run would count as the run's.
        wait_until(lambda: self.occ.client.execution(name)["changesReason"] != "pending", "its changes to be known")
        return self.occ.client.execution(name)

    def known(self) -> str:
        """What the model was sent last."""
        bodies = [each["body"] for each in self.model.requests() if each["path"] == "/v1/messages"]
        return json.dumps(bodies[-1]["messages"])

    def files(self) -> dict[str, str]:
        return {path.name: path.read_text() for path in self.folder.iterdir()}


@pytest.mark.real_cli
def test_a_rewound_turn_forgets_the_later_ones_and_restores_their_files(tmp_path: Path, real_claude: Path) -> None:
    with serve() as model, occ_in(tmp_path, HOME=str(tmp_path), OCC_WORKERS="1") as occ:
        occ.start(OCC_CLAUDE_BIN=str(real_claude), ANTHROPIC_BASE_URL=model.url, ANTHROPIC_API_KEY=FAKE_KEY)
        talk = Talk(occ, model)
        one = talk.say("one", ("b.txt", "one\n"))
        talk.say("two", ("b.txt", "two\n"), continues="one")
        talk.say("three", ("c.txt", "three\n"), continues="two")
        assert talk.files() == {"a.txt": "a\n", "b.txt": "two\n", "c.txt": "three\n"}

        # A fork knows all that was said, and changes no file by itself.
        fork = talk.say("fork", continues="three", fork=True)
        assert fork["state"] == "succeeded"
        assert fork["conversationId"] == "fork"
        assert fork["sessionId"] != one["sessionId"]
        assert "PROMPT-three" in talk.known()

        # Back to the first turn: the others are gone, in the conversation and in the files.
        back = talk.say("back", continues="three", rewindTo="one")
        assert (back["state"], back["sessionId"], back["conversationId"]) == ("succeeded", one["sessionId"], "one")
        assert "PROMPT-one" in talk.known()
        assert "PROMPT-two" not in talk.known()
        assert talk.files() == {"a.txt": "a\n", "b.txt": "one\n"}
        assert back["changes"] is None or back["changes"]["files"] == 0

        # The conversation goes on from there.
        talk.say("next", continues="back")
        assert "PROMPT-back" in talk.known()
        assert "PROMPT-two" not in talk.known()
        assert talk.say("gone", continues="next", rewindTo="two")["errorCode"] == "SESSION_NOT_FOUND"

        # Files that somebody edited since are kept, and nothing at all is restored.
        talk.say("edit", ("d.txt", "edit\n"), continues="next")
        talk.say("more", ("c.txt", "more\n"), continues="edit")
        (talk.folder / "d.txt").write_text("mine\n")
        before = talk.files()
        assert talk.say("no", continues="more", rewindTo="next")["errorCode"] == "RESTORE_CONFLICT"
        assert talk.files() == before
