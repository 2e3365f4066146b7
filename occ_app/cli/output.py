"""Print the results of commands to standard output and everything else to standard error.

Text from elsewhere reaches a terminal through this module alone, escaped by `occ_app.system.foreign_text`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from occ_app.cli import tables
from occ_app.system.foreign_text import visible, visible_line

if TYPE_CHECKING:
    from occ_app.client.sse import StreamEvent

EXIT_BY_CODE = {"EXECUTION_CANCELLED": 130, "EXECUTION_TIMEOUT": 124, "EXECUTION_IDLE": 124}


def echo(message: str = "", *, nl: bool = True, err: bool = False) -> None:
    """Print text with terminal control sequences escaped: every command prints through this module."""
    click.echo(visible(message), nl=nl, err=err)


def warn(message: str) -> None:
    """Print a warning to standard error."""
    click.echo(click.style("warning: ", fg="yellow") + visible(message), err=True, color=_coloured())


def note(message: str) -> None:
    """Print something to know to standard error, dimmed."""
    click.echo(click.style(visible(message), dim=True), err=True, color=_coloured())


def interactive() -> bool:
    """Return whether somebody can answer on standard input."""
    return sys.stdin is not None and sys.stdin.isatty()


def _coloured() -> bool:
    return sys.stderr.isatty() and not os.environ.get("NO_COLOR")


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
    """Print a table; on a terminal no wider than that, and with the states in the column `state` in colour."""
    live = sys.stdout.isatty()
    shown = [[visible_line(cell) for cell in row] for row in rows]
    width = shutil.get_terminal_size().columns if live else None
    for line in tables.lines(shown, width, state if live and not os.environ.get("NO_COLOR") else None):
        click.echo(line)


class Waiting:
    """A progress line on standard error until there is something to print; without a terminal one plain line."""

    def __init__(self, what: str) -> None:
        self._what = visible_line(what)
        self._done = threading.Event()
        self._live = sys.stderr.isatty()
        self._thread = threading.Thread(target=self._show, daemon=True)

    def __enter__(self) -> Waiting:
        if self._live:
            self._thread.start()
        else:
            note(f"{self._what} …")
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        if not self._done.is_set():
            self._done.set()
            if self._live:
                self._thread.join()
                sys.stderr.write("\r\033[K")
                sys.stderr.flush()

    def _show(self) -> None:
        begun = time.monotonic()
        while True:
            sys.stderr.write(f"\r\033[K{self._what} … {time.monotonic() - begun:.0f} s")
            sys.stderr.flush()
            if self._done.wait(0.5):
                return


def print_events(shown: Iterable[StreamEvent], *, as_json: bool, waiting: str) -> StreamEvent | None:
    """Print events for a person, or each as one line of JSON. Returns the final event."""
    if not as_json:
        return _show_events(shown, waiting=waiting)
    last: StreamEvent | None = None
    for last in shown:
        click.echo(json.dumps({"id": last.seq, "event": last.name, "data": last.data}))
    return last if last is not None and last.final else None


def _show_events(events: Iterable[StreamEvent], *, waiting: str) -> StreamEvent | None:
    """Print an execution as it comes, its text to standard output, the rest to standard error; returns the end."""
    last: StreamEvent | None = None
    in_line = False
    progress = Waiting(waiting)
    with progress:
        for event in events:
            last = event
            text = _text(event)
            if text is None:
                continue
            progress.end()
            if event.name == "output":
                click.echo(text, nl=False, color=True)  # a program or a file gets every character
                sys.stdout.flush()
                in_line = not text.endswith("\n")
            else:
                if in_line:
                    click.echo()
                    in_line = False
                note(text)
        if in_line:
            click.echo()
    return last if last is not None and last.final else None


def _text(event: StreamEvent) -> str | None:
    """Return the line that a person sees for an event; None for nothing."""
    data = event.data
    if event.name == "output":
        text: str = data["chunk"]
        return visible(text) if sys.stdout.isatty() else text
    if event.name == "tool" and "name" in data:
        return printable(f"[{data['name']}] {_subject(data['input'])}")
    if event.name == "tool" and data["isError"]:
        return printable(f"[failed] {data['result']}")[:200]
    if event.name == "status" and data["state"] == "retrying":
        return printable(data["message"])
    if event.name == "queued" and data["position"] > 0:
        return f"waiting: {data['position']} ahead"
    if event.name == "gap":
        return f"[events {data['fromSeq']} to {data['toSeq']} are gone: {data['reason']}]"
    return None


def _subject(value: Any) -> str:
    """Return the part of a tool's input that identifies its target."""
    if not isinstance(value, dict):
        return ""
    for key in ("file_path", "path", "pattern", "command"):
        if isinstance(value.get(key), str):
            return str(value[key])
    return ""


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
    """The exit code of an execution, its reason printed when it did not succeed."""
    if final is None:
        return 1
    if final.name == "complete":
        return 0
    echo(f"occ: {final.data['code']}: {final.data['message']}", err=True)
    return EXIT_BY_CODE.get(final.data["code"], 1)


def took(record: Mapping[str, Any]) -> str:
    """Return the time from the start of an execution to its end, or to now; empty before its start."""
    if record["startedAt"] is None:
        return ""
    end = datetime.fromisoformat(record["finishedAt"]) if record["finishedAt"] else datetime.now(UTC)
    return duration(max(0.0, (end - datetime.fromisoformat(record["startedAt"])).total_seconds()))


def summary(final: StreamEvent | None, record: Mapping[str, Any] | None) -> None:
    """Print one line with the time, cost and turns of a finished execution; the time is that of its record."""
    if final is None or final.name != "complete":
        return
    data = final.data
    parts = []
    if record is not None:
        parts.append(took(record))
    if data.get("costUsd") is not None:
        parts.append(f"${data['costUsd']:.4f}")
    if data.get("numTurns"):
        parts.append(f"{data['numTurns']} turn" + ("s" if data["numTurns"] != 1 else ""))
    if data.get("permissionDenials"):
        parts.append(f"{len(data['permissionDenials'])} tool calls denied")
    note("done" + (": " + ", ".join(parts) if parts else ""))
