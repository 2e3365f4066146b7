"""Lines of event streams: whatever the CLI prints, none over 64 KiB, and every piece of text arrives whole."""

from __future__ import annotations

import json
import sqlite3
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from occ_app.executions.events import StoredEvent
from occ_app.system.compact_json import to_json
from occ_worker.execution import outcome, texts
from occ_worker.execution.translator import Translator
from tests import sentences
from tests.conftest import Occ, output, steps

ODD = ["x", "\x1b[31m", "\x01", '"', "\\", "é", "日", "😀", "\u2028", "\u0085", "\x7f", "\n"]


def line_of(content: dict[str, Any], *, ascii_only: bool = True) -> bytes:
    return json.dumps(content, ensure_ascii=ascii_only, separators=(",", ":")).encode()


def lines(printed: bytes) -> list[tuple[str, str]]:
    """Return the events of a line of the CLI, each checked as it is sent with the largest of ids."""
    events = Translator().events(printed)
    for name, data in events:
        sent = StoredEvent(10**15, name, data).sse
        assert max(map(len, sent.splitlines(keepends=True))) <= texts.LINE_BYTES, (name, len(data))
        assert len(sent.decode().splitlines()) == 4  # no separator of Unicode cuts a line
    return events


def delta(text: str) -> dict[str, Any]:
    piece = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}
    return {"type": "stream_event", "event": piece, "session_id": "0", "parent_tool_use_id": None, "uuid": "0"}


