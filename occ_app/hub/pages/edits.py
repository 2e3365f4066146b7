"""The changes that editing tools request, as diffs of their input."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from occ_app.hub.pages import diffs, highlight
from occ_app.hub.pages.diffs import Diff

_Plain = Callable[[str], str]  # makes a text of the input visible


def _edit(given: Mapping[str, Any], plain: _Plain) -> Diff | None:
    old, new = given.get("old_string"), given.get("new_string")
    if not isinstance(old, str) or not isinstance(new, str):
        return None
    return diffs.of(plain(old), plain(new), _language(given))


def _edits(given: Mapping[str, Any], plain: _Plain) -> Diff | None:
    edits = given.get("edits")
    if not isinstance(edits, list) or not all(isinstance(edit, Mapping) for edit in edits):
        return None
    made = [_edit({**edit, "file_path": given.get("file_path")}, plain) for edit in edits]
    found = [diff for diff in made if diff is not None]
    return sum(found[1:], start=found[0]) if found and len(found) == len(made) else None


def _written(name: str) -> Callable[[Mapping[str, Any], _Plain], Diff | None]:
    def make(given: Mapping[str, Any], plain: _Plain) -> Diff | None:
        text = given.get(name)
        return diffs.added(plain(text), _language(given)) if isinstance(text, str) else None

    return make


def _language(given: Mapping[str, Any]) -> str:
    return highlight.language_of(str(given.get("file_path") or ""))


MAKERS: dict[str, Callable[[Mapping[str, Any], _Plain], Diff | None]] = {
    "Edit": _edit,
    "MultiEdit": _edits,
    "Write": _written("content"),
    "NotebookEdit": _written("new_source"),
}
