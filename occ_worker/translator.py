"""What the CLI's lines mean as events, and what its result says of the outcome.

Read off versions 2.1.197 and 2.1.330; lines of an unknown type or shape are counted and passed over, so that a newer
CLI loses what OCC does not know and nothing else.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from occ_app.events import milliseconds, to_json
from occ_app.records import Outcome

CHUNK_BYTES = 64 * 1024

Event = tuple[str, str]
"""The event's name and its data, a JSON object as text."""

_Said = tuple[str, dict[str, Any]]

# Almost every line of a long answer is this one, down to the byte. Its text is JSON already and goes into the event as
# it stands; whatever looks different in the least, an escape by number among it, takes the way through the parser.
_PLAIN = rb'[^"\\\x00-\x1f]*'
_TEXT_DELTA = re.compile(
    rb'\{"type":"stream_event","event":\{"type":"content_block_delta","index":\d+,'
    rb'"delta":\{"type":"text_delta","text":"(' + _PLAIN + rb'(?:\\["\\/bfnrt]' + _PLAIN + rb')*)"\}\},'
    rb'"session_id":"[0-9a-f-]*","parent_tool_use_id":null,"uuid":"[0-9a-f-]*"\}'
)


class Translator:
    """Turns the CLI's lines into events. Feed it whole lines in order; `result` is its last word, once it came."""

    def __init__(self) -> None:
        self.result: dict[str, Any] | None = None
        self.init: dict[str, Any] | None = None
        self.unreadable = 0
        self._surrogate = ""  # a high surrogate at the end of a delta, waiting for the next one
        self._message_id = ""
        self._streamed: set[str] = set()  # messages whose text came as deltas
        self._error = ""

    def events(self, line: bytes) -> list[Event]:
        """The events one line means; unknown and unreadable lines mean none."""
        delta = _TEXT_DELTA.fullmatch(line)
        if delta is not None and not self._surrogate and 0 < len(delta[1]) <= CHUNK_BYTES:
            with contextlib.suppress(UnicodeDecodeError):
                event = ("output", f'{{"chunk":"{delta[1].decode()}","timestamp":{milliseconds()}}}')
                self._streamed.add(self._message_id)
                return [event]
        return [(name, to_json(data)) for name, data in self._parsed(line)]

    def _parsed(self, line: bytes) -> list[_Said]:
        try:
            content = json.loads(line)
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
        except (AttributeError, KeyError, TypeError, ValueError):
            self.unreadable += 1  # a known type with an unknown shape: a newer CLI; the rest may still be understood
            return []

    def _stream_event(self, content: dict[str, Any]) -> list[_Said]:
        event = content["event"]
        kind = event["type"]
        if kind == "content_block_delta":
            delta = event["delta"]
            if delta["type"] != "text_delta" or content.get("parent_tool_use_id"):
                return []
            self._streamed.add(self._message_id)
            return self._text(delta["text"])
        if kind == "message_start" and not content.get("parent_tool_use_id"):
            self._message_id = event["message"]["id"]
        return self._flush() if kind == "content_block_stop" else []

    def _text(self, text: str) -> list[_Said]:
        text, self._surrogate = self._surrogate + text, ""
        if not text.isascii():
            if "\ud800" <= text[-1] <= "\udbff":
                text, self._surrogate = text[:-1], text[-1]
            text = _whole_characters(text)
        return [_output(piece) for piece in _pieces(text)] if text else []

    def _flush(self) -> list[_Said]:
        """What waited for the other half of a character that did not come."""
        if not self._surrogate:
            return []
        self._surrogate = ""
        return [_output("\ufffd")]

    def _assistant(self, content: dict[str, Any]) -> list[_Said]:
        message = content["message"]
        events: list[_Said] = []
        for block in message["content"]:
            if block["type"] == "text":
                if content.get("error"):
                    self._error = str(content["error"])
                elif message["id"] not in self._streamed and not content.get("parent_tool_use_id"):
                    # Said without deltas: a command the CLI answered itself.
                    events += self._text(block["text"]) + self._flush()
            elif block["type"] == "tool_use":
                events.append(_tool_use(block))
        return events

    def _user(self, content: dict[str, Any]) -> list[_Said]:
        blocks = content["message"]["content"]
        if isinstance(blocks, str):
            return []
        return [_tool_result(block) for block in blocks if block.get("type") == "tool_result"]

    def _system(self, content: dict[str, Any]) -> list[_Said]:
        kind = content.get("subtype")
        if kind == "init" and self.init is None:
            self.init = content
            data = {
                "sessionId": _text_of(content.get("session_id")),
                "model": _text_of(content.get("model")),
                "claudeVersion": _text_of(content.get("claude_code_version")),
                "timestamp": milliseconds(),
            }
            return [("started", data)]
        if kind == "status" and content.get("status") in ("requesting", "compacting"):
            return [_status(content["status"], "")]
        if kind == "api_retry":
            reason = content.get("error") or content.get("error_status") or "no answer"
            return [_status("retrying", f"Try {content['attempt']} of {content['max_retries']} after: {reason}")]
        return []

    def _rate_limit(self, content: dict[str, Any]) -> list[_Said]:
        limit = content.get("rate_limit_info") or {}
        if limit.get("status") != "rejected":
            return []
        return [_status("waiting", "The usage limit is reached.")]

    def _result(self, content: dict[str, Any]) -> list[_Said]:
        if self.result is not None:
            return []
        self.result = content
        events = self._flush()
        if content.get("is_error") is False and content.get("num_turns") == 0 and not self._streamed:
            events += self._text(str(content.get("result") or "")) + self._flush()
        return events

    def outcome(self) -> Outcome | None:
        """What the CLI's result line decides; None when there was none."""
        result = self.result
        if result is None:
            return None
        told = {
            "sessionId": _text_of(result.get("session_id")),
            "costUsd": _number_of(result.get("total_cost_usd")),
            "numTurns": _number_of(result.get("num_turns")),
            "durationMs": _number_of(result.get("duration_ms")),
        }
        usage = _storable(result.get("usage"))
        if result.get("is_error") is False:
            data = {
                "exitCode": 0,
                "timestamp": milliseconds(),
                **told,
                "usage": usage,
                "permissionDenials": _storable(result.get("permission_denials")) or [],
            }
            return Outcome("succeeded", "complete", data, usage)
        code, message = _failure(result, self._error)
        failed = Outcome.failure(code, message, **told)
        return Outcome(failed.state, failed.event, failed.data, usage)


