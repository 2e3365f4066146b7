"""Follow-ups: executions that continue another are edited, moved, dropped, and paused when a turn fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from occ_app.database.database import Database
from occ_app.errors import Conflict, InvalidRequest, NotFound
from occ_app.executions import conversations, follow_ups, lifecycle
from occ_app.executions import queries as executions
from occ_app.executions.records import Outcome
from occ_app.system.process_identity import own_identity
from tests import sentences
from tests.conftest import Occ, steps
from tests.hub_app import hub_app
from tests.test_conversations import SESSION, accept, rows, run
from tests.test_owners import add_workspace

__all__ = ["rows"]  # the fixture


@pytest.fixture
def chat(rows: Database) -> Database:
    """A conversation whose first turn is over and whose three follow-ups wait."""
    accept(rows, "first", "alpha")
    run(rows, SESSION)
    for name, former in (("a", "first"), ("b", "a"), ("c", "b")):
        accept(rows, name, continues=former)
    return rows


def claimed(rows: Database) -> str | None:
    execution = lifecycle.claim(rows, own_identity())
    return None if execution is None else execution.execution_id


def turns(rows: Database) -> list[str]:
    return [turn.execution_id for turn in conversations.get(rows, "first")[1]]


def end(rows: Database, execution_id: str, outcome: Outcome) -> None:
    lifecycle.finish(rows, executions.get(rows, execution_id).number, outcome)


def test_a_follow_up_that_waits_gets_another_prompt_and_one_that_started_does_not(chat: Database) -> None:
    assert follow_ups.change(chat, "a", {"prompt": "another"}).prompt == "another"
    execution = lifecycle.claim(chat, own_identity())
    assert execution is not None
    assert execution.prompt == "another"
    for changes in ({"prompt": "late"}, {"paused": True}, {"before": "b"}, {"before": None}):
        with pytest.raises(Conflict) as refused:
            follow_ups.change(chat, "a", changes)
        assert refused.value.code == "EXECUTION_STARTED"
    assert executions.get(chat, "a").prompt == "another"


@pytest.mark.parametrize(
    ("moved", "before", "order"), [("c", "a", "cab"), ("a", None, "bca"), ("b", "a", "bac"), ("a", "c", "bac")]
)
def test_follow_ups_run_in_the_order_that_a_person_gave_them(
    chat: Database, moved: str, before: str | None, order: str
) -> None:
    follow_ups.change(chat, moved, {"before": before})
    assert turns(chat) == ["first", *order]
    assert [executions.get(chat, name).position for name in order] == [0, 1, 2]
    assert sentences.WHICH_COMES_BEFORE_IT in str(executions.get(chat, order[1]).waits_for)
    for name in order:
        assert claimed(chat) == name
        assert executions.get(chat, name).resume_session_id == SESSION
        end(chat, name, Outcome("succeeded", "complete", {}))


def test_a_follow_up_is_moved_within_its_conversation_alone(chat: Database) -> None:
    accept(chat, "other", "beta")
    accept(chat, "after-other", continues="other")
    for moved, before in (("a", "after-other"), ("a", "first"), ("a", "a"), ("a", "unknown"), ("other", None)):
        with pytest.raises(InvalidRequest):
            follow_ups.change(chat, moved, {"before": before})
    with pytest.raises(InvalidRequest):
        follow_ups.change(chat, "other", {"paused": True})
    assert turns(chat) == ["first", "a", "b", "c"]


def test_nothing_is_changed_if_one_of_the_changes_is_refused(chat: Database) -> None:
    with pytest.raises(InvalidRequest):
        follow_ups.change(chat, "a", {"prompt": "another", "before": "unknown"})
    assert executions.get(chat, "a").prompt == "prompt of a"


@pytest.mark.parametrize("code", ["CLAUDE_ERROR", "WORKER_LOST", "EXECUTION_CANCELLED"])
def test_follow_ups_of_a_turn_that_fails_wait_for_a_person_and_block_nobody(chat: Database, code: str) -> None:
    accept(chat, "other", "beta")
    accept(chat, "same-workspace", "alpha")
    assert claimed(chat) == "a"
    end(chat, "a", Outcome.failure(code, "x"))
    paused = executions.get(chat, "b")
    assert (paused.is_paused, paused.position, paused.state) == (True, None, "queued")
    assert sentences.YOU_TO_RESUME_IT in str(paused.waits_for)
    assert executions.get(chat, "same-workspace").position == 1  # behind `other`, not behind those that are paused
    assert executions.claimable(chat) == 2
    assert {claimed(chat), claimed(chat)} == {"other", "same-workspace"}
    assert claimed(chat) is None
    end(chat, "same-workspace", Outcome.failure("CLAUDE_ERROR", "x"))
    assert follow_ups.resume(chat, "first") == 2
    assert follow_ups.resume(chat, "first") == 0
    assert claimed(chat) == "b"


def test_a_turn_that_succeeds_or_is_dropped_pauses_nothing(chat: Database) -> None:
    lifecycle.cancel(chat, "a", "EXECUTION_CANCELLED", "x")
    assert claimed(chat) == "b"
    end(chat, "b", Outcome("succeeded", "complete", {}))
    assert claimed(chat) == "c"


def test_a_prompt_that_names_the_session_itself_is_not_paused(chat: Database) -> None:
    """Programs that were written before follow-ups send several prompts of a session and expect all to run."""
    accept(chat, "by-session", "alpha", session=SESSION)
    assert claimed(chat) == "a"
    end(chat, "a", Outcome.failure("CLAUDE_ERROR", "x"))
    assert claimed(chat) == "by-session"


def test_one_follow_up_is_paused_and_resumed_alone(chat: Database) -> None:
    assert follow_ups.change(chat, "a", {"paused": True}).is_paused
    assert claimed(chat) == "b"
    assert not follow_ups.change(chat, "a", {"paused": False}).is_paused
    end(chat, "b", Outcome("succeeded", "complete", {}))
    assert claimed(chat) == "a"


def test_follow_ups_of_another_owner_are_not_there(tmp_path: Path) -> None:
    with hub_app(tmp_path) as hub:
        ada, bob = hub.key("ada", "client"), hub.key("bob", "client")
        add_workspace(hub, "ada", "work")
        for body in ({"executionId": "one", "workspaceId": "work"}, {"executionId": "two", "continues": "one"}):
            hub.call(
                "POST", "/execute", ada, json={**body, "prompt": "hello"}, environ_overrides={"gunicorn.socket": None}
            ).close()

        def patch(key: str, body: dict[str, Any], execution_id: str = "two") -> tuple[int, Any]:
            reply = hub.call("PATCH", f"/executions/{execution_id}", key, json=body)
            return reply.status_code, reply.get_json()

        assert patch(bob, {"prompt": "mine"})[0] == 404
        assert hub.call("POST", "/conversations/one/resume", bob).status_code == 404
        assert patch(ada, {"prompt": "mine"})[1]["prompt"] == "mine"
        assert patch(ada, {"paused": True})[1]["paused"] is True
        assert hub.call("POST", "/conversations/one/resume", ada).get_json()["turns"][1]["paused"] is False
        for body in ({}, {"prompt": " "}, {"paused": "yes"}, {"before": "no id!"}, {"model": "other"}):
            assert patch(ada, body)[0] == 422, body
        with pytest.raises(NotFound):
            follow_ups.change(hub.database, "unknown", {"paused": True})


def test_a_follow_up_goes_on_through_the_api_once_a_person_says_so(agent: Occ) -> None:
    agent.workspace("work", {"a.txt": "a"})
    first, _ = agent.under_way(steps({"say": "one"}, {"wait": "go"}, {"result": {"is_error": True}}), "first")
    follow_up = agent.client.execute(None, "and now?", executionId="second", continues="first")
    assert next(follow_up).name == "queued"
    (agent.home / "workspaces" / "work" / "go").write_text("")
    assert list(first)[-1].name == "error"
    assert agent.client.execution("second")["paused"]
    agent.client.call("PATCH", "/executions/second", {"prompt": "and then?", "paused": False})
    assert [event.data["chunk"] for event in follow_up if event.name == "output"] == ["You said: and then?"]
