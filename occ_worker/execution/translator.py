"""Translating the CLI's lines into events.

Read off versions 2.1.197, 2.1.330 and 2.1.332; lines of an unknown type or shape are counted and passed over, so that a
newer CLI loses what OCC does not know and nothing else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from occ_app.executions.events import NewEvent
from occ_app.executions.records import Outcome
from occ_app.system.compact_json import escape_controls, to_json
from occ_app.system.timestamps import milliseconds
from occ_worker.execution import activity, images, texts
from occ_worker.execution import outcome as verdict

_ParsedEvent = tuple[str, dict[str, Any]]

# Almost every line of a long answer matches this. Its text is JSON already and goes into the event unchanged; any line
# that differs, even by a numeric escape, goes through the parser. The fields after the event are flat and differ
# between versions of the CLI, so any are accepted, except a parent: a sub-agent's text is no output.
# No part of it can match in two ways, so it never goes back.
_PLAIN = rb'[^"\\\x00-\x1f\x7f]*+'
_TEXT_DELTA = re.compile(
    rb'\{"type":"stream_event","event":\{"type":"content_block_delta","index":\d++,'
    rb'"delta":\{"type":"text_delta","text":"(' + _PLAIN + rb'(?:\\["\\/bfnrt]' + _PLAIN + rb')*+)"\}\}'
    rb'(?:,"(?:parent_tool_use_id":null|(?!parent_tool_use_id"|type"|event")[a-z_]++":(?:"[ !#-\[\]-~]*+"|null)))*+\}'
)


class Translator:
    """Turns the CLI's whole lines into events; `result` is its last one, once it came.

    `resumed`: an earlier process has sent the `started` event.
    """

    def __init__(self, *, resumed: bool = False) -> None:
        self.result: dict[str, Any] | None = None
        self.init: dict[str, Any] | None = None
        self._resumed = resumed
        self._calls: set[str] = set()  # those of the main thread's message that have no result yet
        self._whole = False  # whether that message is known to its end
        self.unreadable = 0
        self.messages = 0  # of the model that have begun, without those of sub-agents
        self.tools: set[str] = set()  # names of those that were called, by sub-agents too
        self.open_tools: set[str] = set()  # calls without a result, without those of sub-agents
        self.last_message: str | None = None  # the id of the model's last one, without those of sub-agents
        self._earlier: list[dict[str, Any]] = []  # results of turns before the current one
        self._surrogate = ""  # a high surrogate at the end of a delta, waiting for the next one
        self._message_id = ""
        self._streamed: set[str] = set()  # messages whose text came as deltas
        self._error = ""
        self._todo = activity.Todo()
        self._images = images.Images()

    def events(self, line: bytes) -> list[NewEvent]:
        """Return the events of one line; unknown and unreadable lines have none."""
        delta = _TEXT_DELTA.fullmatch(line)
        chunk = b"" if delta is None else delta[1]
        if not 0 < len(chunk) <= texts.CHUNK_BYTES or self._surrogate:
            return self._other(line)
        try:
            text = chunk.decode()
        except UnicodeDecodeError:
            return self._other(line)
        if not text.isascii():
            text = escape_controls(text)
            if len(text) > texts.CHUNK_BYTES // 6 and len(text.encode()) > texts.CHUNK_BYTES:
                return self._other(line)
        self._streamed.add(self._message_id)
        return [("output", f'{{"chunk":"{text}","timestamp":{milliseconds()}}}')]

    def _other(self, line: bytes) -> list[NewEvent]:
        try:
            return [(name, texts.whole_characters(to_json(data))) for name, data in self._parsed(line)]
        except (RecursionError, ValueError):
            self.unreadable += 1  # nested as deep as no text of JSON can be written
            return []

    def _parsed(self, line: bytes) -> list[_ParsedEvent]:
        try:
            content = json.loads(line, parse_constant=_no_number)
        except (ValueError, RecursionError):
            self.unreadable += bool(line.strip())
            return []
        if not isinstance(content, dict):
            self.unreadable += 1
            return []
        kind = content.get("type")
        handle = _HANDLERS.get(kind) if isinstance(kind, str) else None
        try:
            return handle(self, content) if handle else []
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
            self.unreadable += 1  # a known type with an unknown shape: a newer CLI; the rest may still be understood
            return []

    def _stream_event(self, content: dict[str, Any]) -> list[_ParsedEvent]:
        event = content["event"]
        kind = event["type"]
        if kind == "content_block_delta":
            delta = event["delta"]
            if delta["type"] == "thinking_delta" and not content.get("parent_tool_use_id"):
                return _thinking(delta["thinking"])
            if delta["type"] != "text_delta" or content.get("parent_tool_use_id"):
                return []
            self._streamed.add(self._message_id)
            return self._text(delta["text"])
        if not content.get("parent_tool_use_id"):
            self._note_calls(kind, event)
        if kind == "message_start" and not content.get("parent_tool_use_id"):
            self.messages += 1
            self._message_id = event["message"]["id"]
        return self._take_rest() if kind == "content_block_stop" else []

    def _note_calls(self, kind: str, event: dict[str, Any]) -> None:
        if kind == "message_start":
            self._calls, self._whole = set(), False
        elif kind == "content_block_start" and event["content_block"]["type"] == "tool_use":
            self._calls.add(event["content_block"]["id"])
        elif kind == "message_stop":
            self._whole = True

    def is_alone(self, tool_use_id: str) -> bool:
        """Return whether a call is the only one of its message that has no result."""
        return self._whole and self._calls == {tool_use_id}

    def _text(self, text: str) -> list[_ParsedEvent]:
        text, self._surrogate = self._surrogate + text, ""
        if not text.isascii():
            if "\ud800" <= text[-1] <= "\udbff":
                text, self._surrogate = text[:-1], text[-1]
            text = texts.whole_characters(text)
        return [_output(piece) for piece in texts.pieces(text)] if text else []

    def _take_rest(self) -> list[_ParsedEvent]:
        """Return a replacement for half a character whose other half did not come."""
        if not self._surrogate:
            return []
        self._surrogate = ""
        return [_output("\ufffd")]

    def _assistant(self, content: dict[str, Any]) -> list[_ParsedEvent]:
        message = content["message"]
        if not content.get("parent_tool_use_id") and not content.get("error"):
            self.last_message = texts.text_of(content.get("uuid")) or self.last_message
        events: list[_ParsedEvent] = []
        for block in message["content"]:
            if block["type"] == "text":
                if content.get("error"):
                    self._error = str(content["error"])
                elif message["id"] not in self._streamed and not content.get("parent_tool_use_id"):
                    # Said without deltas: a command the CLI answered itself.
                    events += self._text(block["text"]) + self._take_rest()
            elif block["type"] == "tool_use":
                events.append(_tool_use(block, content.get("parent_tool_use_id")))
                self.tools.add(str(block["name"]))
                if not content.get("parent_tool_use_id"):
                    self.open_tools.add(str(block["id"]))
                self._todo.note_call(block["name"], block["id"], block.get("input"))
                self._images.note_call(block["name"], block["id"])
        return events

    def _user(self, content: dict[str, Any]) -> list[_ParsedEvent]:
        blocks = content["message"]["content"]
        if isinstance(blocks, str):
            return []
        events: list[_ParsedEvent] = []
        for block in blocks:
            if block.get("type") == "tool_result":
                self._calls.discard(str(block.get("tool_use_id")))
                events += [*self._images.events(block), _tool_result(block, content.get("parent_tool_use_id"))]
                self.open_tools.discard(str(block["tool_use_id"]))
                events += self._todo_after(block, content.get("tool_use_result"))
        return events

    def _todo_after(self, block: dict[str, Any], result: object) -> list[_ParsedEvent]:
        try:
            return self._todo.result(block["tool_use_id"], result, failed=bool(block.get("is_error")))
        except (AttributeError, KeyError, TypeError, ValueError):
            return []  # the tool's result has another shape in a newer CLI; the call itself is shown

    def _system(self, content: dict[str, Any]) -> list[_ParsedEvent]:
        kind = content.get("subtype")
        if kind == "init" and self.init is None:
            self.init = content
            if self._resumed:
                return []
            data = {
                "sessionId": texts.text_of(content.get("session_id")),
                "model": texts.text_of(content.get("model")),
                "claudeVersion": texts.text_of(content.get("claude_code_version")),
                "timestamp": milliseconds(),
            }
            return [("started", data)]
        if kind == "status" and content.get("status") in ("requesting", "compacting"):
            return [_status(content["status"], "")]
        if kind == "api_retry":
            reason = content.get("error") or content.get("error_status") or "no answer"
            shown = texts.whole_characters(str(reason))[:2000]
            return [_status("retrying", f"Try {content['attempt']} of {content['max_retries']} after: {shown}")]
        return activity.of_system(content)

    def _rate_limit(self, content: dict[str, Any]) -> list[_ParsedEvent]:
        limit = content.get("rate_limit_info") or {}
        if limit.get("status") != "rejected":
            return []
        return [_status("waiting", "The usage limit is reached.")]

    def _result(self, content: dict[str, Any]) -> list[_ParsedEvent]:
        if self.result is not None:
            return []
        self.result = content
        events = self._take_rest()
        if content.get("is_error") is False and content.get("num_turns") == 0 and not self._streamed:
            events += self._text(str(content.get("result") or "")) + self._take_rest()
        return events

    def begin_turn(self) -> None:
        """Expect another result: the CLI began a turn for a text after the last one."""
        if self.result is not None:
            self._earlier.append(self.result)
            self.result, self._error = None, ""

    def outcome(self) -> Outcome | None:
        """Return the outcome of the CLI's result line; None when there was none."""
        if self.result is None:
            return None
        return verdict.of_result(verdict.joined([*self._earlier, self.result]), self._error)


