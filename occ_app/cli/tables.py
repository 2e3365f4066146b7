"""Tables for a terminal.

Columns are as wide as they need, and shortened where the terminal is narrower.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import click

_GAP = 2
_LEAST = 8  # columns that a cell keeps
_COLOURS = {
    "succeeded": "green",
    "running": "cyan",
    "parked": "yellow",
    "queued": "yellow",
    "failed": "red",
    "cancelled": "magenta",
    "online": "green",
    "draining": "yellow",
    "offline": "red",
}


def lines(rows: Sequence[Sequence[str]], width: int | None, state: int | None = None) -> list[str]:
    """Return the lines of a table whose first row is its head.

    `width` None is no limit. Where it is too wide, empty columns are left out first. Then the widest ones are
    shortened, the first, that of the ids, last. `state` is the column of a state, which gets a colour, or None.
    """
    widths = [max(_width(row[column]) for row in rows) for column in range(len(rows[0]))]
    if width is not None and _total(widths) > width:
        filled = [
            column for column in range(len(widths)) if column in (0, state) or any(row[column] for row in rows[1:])
        ]
        state = None if state is None else filled.index(state)
        rows = [[row[column] for column in filled] for row in rows]
        widths = _fitted([widths[column] for column in filled], width)
    result = []
    for number, row in enumerate(rows):
        cells = [_padded(_cut(cell, size), size) for cell, size in zip(row, widths, strict=True)]
        cells[-1] = cells[-1].rstrip()
        if state is not None and number > 0:
            cells[state] = coloured(cells[state])
        result.append((" " * _GAP).join(cells).rstrip())
    return result


def coloured(text: str) -> str:
    """Return a text in the colour of the state that it begins with."""
    colour = _COLOURS.get(text.split(" ", 1)[0])
    return text if colour is None else click.style(text, fg=colour)


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + _GAP * (len(widths) - 1)


def _fitted(widths: Sequence[int], width: int) -> list[int]:
    fitted = list(widths)
    while _total(fitted) > width:
        # The ids, which a person copies, are cut only when nothing else can be.
        candidates = [column for column in range(1, len(fitted)) if fitted[column] > _LEAST]
        if not candidates:
            candidates = [column for column in range(len(fitted)) if fitted[column] > 1]
        if not candidates:
            break
        fitted[max(candidates, key=lambda column: fitted[column])] -= 1
    return fitted


def _cut(text: str, width: int) -> str:
    if _width(text) <= width:
        return text
    while text and _width(text) > width - 1:
        text = text[:-1]
    return text + "…"


def _padded(text: str, width: int) -> str:
    return text + " " * (width - _width(text))


def _width(text: str) -> int:
    """Return the columns that a text takes.

    Letters of East Asian scripts take two, combining marks none.
    """
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(letter) else 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        for letter in text
    )