@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("piece", ODD)
def test_a_delta_is_split_by_the_size_of_its_line(piece: str, ascii_only: bool) -> None:
    for length in (65_000, 65_536, 200_000):
        text = piece * (length // len(piece.encode()))
        events = lines(line_of(delta(text), ascii_only=ascii_only))
        assert "".join(json.loads(data)["chunk"] for _, data in events) == text


@pytest.mark.parametrize("piece", ODD)
@pytest.mark.parametrize("shape", ["text", "one", "many", "list", "keys", "deep"])
def test_a_tool_s_value_and_names_fit_into_a_line(piece: str, shape: str) -> None:
    text = piece * (150_000 // len(piece))
    value = {
        "text": text,
        "one": {"file_path": "a", "content": text},
        "many": {str(number): text[:9000] for number in range(300)},
        "list": [text[:900]] * 200,
        "keys": {text[:900] + str(number): 1 for number in range(200)},
        "deep": {"a": [{"b": text}], "c": "short"},
    }[shape]
    call = {"type": "tool_use", "id": text, "name": text, "input": value}
    events = lines(line_of({"type": "assistant", "message": {"id": "m", "content": [call]}}))
    data = json.loads(events[0][1])
    assert data["truncated"] is True
    assert shape != "one" or data["input"]["file_path"] == "a"
    result = {"type": "tool_result", "tool_use_id": text, "content": text}
    events = lines(line_of({"type": "user", "message": {"content": [result]}}))
    kept = json.loads(events[0][1])
    assert text.startswith(kept["result"])
    assert len(json.dumps(kept["result"])) > 20_000  # as much as there is room for
    assert kept["toolUseId"] == data["toolUseId"]


@pytest.mark.parametrize("piece", ODD)
def test_starts_states_and_ends_fit_into_a_line(piece: str) -> None:
    text = piece * 100_000
    init = {"type": "system", "subtype": "init", "session_id": text, "model": text, "claude_code_version": text}
    assert lines(line_of(init))
    retry = {"type": "system", "subtype": "api_retry", "error": text, "attempt": 1, "max_retries": 2}
    assert lines(line_of(retry))
    denial = {"tool_name": "Write", "tool_use_id": "t", "tool_input": {"file_path": "a", "content": text}}
    for is_error in (False, True):
        result = {"is_error": is_error, "session_id": text, "result": text, "subtype": text}
        result |= {"usage": {"input_tokens": 1, text: 1}, "permission_denials": [denial] * 5}
        ended = outcome.of_result(result, text)
        assert len(StoredEvent(10**15, ended.event, to_json(ended.data)).sse) <= texts.LINE_BYTES
        if not is_error:
            assert ended.data["permissionDenials"][0]["tool_input"]["file_path"] == "a"


@settings(max_examples=100, deadline=None)
@given(st.text(), st.integers(6, 60))
def test_pieces_are_the_text_and_none_is_larger_than_the_room(text: str, room: int) -> None:
    text = texts.whole_characters(text)
    found = list(texts.pieces(text, room))
    assert "".join(found) == text
    assert all(texts.json_size(piece) - 2 <= room for piece in found)


def test_a_reader_that_has_the_end_is_answered_204(agent: Occ) -> None:
    text = "x" * 65_536 + "\u2028"
    events = agent.run(steps({"say": text}), executionId="over")
    assert output(events) == text
    last = events[-1].seq
    for _ in range(2):
        response = agent.request("GET", "/executions/over/events", Last_Event_ID=str(last))
        assert (response.status, response.data) == (204, b"")
    # A reader that is ahead of the end still gets it, and so does every other way to ask.
    for path, ahead in (("events", last + 1), ("events", last - 1), (f"events?after={last}", None)):
        headers = {} if ahead is None else {"Last_Event_ID": str(ahead)}
        response = agent.request("GET", f"/executions/over/{path}", **headers)
        assert (response.status, b"event: complete" in response.data) == (200, True)
    again = agent.client.execute("work", steps({"say": text}), executionId="over")
    assert list(again)[-1].final
    assert list(agent.client.events("over", after=last))[-1].final


def test_the_end_that_a_recovery_wrote_is_sent_to_a_reader_with_its_id(agent: Occ) -> None:
    agent.run("hi", executionId="lost")
    database = agent.home / "occ.db"
    final = {"code": "WORKER_LOST", "message": "lost", "timestamp": 1}
    with sqlite3.connect(database, timeout=10) as connection:
        connection.execute("UPDATE executions SET error_code = 'WORKER_LOST' WHERE execution_id = 'lost'")
        (seq,) = connection.execute("SELECT last_seq FROM executions WHERE execution_id = 'lost'").fetchone()
        connection.execute(
            "UPDATE events SET event = 'error', data = :data WHERE seq = :seq"
            " AND execution = (SELECT number FROM executions WHERE execution_id = 'lost')",
            {"data": json.dumps(final), "seq": seq},
        )
    connection.close()
    response = agent.request("GET", "/executions/lost/events", Last_Event_ID=str(seq))
    assert (response.status, b"event: error" in response.data) == (200, True)


def test_json_ends_with_a_line_break(agent: Occ) -> None:
    for path in ("/health", "/executions", "/openapi.json", "/executions/none", "/nowhere"):
        assert agent.request("GET", path).data.endswith(b"}\n"), path


def test_the_document_describes_streams_as_texts_and_leaves_replies_open(agent: Occ) -> None:
    document = agent.request("GET", "/openapi.json").json()
    assert document["servers"] == [{"url": "/", "description": sentences.THE_AGENT_OR_HUB_THAT_SERVES}]
    for path, method in (("/execute", "post"), ("/executions/{execution_id}/events", "get")):
        success = document["paths"][path][method]["responses"]["200"]
        assert success["content"]["text/event-stream"]["schema"]["type"] == "string"
    assert "204" in document["paths"]["/executions/{execution_id}/events"]["get"]["responses"]
    found = document["components"]["schemas"]
    closed = {name for name, schema in found.items() if schema.get("additionalProperties") is False}
    operations = [each for path in document["paths"].values() for each in path.values() if isinstance(each, dict)]
    bodies = json.dumps([each["requestBody"] for each in operations if "requestBody" in each])
    assert {"ApprovalAnswer", "ExecuteBody", "InitUpload", "RestoreBody"} <= closed
    assert all(f"#/components/schemas/{name}" in bodies for name in closed)
