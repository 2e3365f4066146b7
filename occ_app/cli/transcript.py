"""An execution as a person sees it.

Its text goes to standard output, the rest and a progress line to standard error.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from occ_app.cli import activity_lines, output
from occ_app.cli.output import drawing, note, printable
from occ_app.system.foreign_text import visible, visible_line

if TYPE_CHECKING:
    from occ_app.client.sse import StreamEvent

_SILENCE_SECONDS = 1.0  # before the progress line comes back between two texts
_LAST_LINES, _LINE_LENGTH = 5, 200
_EXIT_CODE = re.compile(r"(?:Error: )?Exit code (-?\d+)\s*")
# The words of Claude Code for a call that its permissions, a rule or a hook refused.
_REFUSAL = re.compile(
    r"requested permissions? to|haven't granted|permission to use \S+ .{0,80}denied|requires approval|was blocked"
    r"|hook (?:error|denied|blocked)|doesn't want to (?:proceed|take this action)|denied by",
    re.IGNORECASE,
)
_HOOK = re.compile(r"PreToolUse:\S+ hook error: ")  # before the reason of a person or a hook


class Waiting:
    """The progress line of a terminal: the current activity and its duration.

    Without a terminal it is one plain line.
    """

    def __init__(self, activity: str) -> None:
        self._activity = visible_line(activity)
        self._live = sys.stderr.isatty()
        self._begun = time.monotonic()
        self._from = self._begun
        self._shown: bool | None = True
        self._drawn = False
        self._change = threading.Condition()
        self._thread = threading.Thread(target=self._draw, daemon=True)

    def __enter__(self) -> Waiting:
        if self._live:
            self._thread.start()
        else:
            note(f"{self._activity} …")
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def hide(self) -> None:
        """Clear the line, so that something else can be printed in its place."""
        self._set(shown=False)

    @contextlib.contextmanager
    def cleared(self) -> Iterator[None]:
        """Clear the line and do not draw it until the context ends.

        It is drawn again within half a second.
        """
        with self._change:
            self._clear()
            yield

    def show(self, activity: str) -> None:
        """Show the line once nothing else has been printed for a second.

        The duration begins now.
        """
        now = time.monotonic()
        self._set(shown=True, activity=visible_line(activity), begun=now, from_=now + _SILENCE_SECONDS)

    def end(self) -> None:
        """Clear the line for good."""
        if self._live and self._shown is not None:
            self._set(shown=None)
            self._thread.join()

    def _set(
        self, *, shown: bool | None, activity: str = "", begun: float | None = None, from_: float | None = None
    ) -> None:
        with self._change:
            self._shown = shown
            self._activity = activity or self._activity
            self._begun = self._begun if begun is None else begun
            self._from = self._from if from_ is None else from_
            self._clear()
            self._change.notify()

    def _clear(self) -> None:
        if self._drawn:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()
            self._drawn = False

    def _draw(self) -> None:
        with self._change:
            while self._shown is not None:
                now = time.monotonic()
                if self._shown and now >= self._from:
                    room = shutil.get_terminal_size().columns - 1
                    line = f"{self._activity} … {now - self._begun:.0f} s"
                    if len(line) > room:
                        tail = f"… {now - self._begun:.0f} s"
                        line = line[: max(0, room - len(tail))] + tail
                    sys.stderr.write(f"\r\033[K{line}")
                    sys.stderr.flush()
                    self._drawn = True
                self._change.wait(0.5)


def print_events(shown: Iterable[StreamEvent], *, as_json: bool, waiting: str, again: str = "") -> StreamEvent | None:
    """Print events for a person, or each as one line of JSON. Returns the final event.

    `again` are the options with which a printed command reaches the same agent or hub.
    """
    if not as_json:
        return _show_events(shown, waiting=waiting, again=again)
    last: StreamEvent | None = None
    for last in shown:
        output.echo(json.dumps({"id": last.seq, "event": last.name, "data": last.data}))
    return last if last is not None and last.final else None


def _show_events(events: Iterable[StreamEvent], *, waiting: str, again: str) -> StreamEvent | None:
    """Print an execution as it comes; returns its end."""
    last: StreamEvent | None = None
    in_line = thinking = False
    tools = dict[str, str]()  # the open calls
    progress = Waiting(waiting)
    with progress, drawing(progress):
        for event in events:
            last = event
            # Thinking is folded to one line; `--json` has it.
            text = None if thinking and event.name == "thinking" else _text(event, tools)
            thinking = event.name == "thinking"
            if text is None:
                if event.name in ("tool", "task") and not in_line:
                    progress.show(_activity(tools))
                continue
            progress.hide()
            if event.name == "output":
                output.raw(text)
                sys.stdout.flush()
                in_line = not text.endswith("\n")
            else:
                if in_line:
                    output.echo()
                    in_line = False
                approval_id = str(event.data.get("approvalId", ""))
                note(text.replace(approval_id, approval_id + again, 1) if approval_id else text)
            if not in_line and not event.final and event.name != "approval":  # a person may be asked here
                progress.show(_activity(tools))
        progress.hide()
        if in_line:
            output.echo()
    return last if last is not None and last.final else None


def _activity(tools: dict[str, str]) -> str:
    """Return the text of the progress line: the last called tool that still runs."""
    return next(reversed(tools.values()), "waiting for Claude")


def _text(event: StreamEvent, tools: dict[str, str]) -> str | None:
    """Return the text that a person sees for an event, None for nothing.

    Open calls are added to `tools` and removed from it.
    """
    data = event.data
    if event.name == "output":
        text: str = data["chunk"]
        return visible(text) if sys.stdout.isatty() else text
    if event.name == "tool" and "name" in data:
        called = tools[data["toolUseId"]] = printable(f"{data['name']} {_subject(data['input'])}")
        return _indent(data) + printable(f"[{data['name']}] {called.removeprefix(data['name'])}")
    if event.name == "tool":
        tools.pop(data["toolUseId"], None)
        return _indent(data) + _failure(str(data["result"])) if data["isError"] else None
    if event.name == "task" and data.get("toolUseId") in tools and data.get("description"):
        tools[data["toolUseId"]] = printable(data["description"])
    if event.name in activity_lines.LINES:
        return activity_lines.LINES[event.name](data)
    if event.name == "status" and data["state"] == "retrying":
        return printable(data["message"])
    if event.name == "queued" and data["position"] > 0:
        return f"waiting: {data['position']} ahead"
    if event.name == "gap":
        return f"[events {data['fromSeq']} to {data['toSeq']} are gone: {data['reason']}]"
    return _about_approval(event.name, data)


def _about_approval(name: str, data: Mapping[str, Any]) -> str | None:
    if name == "approval":
        return f"[asks] {visible_line(data['tool'])}: occ approve {data['approvalId']}, or occ deny"
    if name == "input":
        where = f"next, as {visible_line(data['executionId'])}" if data.get("executionId") else data["state"]
        return f"[your text: {where}] {visible_line(data['text'])}"[:_LINE_LENGTH]
    if name == "parked":
        return f"[parked] it waits without a process: occ approve {data['approvalId']}, or occ deny"
    if name == "approval_resolved":
        actor = data.get("actor")  # an agent without a hub names no person: all have its token
        return f"[{data['state']}]" + (f" by {visible_line(actor)}" if actor not in (None, "", "token") else "")
    return None


def _indent(data: Mapping[str, Any]) -> str:
    return activity_lines.INNER if data.get("parentToolUseId") else ""


def _failure(result: str) -> str:
    """Return the lines for a failed tool: its exit code and its last lines.

    For a refused one, the reason.
    """
    result = re.sub(r"</?tool_use_error>", "", result).strip()
    if _REFUSAL.search(result[:500]):
        return printable(f"[refused] {_HOOK.sub('', result)}")[:_LINE_LENGTH]
    code = _EXIT_CODE.match(result)
    lines = [line for line in result[code.end() if code else 0 :].splitlines() if line.strip()]
    head = f"[failed] exit code {code[1]}" if code else "[failed]"
    if not code and len(lines) <= 1:
        return printable(f"[failed] {result}")[:_LINE_LENGTH]
    shown = [f"  {visible_line(line.rstrip())[:_LINE_LENGTH]}" for line in lines[-_LAST_LINES:]]
    return "\n".join([head, *(["  …"] if len(lines) > _LAST_LINES else []), *shown])


def _subject(value: Any) -> str:
    """Return the part of a tool's input that identifies its target."""
    if not isinstance(value, Mapping):
        return ""
    for key in ("file_path", "path", "pattern", "command", "description", "subject"):
        if isinstance(value.get(key), str):
            return str(value[key])
    return ""
