"""Print the results of commands to standard output, all else to standard error.

Text from elsewhere reaches a terminal through this module alone, escaped by `occ_app.system.foreign_text`.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

import click

from occ_app.cli import tables
from occ_app.system.foreign_text import visible, visible_line

if TYPE_CHECKING:
    from occ_app.client.sse import StreamEvent

EXIT_BY_CODE = {"EXECUTION_CANCELLED": 130, "EXECUTION_TIMEOUT": 124, "EXECUTION_IDLE": 124}


class ProgressLine(Protocol):
    """A line that is drawn at the bottom of the terminal, by a thread."""

    def cleared(self) -> contextlib.AbstractContextManager[None]:
        """Clear the line and do not draw it until the context ends."""
        ...


_progress: list[ProgressLine] = []  # the lines that are drawn now; a terminal has one


@contextlib.contextmanager
def drawing(line: ProgressLine) -> Iterator[None]:
    """Clear the line before each text that is printed in this context, by any thread."""
    _progress.append(line)
    try:
        yield
    finally:
        _progress.remove(line)


def _cleared() -> contextlib.AbstractContextManager[None]:
    return _progress[-1].cleared() if _progress else contextlib.nullcontext()


def echo(message: str = "", *, nl: bool = True, err: bool = False) -> None:
    """Print text with terminal control sequences escaped.

    Every command prints through this module.
    """
    with _cleared():
        click.echo(visible(message), nl=nl, err=err)


def raw(text: str) -> None:
    """Print text as it is, without a line break.

    A program or a file gets every character.
    """
    click.echo(text, nl=False, color=True)


def warn(message: str) -> None:
    """Print a warning to standard error."""
    with _cleared():
        click.echo(click.style("warning: ", fg="yellow") + visible(message), err=True, color=_coloured())


def note(message: str) -> None:
    """Print something to know to standard error, dimmed."""
    with _cleared():
        click.echo(click.style(visible(message), dim=True), err=True, color=_coloured())


def raw_note(text: str) -> None:
    """Print text that OCC made, such as a QR code, to standard error as it is."""
    with _cleared():
        click.echo(text, nl=False, err=True)


def interactive() -> bool:
    """Return whether somebody can answer on standard input."""
    return sys.stdin is not None and sys.stdin.isatty()


def _coloured() -> bool:
    return sys.stderr.isatty() and not plain()


def plain() -> bool:
    """Whether the user wants no colour."""
    return bool(os.environ.get("NO_COLOR"))


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, as in "1 file" and "2 files"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def changes_text(changes: Mapping[str, Any]) -> str:
    """Return the sums of an execution's changes, as in "3 files changed"."""
    files: int = changes["files"]
    if files == 0:
        return "no files changed"
    return f"{counted(files, 'file')} changed (+{changes['additions']} \N{MINUS SIGN}{changes['deletions']})"


def duration(seconds: float) -> str:
    """1 d 3 h, 12 min, 4.5 s: the two largest parts."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    parts = []
    for name, size in (("d", 86400), ("h", 3600), ("min", 60)):
        count, seconds = divmod(seconds, size)
        if count:
            parts.append(f"{count:.0f} {name}")
    return " ".join(parts[:2])


def since(moment: str) -> str:
    """How long ago an ISO time was."""
    return duration(max(0.0, (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds()))


def size(count: int) -> str:
    """So many bytes for a person: 3 B, 4.5 kB, 6.7 MB."""
    if count < 1000:
        return f"{count} B"
    return f"{count / 1e3:.1f} kB" if count < 1e6 else f"{count / 1e6:.1f} MB"


def table(rows: Sequence[Sequence[str]], *, state: int | None = None) -> None:
    """Print a table, on a terminal at most as wide as that.

    There the states in the column `state` are coloured.
    """
    live = sys.stdout.isatty()
    shown = [[visible_line(cell) for cell in row] for row in rows]
    width = shutil.get_terminal_size().columns if live else None
    for line in tables.lines(shown, width, state if live and not os.environ.get("NO_COLOR") else None):
        click.echo(line)


def page(text: Iterable[str]) -> None:
    """Show a text in the pager of the user.

    `less` prints one that fits on the screen, as git configures it.
    """
    os.environ.setdefault("LESS", "FRX")
    click.echo_via_pager(text)


def printable(text: str) -> str:
    """One line of text that a terminal only shows."""
    return visible_line(" ".join(text.split()))


def print_snippet(where: str, pieces: Iterable[Mapping[str, Any]]) -> None:
    """Print a snippet of a search on one line, bold on a terminal where it matches."""
    bold = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    shown = [
        click.style(text, bold=True) if bold and piece["hit"] else text
        for piece in pieces
        for text in [visible_line(re.sub(r"\s+", " ", piece["text"]))]
    ]
    click.echo(f"  {visible_line(where)}: {''.join(shown)}")


def outcome(final: StreamEvent | None) -> int:
    """Return the exit code of an execution; print why it did not succeed."""
    if final is None:
        return 1
    if final.name == "complete":
        return 0
    echo(f"occ: {final.data['code']}: {final.data['message']}", err=True)
    return EXIT_BY_CODE.get(final.data["code"], 1)


def took(record: Mapping[str, Any]) -> str:
    """Return the time from the start of an execution to its end, or to now.

    Empty before its start.
    """
    if record["startedAt"] is None:
        return ""
    end = datetime.fromisoformat(record["finishedAt"]) if record["finishedAt"] else datetime.now(UTC)
    return duration(max(0.0, (end - datetime.fromisoformat(record["startedAt"])).total_seconds()))


def summary(final: StreamEvent | None, record: Mapping[str, Any] | None) -> None:
    """Print one line with the time, cost and turns of a finished execution.

    The time is that of its record.
    """
    if final is None or final.name != "complete":
        return
    data = final.data
    parts = []
    if record is not None:
        parts.append(took(record))
    if data.get("costUsd") is not None:
        parts.append(f"${data['costUsd']:.4f}")
    if data.get("numTurns"):
        parts.append(counted(data["numTurns"], "turn"))
    if data.get("permissionDenials"):
        parts.append(f"{counted(len(data['permissionDenials']), 'tool call')} denied")
    note("done" + (": " + ", ".join(parts) if parts else ""))
