"""A git patch as rows of a page, file by file.

Rows are lines with numbers, signs and syntax colours.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from markupsafe import Markup

from occ_app.hub.pages import highlight

_HUNK = re.compile(r"@@ -(\d{1,9})(?:,\d{1,9})? \+(\d{1,9})(?:,\d{1,9})? @@ ?(.*)")
_FILE = re.compile(rb"^(?=diff --git )", re.MULTILINE)
_LONGEST_LINE = 5_000
MAX_COLOURED = 40_000  # characters of a page: a lexer takes 2 ms for each 1,000, and blocks other requests
# Visible signs for invisible characters, and for those that change the order of others.
_SHOWN = {
    **{number: f"^{chr(number + 64)}" for number in range(32) if number not in (9, 10)},
    0x7F: "^?",
    **{
        number: f"\u27e8U+{number:04X}\u27e9"
        for number in (
            *range(0x80, 0xA0),
            0x061C,
            0x200E,
            0x200F,
            *range(0x2028, 0x202F),
            *range(0x2066, 0x206A),
            0xFEFF,
        )
    },
}


@dataclass(frozen=True)
class Line:
    """A line of a file as HTML, with its numbers before and after.

    A number is None where that version does not have the line. `sign` is `+`, `-` or a space. `cut` is true for a line
    that is shown in part.
    """

    sign: str
    old: int | None
    new: int | None
    html: Markup
    cut: bool = False


@dataclass(frozen=True)
class Hunk:
    """Consecutive lines; `head` is the surrounding code as git found it."""

    head: str
    lines: tuple[Line, ...]

    @property
    def pairs(self) -> Iterator[tuple[Line | None, Line | None]]:
        """Yield the lines before beside the lines after.

        Each removed line is paired with the line that replaces it.
        """
        removed, added = list[Line](), list[Line]()
        for line in (*self.lines, None):
            if line is not None and line.sign == "-" and not added:
                removed.append(line)
            elif line is not None and line.sign == "+":
                added.append(line)
            else:
                yield from zip_longest(removed, added)
                removed, added = [], []
                if line is not None and line.sign == "-":
                    removed.append(line)
                elif line is not None:
                    yield line, line


@dataclass(frozen=True)
class FilePatch:
    """The hunks of one file.

    `omitted` counts the lines that are left out, `coloured` the characters with syntax colours.
    """

    hunks: tuple[Hunk, ...]
    omitted: int = 0
    coloured: int = 0


def split(patch: bytes, entries: Sequence[Mapping[str, Any]]) -> list[bytes]:
    """Return the part of a patch for each changed file; empty where it has none."""
    parts = [part for part in _FILE.split(patch) if part.startswith(b"diff --git ")]
    if len(parts) == len(entries):
        return parts  # both are in git's order
    by_head = {part.partition(b"\n")[0]: part for part in parts}
    return [by_head.get(_head(entry), b"") for entry in entries]


def parse(part: bytes, path: str, limit: int, colours: int = MAX_COLOURED) -> FilePatch:
    """Return a file's part of a patch as hunks, with at most `limit` lines.

    Hunks get syntax colours one by one while their characters sum to at most `colours`.
    """
    language, coloured = highlight.language_of(path), 0
    hunks, shown, omitted = list[Hunk](), 0, 0
    for head, start, rows in _hunks_of(part):
        kept = rows[: max(0, limit - shown)]
        shown, omitted = shown + len(kept), omitted + len(rows) - len(kept)
        if not kept:
            continue
        length = sum(len(text) for _, text in kept) if language else 0
        if coloured + length > colours:
            length, hunk = 0, _hunk(head, start, kept, "")
        else:
            hunk = _hunk(head, start, kept, language)
        coloured += length
        hunks.append(hunk)
    return FilePatch(tuple(hunks), omitted, coloured)


def whole(text: str, path: str, limit: int) -> FilePatch:
    """Return a whole file as one hunk of unchanged lines."""
    lines = text.removesuffix("\n").split("\n") if text else []
    shown = [(" ", line) for line in lines[:limit]]
    return FilePatch((_hunk("", (1, 1), shown, highlight.language_of(path)),), max(0, len(lines) - limit))


def _hunks_of(part: bytes) -> Iterator[tuple[str, tuple[int, int], list[tuple[str, str]]]]:
    """Yield the head, the first numbers and the signed lines of each hunk."""
    head, start, rows = "", (0, 0), list[tuple[str, str]]()
    # Not splitlines: a line may contain other characters that Python treats as line ends.
    for line in part.decode(errors="replace").removesuffix("\n").split("\n"):
        found = _HUNK.fullmatch(line)
        if found is not None:
            if rows:
                yield head, start, rows
            head, start, rows = visible(found[3])[:200], (int(found[1]), int(found[2])), []
        elif start != (0, 0) and line[:1] in ("+", "-", " "):
            rows.append((line[0], line[1:]))
    if rows:
        yield head, start, rows


def _hunk(head: str, start: tuple[int, int], rows: list[tuple[str, str]], language: str) -> Hunk:
    """Build a hunk, with syntax colours for each side separately.

    A removed line and its replacement together are not valid code.
    """
    before = iter(_coloured([text for sign, text in rows if sign != "+"], language))
    after = iter(_coloured([text for sign, text in rows if sign != "-"], language))
    old, new, lines = *start, list[Line]()
    for sign, text in rows:
        if sign == "+":
            html = next(after)
        else:
            html = next(before)
            if sign == " ":
                html = next(after)
        numbers = (None if sign == "+" else old, None if sign == "-" else new)
        lines.append(Line(sign, *numbers, html, cut=len(text) > _LONGEST_LINE))
        old += sign != "+"
        new += sign != "-"
    return Hunk(head, tuple(lines))


def _coloured(lines: list[str], language: str) -> list[Markup]:
    return highlight.lines("\n".join(visible(line[:_LONGEST_LINE]) for line in lines), language) if lines else []


def visible(text: str) -> str:
    """Return text with each control character replaced by a visible sign.

    The same applies to characters that change the order of the text beside them.
    """
    return text.translate(_SHOWN)


def _head(entry: Mapping[str, Any]) -> bytes:
    path, old = entry["path"], entry["old_path"] or entry["path"]
    return f"diff --git a/{old} b/{path}".encode(errors="surrogateescape")
