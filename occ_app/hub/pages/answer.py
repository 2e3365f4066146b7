"""An execution's events as the blocks of a page.

Blocks are texts, tool calls, thinking and notes, in order. The todo list is kept beside them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from occ_app.client.event_checks import RawEvent, checked
from occ_app.executions import events
from occ_app.executions.records import Execution
from occ_app.hub.pages import markdown, terminal
from occ_app.hub.pages.live_text import LiveText
from occ_app.hub.pages.tools import Call, prefix

_MAX_TODO_ITEMS = 100


@dataclass
class Text:
    """Uninterrupted text of an answer.

    `first` is the number of its first event. It grows as chunks of text are added.
    """

    first: int
    pieces: list[str] = field(default_factory=list)
    live: LiveText | None = None
    places: list[tuple[int, int]] = field(default_factory=list)  # event numbers, and the offsets of their texts
    size: int = 0

    kind = "text"

    def add(self, seq: int, chunk: str) -> None:
        self.places.append((seq, self.size))
        self.pieces.append(chunk)
        self.size += len(chunk)
        if self.live is not None:
            self.live.feed(chunk)

    @property
    def text(self) -> str:
        """Return the whole text without escape sequences."""
        return terminal.plain("".join(self.pieces))

    @property
    def blocks(self) -> list[str]:
        """Return the text as HTML, one element for each block at the top level."""
        if self.live is None:
            return markdown.blocks(self.text)
        return [*self.live.closed, *self.live.open]

    @property
    def html(self) -> Markup:
        return markdown.finished("\n".join(self.blocks))


@dataclass
class Thinking:
    """Uninterrupted thinking of the model, collapsed on the page."""

    first: int
    text: str

    kind = "thinking"


@dataclass(frozen=True)
class Note:
    """A sentence about an event that has no block of another kind."""

    first: int
    text: str

    kind = "note"


@dataclass(frozen=True)
class Todo:
    """The todo list at one time: texts and states."""

    items: tuple[tuple[str, str], ...]

    @property
    def done(self) -> int:
        return sum(state == "completed" for _, state in self.items)

    @property
    def current(self) -> str:
        return next((text for text, state in self.items if state == "in_progress"), "")


Block = Text | Call | Thinking | Note


def files_of(execution: Execution, folder: str) -> str:
    """Return the address of the files of an execution's workspace.

    Returns an empty string when the workspace no longer exists.
    """
    return f"/files/{quote(execution.workspace_id, safe='')}" if folder else ""


class Reader:
    """Builder of the blocks of an answer from its events, in order.

    With `live` the last text can be rendered at any time. `folder` is the workspace's: paths in it are shown relative
    to it. `files` is the address of the workspace's files, empty where there are none to show. `run` is the id of the
    execution. `changed` holds the indexes of the blocks that have changed since a caller last cleared it.
    """

    def __init__(self, after: int, folder: str, *, live: bool = False, files: str = "", run: str = "") -> None:
        self.blocks: list[Block] = []
        self.todo: Todo | None = None
        self.status = ""
        self.last = after
        self.bytes = 0
        self.over = False
        self.changed = set[int]()
        self._live = live
        self._folder = prefix(folder)
        self._files = files
        self._run = run
        self._open: dict[
            str, tuple[int, Call]
        ] = {}  # calls without a result, by id, with the index of the outermost call

    @property
    def stable(self) -> int:
        """Return the number of the last event before all blocks that may still change."""
        unfinished = [self.blocks[place].first for place, _ in self._open.values()]
        if self.blocks and isinstance(self.blocks[-1], (Text, Thinking)):
            unfinished.append(self.blocks[-1].first)
        return min(unfinished) - 1 if unfinished and not self.over else self.last

    @property
    def waits(self) -> bool:
        """Return whether a call has no result yet."""
        return bool(self._open)

    def take(self, event: events.StoredEvent) -> None:
        """Add an event."""
        self.bytes += len(event.data) if event.name != "image" else 0  # the page holds only its address
        self.last = event.seq
        sound = checked(RawEvent(event.seq, event.name, event.data))
        if sound is None:
            self._add(Note(event.seq, f"Event {event.seq} cannot be read."))
            return
        data = json.loads(sound.data)
        take = _TAKERS.get(event.name)
        if take is not None:
            take(self, event.seq, data)
        self.status = _status(data) if event.name == "status" else ""
        if event.final:
            self._end()

    def _end(self) -> None:
        self.over = True
        self._close_text()
        for place, call in self._open.values():
            call.over = True
            self.changed.add(place)

    def _close_text(self) -> None:
        if self.blocks and isinstance(self.blocks[-1], Text) and self.blocks[-1].live is not None:
            self.blocks[-1].live = None
            self.changed.add(len(self.blocks) - 1)

    def _add(self, block: Block) -> None:
        self._close_text()
        self.blocks.append(block)
        self.changed.add(len(self.blocks) - 1)

    def _say(self, seq: int, data: dict[str, Any]) -> None:
        if not self.blocks or not isinstance(self.blocks[-1], Text):
            self._add(Text(seq, live=LiveText() if self._live else None))
        last = self.blocks[-1]
        assert isinstance(last, Text)  # noqa: S101 - added above
        last.add(seq, data["chunk"])
        self.changed.add(len(self.blocks) - 1)

    def _gap(self, seq: int, data: dict[str, Any]) -> None:
        self._add(Note(seq, f"Events {data['fromSeq']} to {data['toSeq']} are gone: {data['reason']}."))

    def _think(self, seq: int, data: dict[str, Any]) -> None:
        text = terminal.plain(data["chunk"])
        last = self.blocks[-1] if self.blocks else None
        if isinstance(last, Thinking):
            last.text += text
            self.changed.add(len(self.blocks) - 1)
        else:
            self._add(Thinking(seq, text))

    def _list(self, _: int, data: dict[str, Any]) -> None:
        items = tuple((terminal.plain(item["text"]), item["state"]) for item in data["items"][:_MAX_TODO_ITEMS])
        self.todo = Todo(items)

    def _progress(self, _: int, data: dict[str, Any]) -> None:
        """Record a subagent's progress in the open call that started it."""
        place, call = self._open.get(data.get("toolUseId") or "", (-1, None))
        if call is None:
            return
        running = data["state"] in ("started", "running")
        call.progress = terminal.plain(data.get("description") or "") or "running" if running else data["state"]
        self.changed.add(place)

    def _deny(self, seq: int, data: dict[str, Any]) -> None:
        reason = terminal.plain(data["reason"] or "").rstrip(".")
        self._add(Note(seq, f"{data['name']} was denied{f': {reason}' if reason else ''}."))

    def _compact(self, seq: int, data: dict[str, Any]) -> None:
        before, after = data["tokensBefore"], data["tokensAfter"]
        sizes = "" if before is None or after is None else f" from {before} to {after} tokens"
        self._add(Note(seq, f"The conversation was compacted{sizes}."))

    def _resolve(self, seq: int, data: dict[str, Any]) -> None:
        actor = terminal.plain(str(data.get("actor") or ""))
        message = terminal.plain(str(data.get("message") or ""))
        ended = _ENDS.get(data["state"], data["state"])
        self._add(Note(seq, f"{ended}{f' by {actor}' if actor else ''}{f': {message}' if message else '.'}"))

    def _input(self, seq: int, data: dict[str, Any]) -> None:
        """Show text that a person sent to the running turn, once."""
        text = data.get("text")
        if data.get("state") in ("sent", "queued") and isinstance(text, str) and text:
            self._add(Note(seq, f"Sent while it ran: {terminal.plain(text)}"))

    def _use(self, seq: int, data: dict[str, Any]) -> None:
        if "name" in data:
            self._call(seq, data)
            return
        place, call = self._open.pop(data["toolUseId"], (-1, None))
        if call is None:  # retention removed the event of its call
            call = Call(seq, "Tool")
            self._add(call)
            place = len(self.blocks) - 1
        result = data["result"]
        call.result = result if isinstance(result, str) else json.dumps(result, indent=2, ensure_ascii=False)
        call.is_error, call.ended = data["isError"], data["timestamp"]
        call.cut = call.cut or bool(data.get("truncated"))
        self.changed.add(place)

    def _picture(self, seq: int, data: dict[str, Any]) -> None:
        """Add a picture to the call whose result contains it and comes next."""
        _, call = self._open.get(data["toolUseId"], (-1, None))
        if call is not None and data["part"] == 0 and self._run:
            call.pictures.append(f"/runs/{quote(self._run, safe='')}/pictures/{seq}")

    def _call(self, seq: int, data: dict[str, Any]) -> None:
        call = Call(
            seq, data["name"], data["input"], cut=bool(data.get("truncated")), folder=self._folder, files=self._files
        )
        call.began, call.parent = data["timestamp"], data.get("parentToolUseId")
        place, parent = self._open.get(call.parent or "", (-1, None))
        if parent is None:
            self._add(call)
            place = len(self.blocks) - 1
        else:
            parent.inner.append(call)
            self.changed.add(place)
        self._open[data["toolUseId"]] = (place, call)


_ENDS = {
    "allowed": "Allowed",
    "denied": "Denied",
    "answered": "Answered",
    "expired": "Not answered in time",
    "withdrawn": "No longer needed",
}


def _status(data: dict[str, Any]) -> str:
    return str(data["message"] or {"compacting": "Compacting the conversation"}.get(data["state"], ""))


_TAKERS: dict[str, Callable[[Reader, int, dict[str, Any]], None]] = {
    "output": Reader._say,
    "tool": Reader._use,
    "image": Reader._picture,
    "gap": Reader._gap,
    "thinking": Reader._think,
    "task": Reader._progress,
    "todo": Reader._list,
    "denial": Reader._deny,
    "compaction": Reader._compact,
    "approval_resolved": Reader._resolve,
    "input": Reader._input,
}
