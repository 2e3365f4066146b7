"""Inputs: a text steers the turn that runs or becomes a follow-up, and reaches Claude at most once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest

from occ_app.config.permission_rules import Rule
from occ_app.database.database import Database
from occ_app.errors import Conflict, NotFound, QueueFull
from occ_app.executions import follow_ups, inputs, lifecycle, rules
from occ_app.executions import queries as executions
from occ_app.executions.inputs import Given, Input
from occ_app.executions.records import Outcome
from occ_app.system.process_identity import own_identity
from occ_worker.execution.context import ExecutionContext
from occ_worker.execution.steering import Steering
from occ_worker.execution.translator import Translator
from tests import sentences
from tests.conftest import Occ, steps, wait_until
from tests.hub_app import hub_app
from tests.test_conversations import SESSION, accept, rows, run
from tests.test_owners import add_workspace

__all__ = ["rows"]  # the fixture

DONE = Outcome("succeeded", "complete", {})
MODELS = {"model_usage_since_last_result": {"m": {"costUSD": 0.25}}}
RESULT = {"type": "result", "is_error": False, "session_id": SESSION, "num_turns": 2, "duration_ms": 5, **MODELS}


def send(
    rows: Database, execution_id: str = "first", input_id: str = "i1", text: str = "and this", **more: Any
) -> Input:
    given = Given(input_id, text, more.pop("delivery", "steer"), more.pop("key", None), more.get("visible_to"))
    return inputs.accept(rows, execution_id, given, **({"max_queue": 100} | more))


@pytest.fixture
def running(rows: Database) -> Database:
    """An execution that runs."""
    accept(rows, "first", "alpha")
    lifecycle.claim(rows, own_identity())
    return rows


@pytest.mark.parametrize("ends", [False, True])
def test_a_text_that_becomes_a_follow_up_keeps_the_settings_of_its_turn(running: Database, ends: bool) -> None:
    turn = executions.get(running, "first")
    with running.write() as connection:
        connection.execute("UPDATE executions SET approval_seconds = 60, permissions = 'ask'")
        rules.insert(connection, turn.number, [Rule("deny", "Bash", "git push *"), Rule("ask", "Edit")], "token")
        rules.add(connection, rules.Place("execution", execution=turn.number), Rule("allow", "WebSearch"), "token")
    found = send(running)
    if ends:  # before its worker looked
        lifecycle.finish(running, turn.number, DONE)
    else:
        inputs.queue(running, found.number, "No tool was running.")
    follow_up = executions.get(running, "i1")
    assert (follow_up.permissions, follow_up.approval_seconds) == ("ask", 60)
    stored = rules.for_execution(running, follow_up.number)
    assert [(rule.decision, rule.text) for rule in stored] == [("deny", "Bash(git push *)"), ("ask", "Edit")]


class Run:
    """The steering of an execution that runs, with the lines that it writes to a CLI and the events that it stores."""

    def __init__(self, rows: Database) -> None:
        self.rows = rows
        self.lines: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []
        self.translator = Translator()
        context = cast("ExecutionContext", type("Context", (), {"db": rows}))
        execution = executions.get(rows, "first")
        self.steering = Steering(
            context,
            execution,
            self.translator,
            lambda line: self.lines.append(json.loads(line)),
            lambda events: self.events.extend(json.loads(data) for _, data in events),
        )
        self.cli({"type": "system", "subtype": "init", "session_id": SESSION, "claude_code_version": "2.1.332"})

    def cli(self, content: dict[str, Any]) -> None:
        """A line of the CLI."""
        line = json.dumps(content, separators=(",", ":")).encode()
        if content["type"] == "command_lifecycle":
            self.steering.take(line)
        else:
            self.translator.events(line)

    def open_tool(self) -> None:
        self.message()
        block = {"type": "tool_use", "id": "t", "name": "Bash", "input": {}}
        self.cli({"type": "assistant", "message": {"id": "m", "content": [block]}})

    def end_tool(self) -> None:
        block = {"type": "tool_result", "tool_use_id": "t", "content": ""}
        self.cli({"type": "user", "message": {"role": "user", "content": [block]}})

    def message(self) -> None:
        self.cli({"type": "stream_event", "event": {"type": "message_start", "message": {"id": "m"}}})
        self.steering.withdraw_missed()

    def report(self, state: str, line: int = 0) -> None:
        self.cli({"type": "command_lifecycle", "command_uuid": self.lines[line]["uuid"], "state": state})

    def states(self) -> list[str]:
        return [event["state"] for event in self.events]

    def row(self, found: Input) -> Input:
        return inputs.get(self.rows, found.number)


def test_a_text_that_comes_while_a_tool_runs_is_sent_once_and_confirmed_by_the_cli(running: Database) -> None:
    run, found = Run(running), send(running)
    run.open_tool()
    for _ in range(3):
        run.steering.look()
    assert [line["message"]["content"] for line in run.lines] == ["and this"]
    assert run.row(found).state == "sent"
    run.report("queued")
    assert run.steering.unconfirmed
    run.end_tool()
    run.report("started")
    run.message()
    run.report("completed")
    run.steering.end()
    assert run.row(found).state == "delivered"
    assert run.states() == ["sent", "delivered"]
    assert len(run.lines) == 1  # it was not taken back


def test_a_text_that_comes_while_no_tool_runs_becomes_a_follow_up(running: Database) -> None:
    run, found = Run(running), send(running)
    run.steering.look()
    after = run.row(found)
    assert (after.state, after.delivery, after.follow_up, after.reason) == (
        "queued",
        "queue",
        "i1",
        sentences.NO_TOOL_WAS_RUNNING,
    )
    assert run.lines == []
    assert run.events[0]["executionId"] == "i1"
    follow_up = executions.get(running, "i1")
    assert (follow_up.prompt, follow_up.conversation, follow_up.state) == ("and this", "first", "queued")


def test_a_text_that_misses_the_turn_is_taken_back_and_becomes_a_follow_up(running: Database) -> None:
    run, found = Run(running), send(running)
    run.open_tool()
    run.steering.look()
    run.end_tool()
    run.message()  # begins without the text
    assert run.lines[1]["request"] == {"subtype": "cancel_async_message", "message_uuid": run.lines[0]["uuid"]}
    run.report("cancelled")
    assert not run.steering.unconfirmed
    assert run.row(found).state == "queued"
    assert run.states() == ["sent", "queued"]


def test_a_turn_that_the_cli_began_for_a_text_belongs_to_the_execution(running: Database) -> None:
    run, found = Run(running), send(running)
    run.open_tool()
    run.steering.look()
    run.end_tool()
    run.cli(RESULT)
    run.steering.withdraw_missed()
    run.report("started")  # it was too late to take it back
    assert run.translator.outcome() is None
    assert run.row(found).state == "delivered"
    run.cli({**RESULT, "num_turns": 1, "result": "Second."})
    outcome = run.translator.outcome()
    assert outcome is not None
    figures = {name: outcome.data[name] for name in ("numTurns", "durationMs", "costUsd")}
    assert figures == {"numTurns": 3, "durationMs": 10, "costUsd": 0.5}


def test_a_text_that_an_older_cli_could_not_give_back_is_not_sent(running: Database) -> None:
    run, found = Run(running), send(running)
    run.translator.init = {"claude_code_version": "2.1.197"}
    run.open_tool()
    run.steering.look()
    assert (run.lines, run.row(found).state) == ([], "queued")


def test_a_cli_that_ends_with_a_text_leaves_it_unknown_and_it_is_not_sent_again(running: Database) -> None:
    run, found = Run(running), send(running)
    run.open_tool()
    run.steering.look()
    later = send(running, input_id="i2")
    run.steering.end()
    assert [run.row(each).state for each in (found, later)] == ["unknown", "queued"]
    assert [event["inputId"] for event in run.events] == ["i1", "i1", "i2"]


@pytest.mark.parametrize(("sent", "state"), [(False, "queued"), (True, "unknown")])
def test_a_killed_worker_loses_no_text_and_sends_none_twice(running: Database, *, sent: bool, state: str) -> None:
    found = send(running)
    if sent:
        assert inputs.mark_sent(running, found.number)
    number = executions.get(running, "first").number
    lifecycle.finish(running, number, Outcome.failure("WORKER_LOST", "x"))  # as the reaper does
    assert inputs.get(running, found.number).state == state
    assert not inputs.mark_sent(running, found.number)
    if not sent:
        assert executions.get(running, "i1").is_paused  # the turn failed


def test_the_same_text_under_the_same_id_is_one_and_another_text_is_refused(running: Database) -> None:
    found = send(running)
    assert send(running) == found
    for other in ({"text": "another"}, {"delivery": "queue"}):
        with pytest.raises(Conflict) as refused:
            send(running, **other)
        assert refused.value.code == "INPUT_CONFLICT"
    assert len(inputs.waiting(running, found.execution)) == 1


def test_a_text_for_an_execution_that_does_not_run_or_is_to_wait_is_a_follow_up_at_once(rows: Database) -> None:
    accept(rows, "first", "alpha")
    assert send(rows).reason == inputs.NOT_RUNNING
    lifecycle.claim(rows, own_identity())
    assert send(rows, input_id="i2", delivery="queue").follow_up == "i2"
    assert send(rows, input_id="i3", delivery="queue").follow_up == "i3"
    with pytest.raises(QueueFull):
        send(rows, input_id="i4", delivery="queue", max_queue=3)
    lifecycle.finish(rows, executions.get(rows, "first").number, DONE)
    assert send(rows, input_id="i4").follow_up == "i4"
    follow_ups.change(rows, "i4", {"before": "i1"})
    assert [executions.get(rows, name).position for name in ("i4", "i1", "i2", "i3")] == [0, 1, 2, 3]
    assert run(rows, SESSION).execution_id == "i4"


def test_a_follow_up_of_a_text_gets_another_id_if_an_execution_has_its_own(running: Database) -> None:
    accept(running, "i1", "beta")
    found = send(running, delivery="queue")
    assert found.follow_up not in (None, "i1")
    assert executions.get(running, str(found.follow_up)).prompt == "and this"


def test_a_text_for_a_foreign_execution_or_a_removed_workspace_is_refused(rows: Database) -> None:
    accept(rows, "first", "alpha", owner="ada")
    with pytest.raises(NotFound):
        send(rows, visible_to="bob")
    run(rows, SESSION)
    with rows.write() as connection:
        connection.execute("DELETE FROM workspaces WHERE workspace_id = 'alpha'")
    with pytest.raises(NotFound):
        send(rows, visible_to="ada")
    with rows.read() as connection:
        assert connection.execute("SELECT count(*) FROM inputs").fetchone()[0] == 0


def test_the_body_of_an_input_is_checked(tmp_path: Path) -> None:
    with hub_app(tmp_path) as hub:
        ada = hub.key("ada", "client")
        add_workspace(hub, "ada", "work")
        body = {"executionId": "one", "workspaceId": "work", "prompt": "hello"}
        hub.call("POST", "/execute", ada, json=body, environ_overrides={"gunicorn.socket": None}).close()
        for body in (
            {"text": "x"},
            {"inputId": "i"},
            {"inputId": "i", "text": " "},
            {"inputId": "no id!", "text": "x"},
        ):
            assert hub.call("POST", "/executions/one/input", ada, json=body).status_code == 422, body
        sent = hub.call("POST", "/executions/one/input", ada, json={"inputId": "two", "text": "and this"})
        assert (sent.status_code, sent.get_json()["delivery"], sent.get_json()["executionId"]) == (202, "queue", "two")
        turns = hub.call("GET", "/conversations/one", ada).get_json()["turns"]
        assert [turn["prompt"] for turn in turns] == ["hello", "and this"]
        assert hub.call("POST", "/executions/one/input", json={"inputId": "i", "text": "x"}).status_code == 202


def test_a_text_reaches_the_turn_that_runs_through_the_api(agent: Occ) -> None:
    agent.workspace("work", {"a.txt": "a"})
    events, _ = agent.under_way(
        steps({"say": "one"}, {"tool": "Bash", "input": {}, "result": "ok", "wait": "go"}, {"say": "two"}), "first"
    )

    def steer(input_id: str) -> dict[str, Any]:
        return cast(
            "dict[str, Any]", agent.client.call("POST", "/executions/first/input", {"inputId": input_id, "text": "x"})
        )

    tool = next(event for event in events if event.name == "tool")
    assert tool.data["name"] == "Bash"
    assert steer("i1")["delivery"] == "steer"
    assert steer("i1")["state"] == "sent"
    (agent.home / "workspaces" / "work" / "go").write_text("")
    rest = list(events)
    assert [event.data["state"] for event in rest if event.name == "input"] == ["sent", "delivered"]
    assert rest[-1].name == "complete"
    late = steer("i2")
    assert (late["delivery"], late["executionId"]) == ("queue", "i2")
    wait_until(lambda: agent.client.execution("i2")["state"] == "succeeded", "the follow-up to end")
