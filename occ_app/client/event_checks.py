"""The schema of every event on the wire, for receivers.

A hub receives events from its machines, a client from either. An event that breaks its schema is never passed on. A
`gap` replaces it, so that numbers stay in step; a final event is replaced by a failure.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from occ_app.system.compact_json import object_of, to_json
from occ_app.system.foreign_text import storable
from occ_app.system.timestamps import milliseconds

MAX_SEQ = 1 << 53  # the largest whole number that every reader of JSON keeps
MAX_EVENT_BYTES = 1 << 20
MAX_MESSAGE_CHARACTERS = 64 * 1024
MAX_IMAGE_PARTS = 200
_MAX_NAME_CHARACTERS = 256
_MAX_NUMBER = 1 << 53

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_HASH = re.compile(r"[0-9a-f]{64}")
_CODE = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
# Nearly every event of a long answer is this one as an agent of OCC writes it; it needs no parser.
_PLAIN_OUTPUT = re.compile(
    r'\{"chunk":"(?:[^"\\\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]|\\["\\/bfnrt])*","timestamp":[1-9][0-9]{0,15}\}'
)


class RawEvent(NamedTuple):
    """One event as it is on the wire: `data` is its JSON text."""

    seq: int
    name: str
    data: str

    @property
    def final(self) -> bool:
        return self.name in ("complete", "error")


_Object = dict[str, Any]


def checked(event: RawEvent) -> RawEvent | None:
    """Return the event with its payload as the schema has it, or None.

    None when it breaks the schema. Optional fields with a value of another kind become null; unknown fields and
    unknown names of events are kept.
    """
    if event.name == "output" and len(event.data) <= MAX_EVENT_BYTES // 4 and _PLAIN_OUTPUT.fullmatch(event.data):
        return event
    try:
        if not 0 < event.seq <= MAX_SEQ or not _NAME.fullmatch(event.name):
            return None
        if len(event.data) > MAX_EVENT_BYTES and not event.final:
            return None
        content = storable(object_of(event.data))
        if event.name != "gap":
            content["timestamp"] = _whole(content.get("timestamp")) or milliseconds()
        check = _CHECKS.get(event.name)
        if check is not None:
            content |= check(content)
        data = to_json(content)
        if len(data) > MAX_EVENT_BYTES:
            # Only a final event comes here: the fields it must have are small.
            data = to_json(_CHECKS[event.name](content) | {"timestamp": content["timestamp"]})
    except (ValueError, RecursionError):
        return None
    return event._replace(data=data) if len(data) <= MAX_EVENT_BYTES else None


def replacement(event: RawEvent) -> RawEvent:
    """Return what takes the place of an event that breaks its schema."""
    if event.final:
        message = f"The execution ended with a {event.name} event that breaks its schema."
        data = {"code": "INVALID_EVENT", "message": message, "timestamp": milliseconds()}
        return RawEvent(event.seq, "error", to_json(data))
    data = {"fromSeq": event.seq, "toSeq": event.seq, "reason": "the event broke its schema"}
    return RawEvent(event.seq, "gap", to_json(data))


def _text(content: Mapping[str, Any], name: str, limit: int = MAX_EVENT_BYTES) -> str:
    value = content.get(name)
    if not isinstance(value, str):
        raise ValueError(f"{name} is no text")
    return value[:limit]


def _short(content: Mapping[str, Any], name: str) -> str | None:
    value = content.get(name)
    return value if isinstance(value, str) and len(value) <= _MAX_NAME_CHARACTERS else None


def _number(value: object) -> int | float | None:
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= _MAX_NUMBER
    return value if good and isinstance(value, (int, float)) else None


def _whole(value: object) -> int | None:
    good = isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _MAX_NUMBER
    return value if good and isinstance(value, int) else None


def _tool(content: Mapping[str, Any]) -> _Object:
    called: _Object = {"toolUseId": _text(content, "toolUseId", _MAX_NAME_CHARACTERS)}
    if "parentToolUseId" in content:
        called["parentToolUseId"] = _short(content, "parentToolUseId")
    if "name" in content:
        if "input" not in content:
            raise ValueError("a tool without its input")
        return called | {"name": _text(content, "name", _MAX_NAME_CHARACTERS)}
    if "result" not in content or not isinstance(content.get("isError"), bool):
        raise ValueError("a tool without a name and without a result")
    return called


def _result(content: Mapping[str, Any]) -> _Object:
    """Check the optional fields of both final events."""
    usage = content.get("usage")
    exact = content.get("costExact")  # missing in events of earlier versions
    return ({"costExact": exact is not False} if exact is not None else {}) | {
        "sessionId": _short(content, "sessionId"),
        "costUsd": _number(content.get("costUsd")),
        "numTurns": _positive(content.get("numTurns")),
        "durationMs": _positive(content.get("durationMs")),
        "usage": usage if isinstance(usage, dict) and len(to_json(usage)) <= MAX_MESSAGE_CHARACTERS else None,
    }


def _image(content: Mapping[str, Any]) -> _Object:
    numbers = {name: _whole(content.get(name)) for name in ("image", "part", "parts")}
    part, parts = numbers["part"], numbers["parts"]
    if None in numbers.values() or part is None or parts is None or not 0 <= part < parts <= MAX_IMAGE_PARTS:
        raise ValueError("no part of an image")
    media_type = _text(content, "mediaType", _MAX_NAME_CHARACTERS)
    return {"toolUseId": _text(content, "toolUseId", _MAX_NAME_CHARACTERS), "mediaType": media_type} | {
        **numbers,
        "data": _text(content, "data"),
    }


def _positive(value: object) -> int | None:
    number = _number(value)
    return None if number is None else int(number)


def _complete(content: Mapping[str, Any]) -> _Object:
    if _whole(content.get("exitCode")) != 0:
        raise ValueError("no exit code, or not that of a success")
    denials = content.get("permissionDenials")
    small = isinstance(denials, list) and len(to_json(denials)) <= MAX_EVENT_BYTES // 4
    return {**_result(content), "exitCode": content["exitCode"], "permissionDenials": denials if small else []}


def _error(content: Mapping[str, Any]) -> _Object:
    code = _text(content, "code")
    if not _CODE.fullmatch(code):
        raise ValueError("no code")
    sound: _Object = {"code": code, "message": _text(content, "message", MAX_MESSAGE_CHARACTERS)}
    for name, value in _result(content).items():
        if name in content:
            sound[name] = value
    for name in ("exitCode", "signal"):
        if name in content:
            sound[name] = _whole(content[name])
    return sound


def _gap(content: Mapping[str, Any]) -> _Object:
    first, last = _whole(content.get("fromSeq")), _whole(content.get("toSeq"))
    if first is None or last is None:
        raise ValueError("a gap without its limits")
    return {"fromSeq": first, "toSeq": last, "reason": _text(content, "reason", _MAX_NAME_CHARACTERS)}


def _task(content: Mapping[str, Any]) -> _Object:
    found: _Object = {"taskId": _text(content, "taskId", _MAX_NAME_CHARACTERS), "state": _text(content, "state", 64)}
    for name in ("toolUseId", "agentType", "tool"):
        if name in content:
            found[name] = _short(content, name)
    for name in ("description", "summary"):
        if name in content:
            found[name] = _sentence(content, name)
    return found | {name: _positive(content[name]) for name in ("tokens", "toolUses", "durationMs") if name in content}


def _todo(content: Mapping[str, Any]) -> _Object:
    items = content.get("items")
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise ValueError("no list of items")
    return {
        "items": [
            {**item, "text": _text(item, "text", MAX_MESSAGE_CHARACTERS), "state": _text(item, "state", 64)}
            for item in items
        ]
    }


def _denial(content: Mapping[str, Any]) -> _Object:
    called = {"toolUseId": _short(content, "toolUseId"), "name": _text(content, "name", _MAX_NAME_CHARACTERS)}
    return called | {"reason": _sentence(content, "reason")}


def _compaction(content: Mapping[str, Any]) -> _Object:
    sizes = {name: _positive(content.get(name)) for name in ("tokensBefore", "tokensAfter")}
    return {"trigger": _short(content, "trigger"), **sizes}


def _sentence(content: Mapping[str, Any], name: str) -> str | None:
    value = content.get(name)
    return value[:MAX_MESSAGE_CHARACTERS] if isinstance(value, str) else None


def _queued(content: Mapping[str, Any]) -> _Object:
    position = _positive(content.get("position"))
    if position is None:
        raise ValueError("no position")
    return {"position": position}


def _approval(content: Mapping[str, Any]) -> _Object:
    if "input" not in content:
        raise ValueError("an approval without its input")
    if not _HASH.fullmatch(_text(content, "inputHash")):
        raise ValueError("no hash of the input")
    names = ("kind", "tool", "inputHash")
    return {name: _text(content, name, _MAX_NAME_CHARACTERS) for name in names} | {
        "approvalId": _approval_id(content),
        "reason": _sentence(content, "reason"),
        **{name: _short(content, name) for name in ("subagent", "askedAt", "expiresAt")},
    }


def _approval_id(content: Mapping[str, Any]) -> str:
    found = _text(content, "approvalId")
    if not _ID.fullmatch(found):
        raise ValueError("no id of an approval")
    return found


def _resolved(content: Mapping[str, Any]) -> _Object:
    return {
        "approvalId": _approval_id(content),
        "state": _state(content),
        "actor": _short(content, "actor"),
        "message": _sentence(content, "message"),
    }


def _state(content: Mapping[str, Any]) -> str:
    """Return the state of an approval or an input, which a terminal shows as it is."""
    state = _text(content, "state")
    if not _NAME.fullmatch(state):
        raise ValueError("no state")
    return state


def _input(content: Mapping[str, Any]) -> _Object:
    follow_up = content.get("executionId")
    return {
        "inputId": _text(content, "inputId", _MAX_NAME_CHARACTERS),
        "text": _text(content, "text"),
        "state": _state(content),
        "executionId": follow_up if isinstance(follow_up, str) and _ID.fullmatch(follow_up) else None,
        "reason": _sentence(content, "reason"),
    }


_CHECKS: dict[str, Callable[[Mapping[str, Any]], _Object]] = {
    "queued": _queued,
    "started": lambda content: {name: _short(content, name) for name in ("sessionId", "model", "claudeVersion")},
    "output": lambda content: {"chunk": _text(content, "chunk")},
    "thinking": lambda content: {"chunk": _text(content, "chunk")},
    "tool": _tool,
    "image": _image,
    "task": _task,
    "todo": _todo,
    "denial": _denial,
    "compaction": _compaction,
    "status": lambda content: {"state": _text(content, "state", 64), "message": _text(content, "message")},
    "approval": _approval,
    "input": _input,
    "parked": lambda content: {
        "approvalId": _approval_id(content),
        **{name: _short(content, name) for name in ("kind", "tool", "expiresAt")},
    },
    "resumed": lambda content: {"approvalId": _approval_id(content)},
    "approval_resolved": _resolved,
    "complete": _complete,
    "error": _error,
    "gap": _gap,
}
