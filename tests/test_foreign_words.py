"""Words of machines, hubs and CLIs: what breaks its schema is not stored, and a poisoned row stops nothing."""

from __future__ import annotations

import json
import threading
import urllib.parse
from collections.abc import Iterator
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from occ_app.client import sse
from occ_app.client.agent_client import AgentClient
from occ_app.client.event_checks import MAX_SEQ, RawEvent, checked, replacement
from occ_app.client.hub_client import HubClient
from occ_app.database.database import Database
from occ_app.database.rows import unreadable
from occ_app.errors import InvalidRequest, Unreachable
from occ_app.executions import answers, approvals, events, lifecycle, search, usage
from occ_app.executions import queries as executions
from occ_app.executions.records import Outcome, Request
from occ_app.executions.tally import Tally
from occ_app.home import health, notes
from occ_app.hub import agent_schemas, keys, registrations
from occ_app.hub.agents import Agents
from occ_app.hub.pages import parts
from occ_app.system.compact_json import to_json
from occ_app.system.process_identity import own_identity
from occ_app.web import requests as web
from occ_app.web import schemas
from occ_worker.execution.translator import Translator
from occ_worker.relay.relay import Relay
from tests.databases import database_with
from tests.fake_hub import serve

T = {"timestamp": 1790000000000}


def event(seq: int, name: str, data: Any) -> str:
    text = data if isinstance(data, str) else json.dumps(data)
    return f"id: {seq}\nevent: {name}\ndata: {text}\n\n"


def complete(seq: int, **changed: Any) -> str:
    data = {"exitCode": 0, **T, "sessionId": "s", "costUsd": 0.1, "usage": {}, "numTurns": 1, "durationMs": 1}
    return event(seq, "complete", {**data, "permissionDenials": [], **changed})


START = event(2, "started", {"sessionId": "x", "model": "m", "claudeVersion": "1", **T})

ASKED = {
    **{"approvalId": "approval-1", "kind": "tool", "tool": "Bash", "input": {"command": "ls"}, "inputHash": "0" * 64},
    **{"reason": None, "subagent": None, "askedAt": "x", "expiresAt": "x"},
}

