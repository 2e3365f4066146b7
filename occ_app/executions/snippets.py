"""The text around the hits of a search."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass

from occ_app.executions import search_terms
from occ_app.executions.search_terms import APART, BEGIN, END

_BEFORE_HIT, _AFTER_HIT = 60, 180  # characters of a snippet
_WINDOW, _OVERLAP = 2000, 200
_TOKENIZE = "tokenize = 'unicode61 remove_diacritics 2'"  # as the migrations made the index


@dataclass(frozen=True)
class Piece:
    """A piece of a snippet: `hit` when it matches."""

    text: str
    hit: bool


@dataclass(frozen=True)
class Snippet:
    """The text around the first hit in the `prompt` or in the `output`."""

    where: str
    pieces: list[Piece]


class Marker:
    """Marks of hits in text as SQLite finds them.

    It indexes the text once more, in memory and a window at a time: SQLite's own functions, on the whole text, take
    minutes where a word occurs very often.
    """

    def __init__(self, query: str) -> None:
        self._any = " OR ".join(search_terms.terms(query)) or '""'
        self._connection = sqlite3.connect(":memory:", isolation_level=None)
        self._connection.execute(f"CREATE VIRTUAL TABLE shown USING fts5 (text, {_TOKENIZE})")

    def close(self) -> None:
        self._connection.close()

    def snippets(self, row: sqlite3.Row) -> list[Snippet]:
        texts = ((where, self._pieces(row[where])) for where in ("prompt", "output"))
        return [Snippet(where, pieces) for where, pieces in texts if pieces]

    def _pieces(self, text: str) -> list[Piece]:
        """Return the text around the first hit; empty when there is none."""
        for begin, end in _windows(text):
            self._connection.execute("INSERT OR REPLACE INTO shown (rowid, text) VALUES (1, ?)", (text[begin:end],))
            marked = self._connection.execute(
                "SELECT highlight(shown, 0, ?, ?) FROM shown WHERE shown MATCH ?", (BEGIN, END, self._any)
            ).fetchone()
            if marked is not None:
                return _cut(marked[0].replace(APART, ""), more_before=begin > 0, more_after=end < len(text))
        return []


def _windows(text: str) -> Iterator[tuple[int, int]]:
    """Yield the beginnings and ends of a text's windows.

    They are between words if possible, and overlap so that phrases are whole.
    """
    begin = 0
    while True:
        end = begin + _WINDOW
        if end >= len(text):
            yield begin, len(text)
            return
        space = max(text.rfind(" ", begin, end), text.rfind("\n", begin, end))
        if space - begin > 2 * _OVERLAP:
            end = space
        yield begin, end
        begin = end - _OVERLAP


def _cut(marked: str, *, more_before: bool, more_after: bool) -> list[Piece]:
    """Return the pieces around the first hit of a text with marked hits."""
    hit = marked.index(BEGIN)
    head, rest = marked[:hit], marked[hit + 1 :]
    if more_before or len(head) > _BEFORE_HIT:
        head = head[-_BEFORE_HIT:]
        head = "…" + (head.partition(" ")[2] or head)  # not from the middle of a word
    tail = rest[:_AFTER_HIT]
    if more_after or len(rest) > _AFTER_HIT:
        tail += "…"
    pieces = [Piece(head, False)]
    for part in tail.split(BEGIN):
        marked, _, plain = part.partition(END)
        pieces += [Piece(marked, True), Piece(plain, False)]
    return [piece for piece in pieces if piece.text]
