"""The messages and dialogs that docs/slack.md shows; `write` puts the present ones there."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from occ_app.executions.answers import Approval
from occ_app.executions.records import Execution
from occ_app.slack import blocks, dialogs, manifest, questions

DOCS = Path(__file__).parents[1] / "docs" / "slack.md"
_URL = "https://hub.example.com/runs/slack-1"
_SAMPLE = r"(<!-- slack: {name} -->\n```json\n)(.*?)(```)"
_ASKED = {
    "questions": [
        {"question": "Which database?", "options": [{"label": "SQLite"}, {"label": "PostgreSQL"}]},
        {"question": "Which tests?", "options": [{"label": "Unit"}, {"label": "Browser"}], "multiSelect": True},
    ]
}


def samples(execution: Execution) -> dict[str, Any]:
    """Return each sample by its name, of a run that looks like this one."""
    run = replace(execution, execution_id="slack-1", cost_usd=0.12)
    changes = {"files": 3, "additions": 41, "deletions": 7}
    over, _ = blocks.ended(replace(run, state="succeeded", changes=changes), 80, "All tests pass.\n", _URL)
    waits = replace(run, state="queued", continues="slack-0", waits_for="agent box to be free")
    call, question = asked("tool", "Bash", {"command": "npm test"}), asked("question", "AskUserQuestion", _ASKED)
    entries = [
        {"path": "app.py", "old_path": None, "status": "modified", "additions": 40, "deletions": 7},
        {"path": "b.py", "old_path": "a.py", "status": "renamed", "additions": 1, "deletions": 0},
    ]
    return {
        "under way": blocks.under_way(run, "box", 42.5, "Bash", "I run the tests.\n", _URL).blocks,
        "ended": over.blocks,
        "follow-up": blocks.under_way(waits, None, 0, None, "", _URL).blocks,
        "approval": blocks.approval(call, private=True, url=_URL).blocks,
        "approval in public": blocks.approval(call, private=False, url=_URL).blocks,
        "questions": blocks.approval(question, private=True, url=_URL).blocks,
        "dialog of questions": dialogs.questions(question, questions.of(question), "C012AB3CD"),
        "form": dialogs.form("C012AB3CD", "U012AB3CD", [("7", "app@box")], [("agent-1", "box")], "7"),
        "opening": blocks.opening("U012AB3CD", "Fix the tests.").blocks,
        "files": blocks.files(entries, _URL).blocks,
        "decided": blocks.decided(replace(call, state="allowed", actor="ada")).blocks,
        "manifest": manifest.manifest(),
    }


def shown(name: str) -> Any:
    """Return a sample as docs/slack.md shows it."""
    found = re.search(_SAMPLE.format(name=re.escape(name)), DOCS.read_text(), re.DOTALL)
    assert found is not None, name
    return json.loads(found[2])


def write(found: dict[str, Any]) -> None:
    """Write the samples into docs/slack.md."""
    text = DOCS.read_text()
    for name, sample in found.items():
        content = _formatted(json.loads(json.dumps(sample))) + "\n"
        pattern = _SAMPLE.format(name=re.escape(name))
        text = re.sub(pattern, lambda match, content=content: match[1] + content + match[3], text, flags=re.DOTALL)
    DOCS.write_text(text)


def _formatted(value: Any, indent: int = 0, room: int = 118) -> str:
    """Return JSON in lines of at most `room` characters, with short values on one line."""
    flat = json.dumps(value, ensure_ascii=False)
    if len(flat) + indent <= room or not isinstance(value, (dict, list)) or not value:
        return flat
    inner, pad = indent + 1, " " * (indent + 1)
    if isinstance(value, list):
        parts = [_formatted(each, inner, room - 1) for each in value]
    else:
        parts = [
            f"{json.dumps(key)}: {_formatted(each, inner + len(key) + 4, room - 1)}" for key, each in value.items()
        ]
    opening, closing = ("[", "]") if isinstance(value, list) else ("{", "}")
    return opening + f",\n{pad}".join(parts) + closing


def asked(kind: str, tool: str, given: Any) -> Approval:
    """Return an open approval of a run of the samples."""
    fields = dict.fromkeys(Approval.__dataclass_fields__)
    named = {"approval_id": "approval-1", "execution": 1, "execution_id": "slack-1", "workspace_id": "app@box"}
    moments = {"asked_at": "2026-01-01T00:00:00.000Z", "expires_at": "2026-01-02T00:00:00.000Z", "state": "open"}
    about = {
        "kind": kind,
        "tool": tool,
        "input": given,
        "input_hash": "9f86d081",
        "redacted": False,
        "truncated": False,
    }
    return Approval(**{**fields, **named, **moments, **about})