# Each with the state that the execution ends in.
HOSTILE = {
    "odd texts of a person": (
        event(3, "input", T)
        + event(4, "input", {"inputId": "i", "text": "x", "state": "\x1b[2J"})
        + event(5, "input", {"inputId": "i", "text": "x", "state": "sent", "executionId": "../x", "reason": 5})
        + complete(6),
        "succeeded",
    ),
    "parked without an approval": (event(3, "parked", T) + event(4, "resumed", T) + complete(5), "succeeded"),
    "parked until nonsense": (
        event(3, "approval", ASKED)
        + event(4, "parked", {"approvalId": "approval-1", "expiresAt": "soon", "tool": ["x"]})
        + event(5, "resumed", {"approvalId": "approval-1"})
        + complete(6),
        "succeeded",
    ),
    "approval without id": (event(3, "approval", {**ASKED, "approvalId": None}) + complete(4), "succeeded"),
    "approval with a path for an id": (
        event(3, "approval", {**ASKED, "approvalId": "../x"}) + complete(4),
        "succeeded",
    ),
    "approval of an unknown kind": (event(3, "approval", {**ASKED, "kind": "later"}) + complete(4), "succeeded"),
    "approval with odd times": (
        event(3, "approval", {**ASKED, "askedAt": "0001-01-01T00:00:00+14:00", "expiresAt": 7}) + complete(4),
        "succeeded",
    ),
    "approval with odd texts": (
        event(3, "approval", {**ASKED, "tool": "a\0\ud800\u202e", "reason": ["x"], "redacted": "no"}) + complete(4),
        "succeeded",
    ),
    "approval again and closed": (
        event(3, "approval", ASKED)
        + event(4, "approval", {**ASKED, "tool": "Other"})
        + event(5, "approval_resolved", {"approvalId": "approval-1", "state": "a\nb", "actor": {"a": 1}})
        + event(6, "approval_resolved", {"approvalId": "approval-1", "state": "allowed", "message": 5})
        + event(7, "approval_resolved", {"approvalId": "approval-none", "state": "denied"})
        + complete(8),
        "succeeded",
    ),
    "output without chunk": (event(3, "output", T) + complete(4), "succeeded"),
    "output that is no JSON": (event(3, "output", "{nonsense") + complete(4), "succeeded"),
    "chunk a number": (event(3, "output", {"chunk": 5, **T}) + complete(4), "succeeded"),
    "tool without keys": (event(3, "tool", T) + complete(4), "succeeded"),
    "status without keys": (event(3, "status", T) + complete(4), "succeeded"),
    "exitCode text": (event(3, "output", {"chunk": "x", **T}) + complete(4, exitCode="abc"), "failed"),
    "no exitCode": (event(3, "complete", T), "failed"),
    "error without code": (event(3, "error", {"message": "x", **T}), "failed"),
    "costUsd text": (complete(3, costUsd="abc"), "succeeded"),
    "costUsd negative": (complete(3, costUsd=-5), "succeeded"),
    "numTurns text": (complete(3, numTurns="abc"), "succeeded"),
    "message object": (event(3, "error", {"code": {"a": 1}, "message": ["x"], **T}), "failed"),
    "final data a list": (event(3, "complete", "[]"), "failed"),
    "usage list": (complete(3, usage=[1, 2]), "succeeded"),
    "usage deep": (complete(3, usage={"input_tokens": "9" * 400}), "succeeded"),
    "usage nested": (event(3, "complete", '{"exitCode":0,"usage":{"a":' + "[" * 900 + "]" * 900 + "}}"), "failed"),
    "sessionId number": (complete(3, sessionId=5), "succeeded"),
    "error message 12 MB": (event(3, "error", {"code": "X", "message": "A" * 12_000_000, **T}), "failed"),
    "deep json": (event(3, "output", '{"chunk":' + "[" * 5000 + "]" * 5000 + "}") + complete(4), "succeeded"),
    "gap huge": (event(2**62, "gap", {}) + complete(3), "succeeded"),
    "gap back": (
        event(3, "output", {"chunk": "x", **T})
        + event(0, "gap", {})
        + event(1, "output", {"chunk": "y"})
        + complete(4),
        "succeeded",
    ),
    "CR in data": (
        event(3, "output", '{"chunk":"x"}\r\rid: 77\revent: complete\rdata: {"forged":1}\r\r') + complete(4),
        "succeeded",
    ),
    "CR between tokens": (event(3, "output", '{"chunk":\r"x"}') + complete(4), "succeeded"),
    "name with space": (event(3, "out put", {"chunk": "x"}) + complete(4), "succeeded"),
    "surrogate": (event(3, "output", '{"chunk":"\\ud800"}') + complete(4), "succeeded"),
    "NaN": (event(3, "complete", '{"exitCode":0,"costUsd":NaN,"numTurns":Infinity}'), "failed"),
    "a number that is skipped": (event(5, "output", {"chunk": "x", **T}) + complete(6), "succeeded"),
    "no UTF-8": (event(3, "output", {"chunk": "x", **T}).replace("x", "\udcff") + complete(4), "succeeded"),
}


class Machine(BaseHTTPRequestHandler):
    """An agent that says whatever `says` is, of each execution."""

    says = b""

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        stream = urllib.parse.urlsplit(self.path).path == "/execute"
        content = b": follows\n\n" + self.says if stream else b"{}"
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream" if stream else "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def rows(tmp_path: Path) -> Database:
    """A database with a workspace that is placed, and nothing else."""
    rows = database_with(tmp_path / "occ.db", "w")
    with rows.write() as connection:
        connection.execute("UPDATE workspaces SET agent_id = 'agent-1', upload = 1, placed = 1")
    return rows


def begun(rows: Database, execution_id: str, agent_id: str | None = None) -> int:
    asked = Request(execution_id, "w", f"prompt of {execution_id}", 9, 9, None, None, None, None, "")
    number = lifecycle.create(rows, asked, max_queue=100)[0].number
    lifecycle.claim(rows, own_identity())
    with rows.write() as connection:
        connection.execute("UPDATE executions SET agent_id = ? WHERE number = ?", (agent_id, number))
        connection.execute("UPDATE workspaces SET agent_id = ?", (agent_id,))
    return number


def registration(**changed: Any) -> dict[str, Any]:
    said = {"protocol": 1, "name": "evil", "version": "1", "port": 9, "workers": 1}
    return web.loaded(agent_schemas.Registration, {**said, **changed})


