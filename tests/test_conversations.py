"""Conversations: an execution that continues another takes its session and its workspace, and runs after it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from occ_app.database.database import Database
from occ_app.errors import InvalidRequest, NotFound
from occ_app.executions import conversations, events, follow_ups, lifecycle
from occ_app.executions import queries as executions
from occ_app.executions.records import Execution, Outcome, Request
from occ_app.system.process_identity import own_identity
from tests.conftest import Occ, steps
from tests.databases import make_database
from tests.hub_app import HubApp, hub_app
from tests.test_owners import add_workspace

SESSION = "0b0e4f3a-1111-4222-8333-444455556666"


@pytest.fixture
def rows(tmp_path: Path) -> Iterator[Database]:
    make_database(tmp_path / "occ.db")
    database = Database(tmp_path / "occ.db")
    with database.write() as connection:
        for workspace_id in ("alpha", "beta"):
            connection.execute(
                """
                INSERT INTO workspaces (workspace_id, name, description, path, files, bytes, skipped, created_at,
                    updated_at, generation)
                VALUES (:id, :id, '', '/x', 1, 1, '[]', '2026-01-01', '2026-01-01', 0)
                """,
                {"id": workspace_id},
            )
    yield database
    database.close()


def accept(
    rows: Database,
    execution_id: str,
    workspace_id: str = "",
    *,
    continues: str | None = None,
    session: str | None = None,
    owner: str | None = None,
) -> Execution:
    limits = (9, 9, None, None, None, session)
    request = Request(execution_id, workspace_id, f"prompt of {execution_id}", *limits, "h", owner, owner)
    asked = Request(**{**vars(request), "continues": continues, "visible_to": owner})
    return lifecycle.create(rows, asked, max_queue=100)[0]


def run(rows: Database, session: str | None, state: str = "succeeded") -> Execution:
    """Claim the next execution and end it, having said its session."""
    execution = lifecycle.claim(rows, own_identity())
    assert execution is not None
    if session is not None:
        data = json.dumps({"sessionId": session, "model": "m", "claudeVersion": "2"})
        events.append(rows, execution.number, 2, [("started", data)])
    outcome = Outcome("succeeded", "complete", {}) if state == "succeeded" else Outcome.failure("CLAUDE_ERROR", "x")
    lifecycle.finish(rows, execution.number, outcome)
    return execution


def test_a_follow_up_is_accepted_while_the_turn_before_it_has_no_session_yet(rows: Database) -> None:
    accept(rows, "first", "alpha")
    follow_up = accept(rows, "second", continues="first")
    accept(rows, "third", continues="second")
    assert (follow_up.workspace_id, follow_up.conversation) == ("alpha", "first")
    assert run(rows, SESSION).resume_session_id is None
    for name in ("second", "third"):
        claimed = run(rows, SESSION)
        assert (claimed.execution_id, claimed.resume_session_id) == (name, SESSION)
        assert executions.may_resume(rows, claimed)


def test_a_follow_up_runs_after_a_turn_that_failed_in_the_same_session(rows: Database) -> None:
    accept(rows, "first", "alpha")
    accept(rows, "second", continues="first")
    accept(rows, "third", continues="second")
    run(rows, SESSION)
    run(rows, None, "failed")  # it did not come as far as its session
    assert lifecycle.claim(rows, own_identity()) is None  # its follow-up is paused
    follow_ups.resume(rows, "first")
    assert run(rows, SESSION).resume_session_id == SESSION


def test_a_follow_up_of_a_turn_that_began_no_session_resumes_nothing(rows: Database) -> None:
    accept(rows, "first", "alpha")
    accept(rows, "second", continues="first")
    run(rows, None, "failed")
    follow_ups.resume(rows, "first")
    claimed = lifecycle.claim(rows, own_identity())
    assert claimed is not None
    assert not executions.may_resume(rows, claimed)


def test_a_follow_up_of_an_unknown_or_foreign_turn_is_refused(rows: Database) -> None:
    accept(rows, "first", "alpha", owner="ada")
    with pytest.raises(NotFound):
        accept(rows, "second", continues="unknown", owner="ada")
    with pytest.raises(NotFound):
        accept(rows, "second", continues="first", owner="bob")
    with pytest.raises(InvalidRequest):
        accept(rows, "second", "beta", continues="first", owner="ada")
    with rows.write() as connection:
        connection.execute("DELETE FROM workspaces WHERE workspace_id = 'alpha'")
    with pytest.raises(NotFound):
        accept(rows, "second", continues="first", owner="ada")


def test_a_session_that_is_named_is_the_same_conversation(rows: Database) -> None:
    accept(rows, "first", "alpha")
    run(rows, SESSION)
    assert accept(rows, "second", "alpha", session=SESSION).conversation == "first"
    assert accept(rows, "other", "beta", session=SESSION).conversation == "other"


def test_conversations_are_listed_newest_first_with_their_turns(rows: Database) -> None:
    accept(rows, "first", "alpha", owner="ada")
    accept(rows, "other", "beta", owner="bob")
    accept(rows, "second", continues="first", owner="ada")
    found, following = conversations.listing(rows)
    assert [(each.conversation_id, each.executions, each.last_execution_id) for each in found] == [
        ("first", 2, "second"),
        ("other", 1, "other"),
    ]
    assert following is None
    assert found[0].title == "prompt of first"
    page, following = conversations.listing(rows, limit=1)
    assert [each.conversation_id for each in page] == ["first"]
    assert [each.conversation_id for each in conversations.listing(rows, before=following)[0]] == ["other"]
    assert [each.conversation_id for each in conversations.listing(rows, visible_to="bob")[0]] == ["other"]
    found_one, turns = conversations.get(rows, "first", "ada")
    assert (found_one.executions, [turn.execution_id for turn in turns]) == (2, ["first", "second"])
    with pytest.raises(NotFound):
        conversations.get(rows, "first", "bob")


def test_a_request_names_a_workspace_or_an_execution_to_continue(tmp_path: Path) -> None:
    with hub_app(tmp_path) as hub:
        check_requests(hub)


def check_requests(hub: HubApp) -> None:
    hub.key("ada", "client")
    add_workspace(hub, "ada", "work")
    for body in (
        {"executionId": "x", "prompt": "hello"},
        {"executionId": "x", "prompt": "hello", "continues": "y", "sessionId": SESSION},
        {"executionId": "x", "prompt": "hello", "continues": "no such id!"},
    ):
        reply = hub.call("POST", "/execute", json=body)
        assert reply.json is not None
        assert (reply.status_code, reply.json["code"]) == (422, "INVALID_REQUEST"), body
    unknown = hub.call("POST", "/execute", json={"executionId": "x", "prompt": "hello", "continues": "unknown"})
    assert (unknown.status_code, unknown.get_json()["code"]) == (404, "EXECUTION_NOT_FOUND")
    assert hub.call("GET", "/conversations/unknown").get_json()["code"] == "CONVERSATION_NOT_FOUND"
    assert hub.call("GET", "/conversations").get_json() == {"conversations": [], "next": None}


def test_a_follow_up_through_the_api_runs_in_the_session_of_the_run_before_it(agent: Occ) -> None:
    agent.workspace("work", {"a.txt": "a"})
    first, _ = agent.under_way(steps({"say": "one"}, {"wait": "go"}), "first")
    follow_up = agent.client.execute(None, "and now?", executionId="second", continues="first")
    assert next(follow_up).name == "queued"
    (agent.home / "workspaces" / "work" / "go").write_text("")
    assert list(first)[-1].name == "complete"
    assert list(follow_up)[-1].name == "complete"
    conversation = agent.client.call("GET", "/conversations/first")
    assert [turn["executionId"] for turn in conversation["turns"]] == ["first", "second"]
    assert {turn["conversationId"] for turn in conversation["turns"]} == {"first"}
