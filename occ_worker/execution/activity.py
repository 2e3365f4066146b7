"""Events about the work: sub-agents, the todo list, denied calls, compaction.

Older readers ignore them: protocol.md says to ignore unknown events.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from occ_app.system.timestamps import milliseconds
from occ_worker.execution import texts

ParsedEvent = tuple[str, dict[str, Any]]

_TEXT_BYTES = 8 * 1024  # of a description, a summary or a reason
_MAX_ITEMS = 500
_ITEM_BYTES = 512
_TASK_STATES = {"task_started": "started", "task_progress": "running"}
_TODO_TOOLS = ("TaskCreate", "TaskUpdate", "TaskList", "TodoWrite")


def of_system(content: Mapping[str, Any]) -> list[ParsedEvent]:
    """Return the events of a system line of the CLI.

    None for a subtype that is no activity.
    """
    subtype = content.get("subtype")
    if subtype in ("task_started", "task_progress", "task_notification"):
        return [_task(content)]
    if subtype == "permission_denied":
        reason = _text(content.get("decision_reason") or content.get("message"))
        call, name = texts.text_of(content["tool_use_id"]), texts.text_of(content["tool_name"])
        return [("denial", {"toolUseId": call, "name": name, "reason": reason, "timestamp": milliseconds()})]
    if subtype == "compact_boundary":
        sizes = content.get("compact_metadata") or {}
        before, after = _count(sizes.get("pre_tokens")), _count(sizes.get("post_tokens"))
        data = {"trigger": texts.text_of(sizes.get("trigger")), "tokensBefore": before, "tokensAfter": after}
        return [("compaction", data | {"timestamp": milliseconds()})]
    return []


def _task(content: Mapping[str, Any]) -> ParsedEvent:
    usage = content.get("usage") or {}
    data = {
        "taskId": texts.text_of(content["task_id"]),
        "toolUseId": texts.text_of(content.get("tool_use_id")),
        "state": _TASK_STATES.get(content["subtype"]) or texts.text_of(content.get("status")) or "ended",
        "agentType": texts.text_of(content.get("subagent_type")),
        "description": _text(content.get("description")),
        "summary": _text(content.get("summary")),
        "tool": texts.text_of(content.get("last_tool_name")),
        "tokens": _count(usage.get("total_tokens")),
        "toolUses": _count(usage.get("tool_uses")),
        "durationMs": _count(usage.get("duration_ms")),
    }
    known = {name: value for name, value in data.items() if value is not None}
    return ("task", known | {"timestamp": milliseconds()})


class Todo:
    """The todo list as the calls of the CLI's tools leave it.

    Of a resumed session it has only items seen since then.
    """

    def __init__(self) -> None:
        self._items: dict[str, tuple[str, str]] = {}  # text and state by id
        self._calls: dict[str, Mapping[str, Any]] = {}  # calls without a result, by id

    def note_call(self, name: str, call_id: str, values: object) -> None:
        """Keep the input of a call that may change the list."""
        if name in _TODO_TOOLS and isinstance(values, dict) and len(self._calls) < _MAX_ITEMS:
            self._calls[call_id] = {"name": name, **values}

    def result(self, call_id: str, result: object, *, failed: bool) -> list[ParsedEvent]:
        """Return the list as an event if the result of a call changes it.

        `result` is the CLI's structure.
        """
        call = self._calls.pop(call_id, None)
        if call is None or failed:
            return []
        before = dict(self._items)
        self._apply(call, result if isinstance(result, dict) else {})
        return [self._event()] if self._items != before else []

    def _apply(self, call: Mapping[str, Any], result: Mapping[str, Any]) -> None:
        if call["name"] == "TodoWrite":
            self._items = {str(number): _item(item, "content") for number, item in enumerate(call["todos"], 1)}
        elif call["name"] == "TaskList":
            self._items = {str(item["id"]): _item(item, "subject") for item in result["tasks"]}
        elif call["name"] == "TaskCreate":
            self._put(str(result["task"]["id"]), str(result["task"]["subject"]), "pending")
        else:
            task_id = str(result["taskId"])
            text, state = self._items.get(task_id, (f"#{task_id}", "pending"))
            state = str((result.get("statusChange") or {}).get("to", state))
            if state == "deleted":
                self._items.pop(task_id, None)
            else:
                self._put(task_id, str(call.get("subject") or text), state)

    def _put(self, task_id: str, text: str, state: str) -> None:
        if task_id in self._items or len(self._items) < _MAX_ITEMS:
            self._items[task_id] = (text, state)

    def _event(self) -> ParsedEvent:
        items, room = list[dict[str, Any]](), texts.VALUE_BYTES
        for task_id, (text, state) in self._items.items():
            item = {"id": texts.text_of(task_id), "text": _text(text, _ITEM_BYTES), "state": texts.text_of(state)}
            room -= texts.json_size(item) + 1
            if room < 0:
                break
            items.append(item)
        cut = {"truncated": True} if len(items) < len(self._items) else {}
        return ("todo", {"items": items, "timestamp": milliseconds(), **cut})


def _item(item: Mapping[str, Any], name: str) -> tuple[str, str]:
    return str(item[name]), str(item["status"])


def _text(value: object, room: int = _TEXT_BYTES) -> str | None:
    return next(texts.pieces(texts.whole_characters(value), room), "") if isinstance(value, str) else None


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 53 else None