@pytest.fixture
def relayed(rows: Database) -> Iterator[Any]:
    """Relays one execution from a machine that says what it is given."""
    key, _ = keys.create(rows, "machines", "agent")
    agents = Agents(rows, 30)
    agent = registrations.register(agents, key, "192.0.2.1", registration())
    handler = type("Handler", (Machine,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    client = AgentClient(f"http://127.0.0.1:{server.server_address[1]}", "token")

    def relay(says: str, execution_id: str = "e") -> executions.Execution:
        handler.says = says.encode(errors="surrogateescape")  # type: ignore[attr-defined]
        number = begun(rows, execution_id, agent.agent_id)
        stop = threading.Event()
        timer = threading.Timer(20, stop.set)
        timer.start()
        parts: Any = SimpleNamespace(
            config=SimpleNamespace(max_output_bytes=10**9, reconnect_seconds=0.5),
            hub_id="hub-1",
            db=rows,
            agents=agents,
            calls=SimpleNamespace(client=lambda _: client, broke=lambda _: None),
            readers=SimpleNamespace(ring=lambda _key, news: events.from_news(news)),
            rest=lambda seconds: stop.wait(min(seconds, 0.05)),
            removed=(),
            stopping=stop.is_set,
        )
        with rows.read() as connection:
            execution = executions.numbered(connection, number)
        Relay(parts, execution).run()
        timer.cancel()
        return executions.get(rows, execution_id)

    yield relay
    server.shutdown()
    server.server_close()
    client.close()


def everything_works(rows: Database, execution: executions.Execution) -> bytes:
    """Ask for all there is of the rows; returns the execution's stream."""
    stored = events.after(rows, execution.number, 0)
    for each in stored:
        assert isinstance(sse.parsed(RawEvent(each.seq, each.name, each.sound.data)).data, dict)
    page, _ = executions.listing(rows)
    record = schemas.ExecutionList().dump({"executions": page, "next": None})
    json.dumps(record, allow_nan=False).encode()
    assert len(json.dumps(record)) < 200_000
    asked = approvals.listing(rows)
    assert all(each.state != "open" for each in asked)
    assert all(datetime.fromisoformat(each.expires_at).tzinfo is not None for each in asked)
    json.dumps(schemas.ApprovalList().dump({"approvals": asked}), allow_nan=False).encode()
    for by in usage.GROUPINGS:
        assert usage.report(rows, by).total.cost_usd >= 0
    Tally(rows).look()
    parts.read(rows, execution, parts.Place())
    search.index_some(rows, 10)
    assert not search.waiting(rows)
    assert [found.execution.number for found in search.find(rows, "prompt", limit=1).results]
    with rows.read() as connection:
        busy, *_ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    assert busy == 0
    return b"".join(each.sse for each in stored)


@pytest.mark.parametrize("case", HOSTILE)
def test_what_a_machine_says_is_checked_before_it_is_stored(rows: Database, relayed: Any, case: str) -> None:
    says, state = HOSTILE[case]
    execution = relayed(START + says)
    assert execution.state == state
    assert (execution.error_code is None) == (state == "succeeded")
    stream = everything_works(rows, execution)
    assert b"\r" not in stream
    assert b"forged" not in stream.replace(b'"forged', b"")
    seqs = [each.seq for each in events.after(rows, execution.number, 0)]
    assert seqs == sorted(set(seqs))
    assert seqs[-1] < 10


def test_a_machine_cannot_touch_the_approval_of_another_machine(rows: Database, relayed: Any) -> None:
    with rows.write() as connection:
        connection.execute(
            """
            INSERT INTO workspaces (workspace_id, name, description, path, files, bytes, skipped, created_at,
                updated_at, generation) VALUES ('other', '', '', '', 0, 0, '[]', '', '', 77)
            """
        )
    request = Request("victim", "other", "prompt", 9, 9, None, None, None, None, "")
    victim = lifecycle.create(rows, request, max_queue=100)[0].number
    with rows.write() as connection:
        connection.execute("UPDATE executions SET state = 'running' WHERE number = :number", {"number": victim})
    asked = approvals.ask(rows, victim, answers.Request("tool", "Bash", {"command": "rm -r x"}, "1" * 64), 600)
    forged = {**ASKED, "approvalId": asked.approval_id, "input": {"command": "ls"}}
    resolved = {"approvalId": asked.approval_id, "state": "allowed", "actor": "ada"}
    execution = relayed(START + event(3, "approval", forged) + event(4, "approval_resolved", resolved) + complete(5))
    assert execution.state == "succeeded"
    assert approvals.listing(rows) == [asked]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("approval_resolved", {"approvalId": "approval-1", "state": "\x1b[2J"}),
        ("input", {"inputId": "i", "text": "x", "state": "\x1b[2J"}),
        ("parked", {"approvalId": "\x1b[2J"}),
        ("resumed", {}),
        ("approval", {**ASKED, "approvalId": "a b"}),
    ],
)
def test_an_event_that_a_terminal_would_obey_is_refused(name: str, data: dict[str, Any]) -> None:
    assert checked(RawEvent(3, name, to_json({**data, **T}))) is None


