"""Through a hub: texts for the turn that runs, follow-ups, attachments and forks reach the machine."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from occ_app.database.database import Database
from occ_app.errors import Refused, Unreachable
from occ_app.executions import inputs as rows_of_inputs
from occ_app.executions import lifecycle
from occ_app.executions import queries as executions
from occ_app.executions.inputs import Given, Input
from occ_app.executions.records import Outcome
from occ_app.hub import inputs
from occ_app.system.compact_json import to_json
from occ_worker.relay.patience import Patience
from occ_worker.relay.relayed_rows import RelayedRows
from tests import sentences
from tests.conftest import make_zip, steps, wait_until
from tests.real_hub import Hub
from tests.test_conversations import accept, rows
from tests.test_inputs import running

__all__ = ["rows", "running"]  # fixtures


class Machine:
    """The agent of an execution, which gives one reply to each call."""

    def __init__(self, reply: Callable[[], dict[str, Any]], *, sent: bool = True) -> None:
        self.reply = reply
        self.bodies: list[dict[str, Any]] = []
        self.sent = sent

    def find(self, _: str) -> Machine | None:
        return self if self.sent else None

    def client(self, _: object) -> Machine:
        return self

    def call(self, _method: str, _path: str, body: dict[str, Any], _seconds: float) -> dict[str, Any]:
        self.bodies.append(body)
        return self.reply()


def forwarded(rows: Database, machine: Machine) -> Input:
    with rows.write() as connection:
        connection.execute("UPDATE executions SET offered = 1")
    found = rows_of_inputs.accept(rows, "first", Given("i1", "and this", "steer"), max_queue=9)
    return inputs.forward(rows, cast("Any", machine), cast("Any", machine), found)


def failing(error: Exception) -> Callable[[], dict[str, Any]]:
    def reply() -> dict[str, Any]:
        raise error

    return reply


@pytest.mark.parametrize(
    ("reply", "state"),
    [
        (lambda: {"state": "sent"}, "sent"),
        (lambda: {"state": "delivered"}, "delivered"),
        (lambda: {"state": "unsent", "reason": sentences.NO_TOOL_WAS_RUNNING}, "queued"),
        (failing(Refused("unknown field", 422, "INVALID_REQUEST")), "queued"),  # a machine with an older OCC
        (failing(Refused("busy", 503, "BUSY")), "sent"),
        (failing(Unreachable("away")), "sent"),  # it may have the text
    ],
)
def test_a_text_goes_to_the_machine_once_and_becomes_a_follow_up_of_the_hub(
    running: Database, reply: Callable[[], dict[str, Any]], state: str
) -> None:
    machine = Machine(reply)
    found = forwarded(running, machine)
    assert found.state == state
    assert machine.bodies == [{"inputId": "i1", "text": "and this", "delivery": "steer", "fallback": False}]
    if state == "queued":
        assert executions.get(running, "i1").prompt == "and this"
    inputs.forward(running, cast("Any", machine), cast("Any", machine), found)
    assert len(machine.bodies) == 1


def test_a_text_for_an_execution_that_no_machine_has_is_a_follow_up(running: Database) -> None:
    machine = Machine(lambda: {}, sent=False)
    assert forwarded(running, machine).state == "queued"
    assert machine.bodies == []


@pytest.mark.parametrize(
    ("reported", "state"), [("delivered", "delivered"), ("unsent", "queued"), ("sent", "sent"), (7, "sent")]
)
def test_the_hub_follows_the_reports_of_the_machine(running: Database, reported: object, state: str) -> None:
    found = forwarded(running, Machine(lambda: {"state": "sent"}))
    for input_id in ("i1", "unknown", 3, None):
        inputs.note_events(running, found.execution, [("input", to_json({"inputId": input_id, "state": reported}))])
    assert rows_of_inputs.get(running, found.number).state == state
    lifecycle.finish(running, found.execution, Outcome.failure("AGENT_LOST", "x"))
    after = rows_of_inputs.get(running, found.number).state
    assert after == ("unknown" if state == "sent" else state)


def test_who_reads_the_report_on_a_text_finds_its_state(running: Database) -> None:
    found = forwarded(running, Machine(lambda: {"state": "sent"}))
    seen = list[str]()
    readers = SimpleNamespace(ring=lambda *_: seen.append(rows_of_inputs.get(running, found.number).state))
    context = SimpleNamespace(db=running, config=SimpleNamespace(max_output_bytes=1 << 20), readers=readers)
    relayed = RelayedRows(cast("Any", context), executions.get(running, "first"), Patience(begun=True))
    relayed._append([("input", to_json({"inputId": "i1", "state": "delivered", "timestamp": 1}))])
    assert seen == ["delivered"]


def test_a_text_without_a_fallback_is_not_made_a_follow_up(running: Database) -> None:
    accept(running, "waits", "beta")
    given = Given("i1", "x", "steer", fallback=False)
    assert rows_of_inputs.accept(running, "waits", given, max_queue=9).state == "unsent"
    found = rows_of_inputs.accept(running, "first", given, max_queue=9)
    assert rows_of_inputs.queue(running, found.number, sentences.NO_TOOL_WAS_RUNNING).state == "unsent"
    with running.read() as connection:
        assert connection.execute("SELECT count(*) FROM executions WHERE execution_id = 'i1'").fetchone()[0] == 0


def test_texts_follow_ups_attachments_and_forks_through_a_hub(hub_with_box: Hub) -> None:
    box, client = hub_with_box.agent("box"), hub_with_box.client
    client.upload("work", make_zip({"a.txt": "a"}))
    prompt = steps({"say": "one"}, {"tool": "Bash", "input": {}, "result": "ok", "wait": "go"}, {"say": "two"})
    events = client.execute("work", prompt, executionId="first")
    next(event for event in events if event.name == "tool")

    def send(input_id: str, delivery: str = "steer") -> dict[str, Any]:
        body = {"inputId": input_id, "text": f"text of {input_id}", "delivery": delivery}
        return client.call("POST", "/executions/first/input", body)

    assert send("i1")["delivery"] == "steer"
    assert send("i2", "queue")["executionId"] == "i2"
    client.call("PATCH", "/executions/i2", {"prompt": "edited"})
    (Path(box.client.workspace("work")["path"]) / "go").write_text("")
    rest = list(events)
    assert [event.data["state"] for event in rest if event.name == "input"] == ["sent", "delivered"]
    assert rest[-1].name == "complete"
    assert send("i1")["state"] == "delivered"
    record = wait_until(lambda: (found := client.execution("i2"))["finishedAt"] and found, "the follow-up to end")
    assert record["state"] == "succeeded"
    assert box.client.execution("i2")["prompt"] == "edited"
    late = send("i3")
    assert (late["delivery"], late["executionId"]) == ("queue", "i3")
    files = [{"name": "note.txt", "data": base64.b64encode(b"read me").decode()}]
    forked = list(client.execute(None, "fork", executionId="fork", continues="first", fork=True, attachments=files))
    said = "".join(event.data["chunk"] for event in forked if event.name == "output")
    assert said == "You said: Attached file note.txt:\n\nread me | fork"
    assert client.execution("fork")["conversationId"] == "fork"
    on_box = box.client.execution("fork")
    assert on_box["conversationId"] == "fork"
    assert on_box["attachments"] == [{"name": "note.txt", "mediaType": "text/plain", "bytes": 7}]
