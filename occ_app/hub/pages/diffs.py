"""The difference of two texts as lines with signs and syntax colours."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass

from markupsafe import Markup

from occ_app.hub.pages import highlight

_MAX_LINES = 600  # comparing more takes long: then all old lines are shown as removed and all new ones as added
_CONTEXT = 3


@dataclass(frozen=True)
class Diff:
    """Lines as pairs of a sign and HTML, with the numbers of changed lines.

    A sign is `+`, `-`, a space, or `@` where lines are left out.
    """

    rows: tuple[tuple[str, Markup], ...]
    additions: int
    deletions: int

    def __add__(self, other: Diff) -> Diff:
        rows = (*self.rows, ("@", Markup()), *other.rows)
        return Diff(rows, self.additions + other.additions, self.deletions + other.deletions)


def of(old: str, new: str, language: str) -> Diff:
    """Compare two texts by lines."""
    old_html, new_html = highlight.lines(old, language), highlight.lines(new, language)
    rows = tuple(_rows(old.split("\n"), new.split("\n"), old_html, new_html))
    if rows and rows[-1] == (" ", Markup()):  # both end with a line break
        rows = rows[:-1]
    return Diff(rows, sum(sign == "+" for sign, _ in rows), sum(sign == "-" for sign, _ in rows))


def added(new: str, language: str) -> Diff:
    """Return a text as a difference that consists of added lines only."""
    html = highlight.lines(new.removesuffix("\n"), language)
    return Diff(tuple(("+", line) for line in html), len(html), 0)


def _rows(
    old: list[str], new: list[str], old_html: list[Markup], new_html: list[Markup]
) -> Iterator[tuple[str, Markup]]:
    if len(old) + len(new) > _MAX_LINES:
        yield from (("-", line) for line in old_html)
        yield from (("+", line) for line in new_html)
        return
    groups = difflib.SequenceMatcher(None, old, new, autojunk=False).get_grouped_opcodes(_CONTEXT)
    for number, group in enumerate(groups):
        if number:
            yield "@", Markup()
        for kind, old_from, old_to, new_from, new_to in group:
            if kind == "equal":
                yield from ((" ", line) for line in new_html[new_from:new_to])
                continue
            yield from (("-", line) for line in old_html[old_from:old_to])
            yield from (("+", line) for line in new_html[new_from:new_to])