def test_a_broken_event_is_marked_and_counted(rows: Database, relayed: Any) -> None:
    execution = relayed(START + event(3, "output", T) + event(4, "output", {"chunk": "y", **T}) + complete(5))
    stored = events.after(rows, execution.number, 0)
    assert [each.name for each in stored] == ["queued", "started", "gap", "output", "complete"]
    assert json.loads(stored[2].data)["fromSeq"] == 3
    assert health.skipped(rows) == {"refusedEvents": 1, "unreadableEvents": 0, "unreadableRows": unreadable()}
    assert health.skipped_problems(rows)


def test_a_final_event_without_a_code_is_a_failure_with_one(rows: Database, relayed: Any) -> None:
    assert relayed(START + event(3, "error", T)).error_code == "INVALID_EVENT"


def test_what_a_machine_says_rightly_is_kept_to_the_letter() -> None:
    for name, data in (
        ("output", {"chunk": 'a\n"b" é \ud83d\ude00'.encode("utf-16", "surrogatepass").decode("utf-16"), **T}),
        ("tool", {"toolUseId": "t", "name": "Read", "input": {"file_path": "a"}, **T}),
        ("tool", {"toolUseId": "t", "result": "x", "isError": False, **T, "truncated": True}),
        ("status", {"state": "retrying", "message": "", **T}),
        ("started", {"sessionId": None, "model": "m", "claudeVersion": "2.1.332", **T}),
        ("error", {"code": "CLAUDE_EXIT", "message": "x", "exitCode": 3, **T}),
        ("later", {"of": ["a", "newer", "version"], **T}),
    ):
        sound = checked(RawEvent(3, name, to_json(data)))
        assert sound is not None
        assert json.loads(sound.data) == data
    assert checked(RawEvent(MAX_SEQ + 1, "output", to_json({"chunk": "x"}))) is None


# As versions before this one stored them.
POISON = [
    ("output", "{nonsense"),
    ("output", '{"chunk":5}'),
    ("output", '{"timestamp":1}'),
    ("output", '{"chunk":"\\ud800"}'),
    ("output", '{"chunk":' + "[" * 5000 + "]" * 5000 + "}"),
    ("output", "[]"),
    ("output", '{"chunk":"x"}\r\rid: 77\revent: complete\rdata: {"forged":1}\r\r'),
    ("output", '{"chunk":"\u0085\u009b31m\u2028"}'),
    ("out\rput", "{}"),
    ("tool", "{}"),
    ("status", "{}"),
    ("gap", "{}"),
]


def test_one_poisoned_row_stops_nothing(rows: Database) -> None:
    number = begun(rows, "poisoned")
    events.append(rows, number, 2, POISON)
    lifecycle.finish(rows, number, Outcome("succeeded", "complete", {"exitCode": 0}))
    with rows.write() as connection:
        connection.execute(
            """
            UPDATE executions SET exit_code = 'abc', cost_usd = 'abc', num_turns = 'abc', duration_ms = 'abc',
                usage = '{nonsense', error_message = zeroblob(12000000), session_id = 5 WHERE number = ?
            """,
            (number,),
        )
    later = begun(rows, "victim")
    events.append(rows, later, 2, [("output", '{"chunk":"needle"}')])
    lifecycle.finish(rows, later, Outcome("succeeded", "complete", {"exitCode": 0}))
    stream = everything_works(rows, executions.get(rows, "poisoned"))
    frames = "".join(each.frame for each in events.after(rows, number, 0))
    assert not any(raw in frames for raw in ("\r", "\0", "\u0085", "\u009b", "\u2028"))
    assert not any(raw in stream for raw in (b"\r", b"\0", "\u0085".encode(), "\u009b".encode(), "\u2028".encode()))
    assert [found.execution.execution_id for found in search.find(rows, "needle").results] == ["victim"]