_HANDLERS = {
    "stream_event": Translator._stream_event,
    "assistant": Translator._assistant,
    "user": Translator._user,
    "system": Translator._system,
    "rate_limit_event": Translator._rate_limit,
    "result": Translator._result,
}


def _no_number(_: str) -> None:
    """NaN and Infinity, which JSON does not know."""


def _thinking(text: str) -> list[_ParsedEvent]:
    pieces = texts.pieces(texts.whole_characters(text)) if text else ()
    return [("thinking", {"chunk": piece, "timestamp": milliseconds()}) for piece in pieces]


def _output(chunk: str) -> _ParsedEvent:
    return ("output", {"chunk": chunk, "timestamp": milliseconds()})


def _status(state: str, message: str) -> _ParsedEvent:
    return ("status", {"state": state, "message": message, "timestamp": milliseconds()})


def _name(value: object) -> str:
    """Return a name or an id of the CLI's. Raises TypeError for other types."""
    name = texts.text_of(value)
    if name is None:
        raise TypeError(value)
    return name


def _of_parent(parent: object) -> dict[str, Any]:
    """Return the field that names a sub-agent's call; empty for the main thread."""
    call = texts.text_of(parent)
    return {} if call is None else {"parentToolUseId": call}


def _tool_use(block: Mapping[str, Any], parent: object) -> _ParsedEvent:
    value, truncated = texts.cut(block.get("input"))
    names = {"toolUseId": _name(block["id"]), "name": _name(block["name"])}
    data = {**names, **_of_parent(parent), "input": value, "timestamp": milliseconds()}
    return ("tool", data | ({"truncated": True} if truncated else {}))


def _tool_result(block: Mapping[str, Any], parent: object) -> _ParsedEvent:
    content = block.get("content")
    if isinstance(content, list):
        content = "\n".join(
            part["text"] if part.get("type") == "text" else f"[{part.get('type', 'unknown')}]" for part in content
        )
    value, truncated = texts.cut("" if content is None else content)
    data = {
        "toolUseId": _name(block["tool_use_id"]),
        **_of_parent(parent),
        "result": value,
        "isError": bool(block.get("is_error")),
        "timestamp": milliseconds(),
    }
    return ("tool", data | ({"truncated": True} if truncated else {}))