def _text_of(value: object) -> str | None:
    """A text that can be stored; None for anything else, whatever a newer CLI may say there."""
    return value.encode(errors="replace").decode() if isinstance(value, str) else None


def _storable(value: Any) -> Any:
    """The value with every lone surrogate in it replaced: no database and no strict client takes one."""
    return json.loads(json.dumps(value, ensure_ascii=False).encode(errors="replace"))


def _number_of(value: object) -> int | float | None:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1 << 62 else None


_HANDLERS = {
    "stream_event": Translator._stream_event,
    "assistant": Translator._assistant,
    "user": Translator._user,
    "system": Translator._system,
    "rate_limit_event": Translator._rate_limit,
    "result": Translator._result,
}

_ADVICE = {
    "CLAUDE_AUTH": "log in with `claude` on the agent's machine, or set ANTHROPIC_API_KEY there.",
    "RATE_LIMITED": "try again when the limit has passed.",
    "API_UNAVAILABLE": "the model's API has trouble or cannot be reached; try again later.",
    "MAX_TURNS": "send the session's next prompt to go on, or raise maxTurns.",
    "MAX_BUDGET": "raise maxBudgetUsd to go on.",
    "SESSION_NOT_FOUND": "a session goes on only in the workspace where it began; leave sessionId out to begin anew.",
}