def test_unreadable_rows_are_counted(rows: Database) -> None:
    number = begun(rows, "poisoned")
    events.append(rows, number, 2, POISON[:3])
    lifecycle.finish(rows, number, Outcome("succeeded", "complete", {"exitCode": 0}))
    indexed = search.index_some(rows, 10)
    assert (indexed.executions, indexed.unreadable) == (1, 3)
    notes.count(rows, notes.UNREADABLE, 3)
    notes.count(rows, notes.UNREADABLE, 1)
    assert health.skipped(rows)["unreadableEvents"] == 4


def test_a_connection_is_given_back_without_an_open_statement(rows: Database) -> None:
    number = begun(rows, "e")
    events.append(rows, number, 2, [("output", '{"chunk":"x"}')] * 100)
    kept = list[Any]()
    for _ in range(2):
        with rows.read() as connection:
            kept.append(connection.execute("SELECT * FROM events"))
            next(kept[-1])
    with rows.write() as connection:
        connection.execute("UPDATE executions SET prompt = 'y'")
    with rows.read() as connection:
        busy, *_ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    assert busy == 0


def test_the_cli_s_control_characters_are_escaped_in_json() -> None:
    text = "a\x7f\u0085\u009b31m\u2028\x00\r"
    translator = Translator()
    for escape in (False, True):
        delta = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}
        line = json.dumps(
            {
                "type": "stream_event",
                "event": delta,
                "session_id": "a",
                "parent_tool_use_id": None,
                "uuid": "b",
            },
            ensure_ascii=escape,
            separators=(",", ":"),
        )
        ((name, data),) = translator.events(line.encode())
        assert (name, json.loads(data)["chunk"]) == ("output", text)
        assert data.isprintable()
    line = json.dumps({"type": "system", "subtype": "init", "session_id": "x" * 10_000, "model": 5})
    ((_, data),) = translator.events(line.encode())
    assert (len(json.loads(data)["sessionId"]), json.loads(data)["model"]) == (256, None)


def test_a_result_of_any_shape_is_an_outcome() -> None:
    deep: Any = []
    for _ in range(400):
        deep = [deep]
    for changed in ({"usage": {"a": deep}}, {"usage": 5}, {"permission_denials": "x" * 10**6}, {"num_turns": -1}):
        translator = Translator()
        translator.events(json.dumps({"type": "result", "is_error": False, "num_turns": 1, **changed}).encode())
        outcome = translator.outcome()
        assert outcome is not None
        sound = checked(RawEvent(9, outcome.event, to_json(outcome.data)))
        assert sound is not None
        assert json.loads(sound.data)["permissionDenials"] == []


@pytest.mark.parametrize("value", ["a\x1b[2J", "a\x9b31m", "a\u202eb", "a\nb", "a\u2028b"])
def test_a_machine_s_names_are_one_line_without_commands(value: str) -> None:
    for field in ("name", "version", "platform", "claudeVersion", "agentId"):
        with pytest.raises(InvalidRequest):
            registration(**{field: value})
    with pytest.raises(InvalidRequest):
        registration(labels=[value])
    beat = {"seqNum": 1, "status": "healthy"}
    web.loaded(agent_schemas.Heartbeat, beat)
    for changed in ({"version": value}, {"status": value}, {"executions": [value]}, {"seqNum": 2**70}):
        with pytest.raises(InvalidRequest):
            web.loaded(agent_schemas.Heartbeat, beat | changed)


@pytest.mark.parametrize(
    "reply",
    [
        {"agentId": "agent-1", "token": "tok\x1bxxxx", "heartbeatIntervalSeconds": 1},
        {"agentId": "agent-1", "token": "a\nb", "heartbeatIntervalSeconds": 1},
        {"agentId": "id\x1b[2J", "token": "token-1", "heartbeatIntervalSeconds": 1},
        {"agentId": "agent-1", "token": "t" * 100_000, "heartbeatIntervalSeconds": 1},
        {"agentId": "agent-1", "token": "token-1", "heartbeatIntervalSeconds": [1]},
        b"[" * 100_000,
    ],
)
def test_a_hub_s_reply_is_checked_before_it_is_kept(reply: Any) -> None:
    with serve() as hub:
        hub.register_with = lambda handler: handler.answer(201, reply)
        with pytest.raises(Unreachable):
            HubClient(hub.url).register("key", {})


def test_a_client_is_given_no_event_that_breaks_its_schema() -> None:
    assert sse.parsed(RawEvent(3, "output", "{nonsense")).name == "gap"
    assert sse.parsed(RawEvent(3, "complete", "[]")).data["code"] == "INVALID_EVENT"
    assert replacement(RawEvent(3, "error", "")).final
