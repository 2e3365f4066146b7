"""The real CLI editing, creating, deleting, renaming and changing modes, with and without Bash: its changes, undone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Occ
from tests.model_api import FAKE_KEY, ModelApi
from tests.test_changes import state
from tests.test_real_cli import reply

pytestmark = pytest.mark.real_cli


def tool(name: str, **arguments: Any) -> dict[str, Any]:
    return {"name": name, "input": arguments}


def test_changes_of_the_real_cli_are_recorded_and_undone(occ: Occ, real_claude: Path, model: ModelApi) -> None:
    occ.start(
        OCC_CLAUDE_BIN=str(real_claude),
        ANTHROPIC_BASE_URL=model.url,
        ANTHROPIC_API_KEY=FAKE_KEY,
        OCC_TOOLS="Read,Edit,Write,Bash",
    )
    lines = "".join(f"line {number}\n" for number in range(30))
    occ.workspace("work", {"edit.txt": lines, "old.txt": lines + "old\n", "gone.txt": "x\n", "run.sh": "#!/bin/sh\n"})
    root = occ.home / "workspaces/work"
    before = state(root)
    path = str(root / "edit.txt")
    events = occ.run(
        "Work. "
        + reply(
            {"text": "Reading.", "tools": [tool("Read", file_path=path)]},
            {"text": "Editing.", "tools": [tool("Edit", file_path=path, old_string="line 7\n", new_string="seven\n")]},
            {"text": "Writing.", "tools": [tool("Write", file_path=str(root / "new/made.txt"), content="made\n")]},
            {
                "text": "Running.",
                "tools": [
                    tool(
                        "Bash",
                        command="rm gone.txt && mv old.txt renamed.txt && chmod +x run.sh && printf '\\0\\1' > b.bin",
                        description="x",
                    )
                ],
            },
            {"text": "Done."},
        ),
        executionId="real",
    )
    assert events[-1].name == "complete", events[-1]
    found = occ.request("GET", "/executions/real/changes").json()
    assert {entry["path"]: entry["status"] for entry in found["entries"]} == {
        "b.bin": "added",
        "edit.txt": "modified",
        "gone.txt": "deleted",
        "new/made.txt": "added",
        "renamed.txt": "renamed",
        "run.sh": "modified",
    }
    assert os.access(root / "run.sh", os.X_OK)
    edited = next(entry for entry in found["entries"] if entry["path"] == "edit.txt")
    assert (edited["additions"], edited["deletions"]) == (1, 1)
    patch = occ.request("GET", "/executions/real/diff").data
    assert b"\n-line 7\n+seven\n" in patch
    body = {"executionId": "real", "to": "start"}
    undone = occ.request("POST", "/workspaces/work/restore", json_body=body)
    assert undone.status == 200, undone.data
    assert state(root) == before
