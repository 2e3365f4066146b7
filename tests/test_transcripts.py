"""The CLI's transcript of a session, as far as OCC reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from occ_app.claude import projects, transcripts

SESSION = "0b6a7f7e-6f0e-4a52-9b55-3b8f0ad1c7a1"


def line(number: int, *blocks: Mapping[str, Any], before: int | None = None) -> str:
    """Return a line whose content is these blocks; it comes after `before`, by default the line before it."""
    parent = number - 1 if before is None else before
    return json.dumps(
        {"uuid": f"line-{number}", "parentUuid": f"line-{parent}" if parent else None, "message": {"content": blocks}}
    )


def call(name: str) -> dict[str, str]:
    return {"type": "tool_use", "id": name}


def result(name: str) -> dict[str, str]:
    return {"type": "tool_result", "tool_use_id": name}


WHOLE = (
    json.dumps({"type": "queue-operation"}),
    line(1, {"type": "text", "text": "Do it."}),
    line(2, call("a")),
    line(3, result("a")),
    line(4, {"type": "text", "text": "Next."}),
    line(5, call("b")),
)


def waits(folder: Path, text: str, name: str = "b") -> bool:
    workspace = folder / "work"
    for place in projects.folders(folder, workspace):
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{SESSION}.jsonl").write_text(text)
    return transcripts.waits_for(folder, workspace, SESSION, name)


def test_a_call_waits_if_it_is_the_only_one_without_a_result(tmp_path: Path) -> None:
    assert waits(tmp_path, "\n".join(WHOLE) + "\n")
    assert waits(tmp_path, "\n".join((*WHOLE, line(6, {"type": "text", "text": "More."}))))
    assert not waits(tmp_path, "\n".join((*WHOLE, line(6, result("b")))))
    assert not waits(tmp_path, "\n".join((*WHOLE, line(6, call("c")))))
    assert not waits(tmp_path, "\n".join(WHOLE), "a")
    assert not waits(tmp_path, "\n".join(WHOLE), "c")


def test_a_call_that_an_earlier_resume_left_behind_does_not_count(tmp_path: Path) -> None:
    resumed = (line(6, {"type": "text", "text": "Again."}, before=4), line(7, call("c")))
    assert waits(tmp_path, "\n".join((*WHOLE, *resumed)), "c")
    assert not waits(tmp_path, "\n".join((*WHOLE, *resumed)), "b")
    both = (line(2, call("a"), call("b")), line(3, result("b")), line(4, call("c")))
    assert not waits(tmp_path, "\n".join((WHOLE[1], *both)), "c")


@pytest.mark.parametrize("missing", range(1, len(WHOLE)))
def test_a_transcript_that_lacks_a_line_is_not_whole(tmp_path: Path, missing: int) -> None:
    assert not waits(tmp_path, "\n".join((*WHOLE[:missing], *WHOLE[missing + 1 :])))


def test_a_transcript_that_was_cut_off_anywhere_is_not_whole(tmp_path: Path) -> None:
    text = "\n".join(WHOLE)
    assert not [end for end in range(len(text)) if waits(tmp_path, text[:end])]


@pytest.mark.parametrize(
    "odd",
    [
        *("null", "[]", "1", '"x"', "{", '{"uuid": [1]}', '{"uuid": "line-9", "message": {"content": [1]}}'),
        '{"uuid": "line-9", "message": {"content": [{"type": "tool_use"}]}}',
    ],
)
def test_a_transcript_of_another_form_is_not_whole(tmp_path: Path, odd: str) -> None:
    assert not waits(tmp_path, "\n".join((*WHOLE, odd)))


def test_lines_that_name_each_other_end(tmp_path: Path) -> None:
    assert not waits(tmp_path, "\n".join((line(1, before=2), line(2, call("b"), before=1))))


def test_a_transcript_that_is_not_there_is_not_whole(tmp_path: Path) -> None:
    assert not transcripts.waits_for(tmp_path, tmp_path / "work", SESSION, "b")