def _failure(result: Mapping[str, Any], error: str) -> tuple[str, str]:
    """The wire's code and a sentence for an unsuccessful result; `subtype` says "success" even on API errors."""
    said = str(result.get("result") or "; ".join(map(str, result.get("errors") or [])) or result.get("subtype"))
    code = _failure_code(result, error, said)
    advice = f" To go on: {_ADVICE[code]}" if code in _ADVICE else ""
    return code, f"Claude Code said: {_whole_characters(said)[:2000].rstrip('.')}.{advice}"


def _failure_code(result: Mapping[str, Any], error: str, said: str) -> str:
    status = result.get("api_error_status")
    subtype = result.get("subtype")
    if subtype == "error_max_turns":
        return "MAX_TURNS"
    if subtype == "error_max_budget_usd":
        return "MAX_BUDGET"
    if "No conversation found" in said or "is not a valid UUID" in said:
        return "SESSION_NOT_FOUND"
    if status in (401, 403) or error in ("authentication_failed", "oauth_org_not_allowed") or "Not logged in" in said:
        return "CLAUDE_AUTH"
    if status == 429 or error == "rate_limit":
        return "RATE_LIMITED"
    unreachable = "Unable to connect" in said or "Connection error" in said
    if (isinstance(status, int) and status >= 500) or error in ("server_error", "overloaded") or unreachable:
        return "API_UNAVAILABLE"
    return "CLAUDE_ERROR"


def _output(chunk: str) -> _Said:
    return ("output", {"chunk": chunk, "timestamp": milliseconds()})


def _status(state: str, message: str) -> _Said:
    return ("status", {"state": state, "message": message, "timestamp": milliseconds()})


def _tool_use(block: Mapping[str, Any]) -> _Said:
    value, truncated = _cut(block.get("input"))
    data = {"toolUseId": block["id"], "name": block["name"], "input": value, "timestamp": milliseconds()}
    return ("tool", data | ({"truncated": True} if truncated else {}))


def _tool_result(block: Mapping[str, Any]) -> _Said:
    content = block.get("content")
    if isinstance(content, list):
        content = "\n".join(
            part["text"] if part.get("type") == "text" else f"[{part.get('type', 'unknown')}]" for part in content
        )
    value, truncated = _cut("" if content is None else content)
    data = {
        "toolUseId": block["tool_use_id"],
        "result": value,
        "isError": bool(block.get("is_error")),
        "timestamp": milliseconds(),
    }
    return ("tool", data | ({"truncated": True} if truncated else {}))


def _cut(value: Any) -> tuple[Any, bool]:
    """A value of at most 64 KiB, and whether it was cut: long texts keep their beginning, and the shape stays."""
    value = _clean(value)
    if len(to_json(value).encode()) <= CHUNK_BYTES:
        return value, False
    if isinstance(value, str):
        return next(_pieces(value)), True
    if isinstance(value, dict):
        texts = sum(isinstance(item, str) for item in value.values()) or 1
        room = CHUNK_BYTES // texts
        kept = {k: next(_pieces(v, room), "") if isinstance(v, str) else v for k, v in value.items()}
        if len(to_json(kept).encode()) <= 2 * CHUNK_BYTES:
            return kept, True
    return next(_pieces(to_json(value))), True


def _clean(value: Any) -> Any:
    """The same value with no lone surrogate in any text of it."""
    if isinstance(value, str):
        return _whole_characters(value)
    if isinstance(value, dict):
        return {_whole_characters(str(key)): _clean(item) for key, item in value.items()}
    return [_clean(item) for item in value] if isinstance(value, list) else value


_LONE = re.compile("[\ud800-\udfff]")


def _whole_characters(text: str) -> str:
    """Text whose surrogate pairs are joined and whose lone surrogates are U+FFFD."""
    if text.isascii() or not _LONE.search(text):
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _pieces(text: str, room: int = CHUNK_BYTES) -> Iterator[str]:
    """The text in pieces of at most `room` bytes of UTF-8, cut between characters."""
    if len(text) * 4 <= room:
        yield text
        return
    encoded = text.encode()
    start = 0
    while start < len(encoded):
        end = min(start + room, len(encoded))
        while end < len(encoded) and encoded[end] & 0xC0 == 0x80:
            end -= 1
        yield encoded[start:end].decode()
        start = end
