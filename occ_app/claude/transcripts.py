"""The CLI's transcript of a session, as far as OCC reads it.

It shows whether a call is the only one without a result. The CLI writes a transcript after its output, line by line,
so the transcript of a killed process may lack its end. Each line names the one before it. docs/claude-cli.md has the
measurements.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from occ_app.claude.projects import folders

_LARGEST = 1 << 28  # bytes of a transcript that is read


def waits_for(claude: Path, workspace: Path, session_id: str, tool_use_id: str) -> bool:
    """Return whether a call is the end of a whole transcript, and alone unanswered.

    Only then may a process that resumes the session ask the model again: it sees the results of all calls that ran.
    False for a transcript that is missing or has an unknown form.
    """
    paths = [folder / f"{session_id}.jsonl" for folder in folders(claude, workspace)]
    path = next((path for path in paths if path.is_file()), None)
    try:
        if path is None or path.stat().st_size > _LARGEST:
            return False
        with path.open("rb") as file:
            return _waits_for([_line(json.loads(text)) for text in file], tool_use_id)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


@dataclass(frozen=True)
class _Line:
    """A line of a transcript, with its calls and results.

    It has an id and that of the line before it in the conversation.
    """

    line_id: str | None
    before: str | None
    calls: frozenset[str]
    results: frozenset[str]


def _line(row: dict[str, Any]) -> _Line:
    message = row.get("message")
    content = message.get("content") if isinstance(message, dict) else None
    blocks = content if isinstance(content, list) else []
    calls = frozenset(str(block["id"]) for block in blocks if block.get("type") == "tool_use")
    results = frozenset(str(block["tool_use_id"]) for block in blocks if block.get("type") == "tool_result")
    return _Line(row.get("uuid"), row.get("parentUuid"), calls, results)


def _waits_for(lines: list[_Line], tool_use_id: str) -> bool:
    asking = next((place for place, line in enumerate(lines) if line.line_id and tool_use_id in line.calls), None)
    if asking is None:
        return False
    by_id = {line.line_id: line for line in lines if line.line_id}
    # Those after it may be of the same message; those that an earlier resume left behind are not before it.
    called = set[str]().union(*(line.calls for line in lines[asking:]))
    before: str | None = lines[asking].line_id
    for _ in range(len(lines) + 1):
        if before is None:
            return called - set[str]().union(*(line.results for line in lines)) == {tool_use_id}
        if before not in by_id:
            return False
        called |= by_id[before].calls
        before = by_id[before].before
    return False
