"""Lines of a terminal for thinking, sub-agents, the todo list and compaction."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from occ_app.cli.output import printable

_LINE_LENGTH = 200
INNER = "  "  # before the line of a tool that a sub-agent uses


def _task(data: Mapping[str, Any]) -> str | None:
    if data["state"] in ("started", "running"):
        return None  # its call and the tools that it uses are shown
    return printable(f"[{data.get('agentType') or 'task'} {data['state']}] {data.get('summary') or ''}")[:_LINE_LENGTH]


def _todo(data: Mapping[str, Any]) -> str:
    done = sum(item["state"] == "completed" for item in data["items"])
    current = next((f", now: {item['text']}" for item in data["items"] if item["state"] == "in_progress"), "")
    return printable(f"[todo] {done} of {len(data['items'])} done{current}")[:_LINE_LENGTH]


def _compaction(data: Mapping[str, Any]) -> str:
    before, after = data["tokensBefore"], data["tokensAfter"]
    sizes = "" if before is None or after is None else f": {before} tokens became {after}"
    return f"[compacted] the conversation{sizes}"


# Of a denial there is the result of its call as well.
LINES: Mapping[str, Callable[[Mapping[str, Any]], str | None]] = {
    "thinking": lambda _: "[thinking]",
    "task": _task,
    "todo": _todo,
    "compaction": _compaction,
}
