"""An execution's events as blocks of a page: texts and tool calls in order."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

from markupsafe import Markup

from occ_app.client.event_checks import RawEvent, checked
from occ_app.database.database import Database
from occ_app.executions import events
from occ_app.executions.records import Execution
from occ_app.hub.pages import markdown, terminal

_MAX_EVENTS = 30_000
_MAX_BYTES = 1_000_000
_MAX_TOOL_CHARACTERS = 20_000
_MAX_TODO_ITEMS = 100
_SUBJECTS = ("file_path", "notebook_path", "pattern", "path", "command", "url", "query", "description", "prompt")


@dataclass(frozen=True)
class Text:
    """Uninterrupted text; `first` is the number of its first event."""

    first: int
    text: str
    live: bool = False

    kind = "text"

    @property
    def html(self) -> Markup:
        return markdown.html(terminal.plain(self.text), live=self.live)


@dataclass(frozen=True)
class Tool:
    """A tool call: its input by name, and its result, None until it arrives."""

    first: int
    name: str
    subject: str
    given: tuple[tuple[str, str], ...] = ()
    result: str | None = None
    is_error: bool = False
    cut: bool = False
    parent: bool = False  # used by a sub-agent
    progress: str = ""  # of the sub-agent that it started

    kind = "tool"


@dataclass(frozen=True)
class Thinking:
    """The model's thinking without interruption, which is folded."""

    first: int
    text: str
    cut: bool = False

    kind = "thinking"


@dataclass(frozen=True)
class Todo:
    """The todo list at one time: texts and states."""

    first: int
    items: tuple[tuple[str, str], ...]

    kind = "todo"

    @property
    def done(self) -> int:
        return sum(state == "completed" for _, state in self.items)

    @property
    def current(self) -> str:
        return next((text for text, state in self.items if state == "in_progress"), "")


@dataclass(frozen=True)
class Note:
    """A sentence about an event without a block of another kind."""

    first: int
    text: str

    kind = "note"


Block = Text | Tool | Thinking | Todo | Note


@dataclass(frozen=True)
class Answer:
    """Blocks up to the event `last`. Those up to `stable` will never change; `status` is its current activity."""

    blocks: tuple[Block, ...]
    last: int
    stable: int
    status: str
    over: bool


def read(db: Database, execution: Execution, after: int = 0, folder: str = "") -> Answer:
    """Return the events stored after one; of more than a page can show, the last ones.

    `folder` is that of the workspace: paths in it are shown relative to it.
    """
    reader = _Reader(after, folder)
    start = max(after, execution.last_seq - _MAX_EVENTS)
    if start > after:
        reader.leave_out(start)
    while batch := events.after(db, execution.number, start):
        missing = events.gap(start, batch[0])
        if missing is not None:
            reader.take(missing)
        for event in batch:
            reader.take(event)
        start = batch[-1].seq
    return reader.answer(over=execution.over)


class _Reader:
    """Puts events together to blocks, in their order."""

    def __init__(self, after: int, folder: str) -> None:
        self._folder = folder.rstrip("/") + "/"
        self._blocks: list[Block] = []
        self._text_pieces: list[str] = []  # of the text that is the last block
        self._open: dict[str, int] = {}  # tool calls without a result, by id: their places in the list
        self._bytes = 0
        self._last = after
        self._status = ""

    def take(self, event: events.StoredEvent) -> None:
        self._bytes += len(event.data)
        if self._bytes > _MAX_BYTES:
            self.leave_out(event.seq - 1)
        self._last = event.seq
        sound = checked(RawEvent(event.seq, event.name, event.data))
        if sound is None:
            self._add(Note(event.seq, f"Event {event.seq} cannot be read and is left out."))
            return
        data = json.loads(sound.data)
        if event.name == "output":
            self._say(event.seq, data["chunk"])
        elif event.name == "tool":
            self._use(event.seq, data)
        elif event.name in _OTHERS:
            _OTHERS[event.name](self, event.seq, data)
        if event.name == "status":
            self._status = data["message"] or {"compacting": "Compacting the conversation"}.get(data["state"], "")
        else:
            self._status = ""

    def leave_out(self, up_to: int) -> None:
        """Drop the blocks so far: the end of a long answer matters more than its beginning."""
        self._blocks, self._text_pieces, self._open, self._bytes = [], [], {}, 0
        text = "The beginning of this answer is left out, because it is long; `occ jobs tail` and the API have it all."
        self._blocks.append(Note(up_to, text))

    def answer(self, *, over: bool) -> Answer:
        self._close_text()
        if over:
            return Answer(tuple(self._blocks), self._last, self._last, "", over=True)
        unfinished = [self._blocks[place].first for place in self._open.values()]
        if self._blocks and isinstance(self._blocks[-1], Text):
            unfinished.append(self._blocks[-1].first)
            self._blocks[-1] = replace(self._blocks[-1], live=True)
        else:
            if self._blocks and isinstance(self._blocks[-1], Thinking):
                unfinished.append(self._blocks[-1].first)
            self._blocks.append(Text(self._last + 1, "", live=True))  # the place of the next words
        stable = min(unfinished) - 1 if unfinished else self._last
        return Answer(tuple(self._blocks), self._last, stable, self._status, over=False)

    def _say(self, seq: int, chunk: str) -> None:
        if not self._text_pieces:
            self._blocks.append(Text(seq, ""))
        self._text_pieces.append(chunk)

    def _close_text(self) -> None:
        if self._text_pieces:
            last = self._blocks[-1]
            assert isinstance(last, Text)  # noqa: S101 - it was put there when the first of these was said
            self._blocks[-1] = replace(last, text="".join(self._text_pieces))
            self._text_pieces = []

    def _add(self, block: Block) -> None:
        self._close_text()
        self._blocks.append(block)

    def _gap(self, seq: int, data: dict[str, Any]) -> None:
        self._add(Note(seq, f"Events {data['fromSeq']} to {data['toSeq']} are gone: {data['reason']}."))

    def _think(self, seq: int, data: dict[str, Any]) -> None:
        text = terminal.plain(data["chunk"])
        last = self._blocks[-1] if self._blocks else None
        if isinstance(last, Thinking):
            whole = last.text + text
            cut = len(whole) > _MAX_TOOL_CHARACTERS
            self._blocks[-1] = replace(last, text=whole[:_MAX_TOOL_CHARACTERS], cut=cut)
        else:
            self._add(Thinking(seq, text))

    def _list(self, seq: int, data: dict[str, Any]) -> None:
        items = tuple((terminal.plain(item["text"]), item["state"]) for item in data["items"][:_MAX_TODO_ITEMS])
        self._add(Todo(seq, items))

    def _progress(self, _: int, data: dict[str, Any]) -> None:
        """Note the progress of a sub-agent in the call that started it, while that is open."""
        place = self._open.get(data.get("toolUseId") or "")
        if place is None:
            return
        called = self._blocks[place]
        assert isinstance(called, Tool)  # noqa: S101 - `_open` has the places of tools
        shown = data["state"] if data["state"] != "running" else terminal.plain(data.get("description") or "")
        self._blocks[place] = replace(called, progress=shown)

    def _deny(self, seq: int, data: dict[str, Any]) -> None:
        reason = terminal.plain(data["reason"] or "").rstrip(".")
        self._add(Note(seq, f"{data['name']} was denied{f': {reason}' if reason else ''}."))

    def _compact(self, seq: int, data: dict[str, Any]) -> None:
        before, after = data["tokensBefore"], data["tokensAfter"]
        sizes = "" if before is None or after is None else f" from {before} to {after} tokens"
        self._add(Note(seq, f"The conversation was compacted{sizes}."))

    def _use(self, seq: int, data: dict[str, Any]) -> None:
        if "name" in data:
            self._open[data["toolUseId"]] = len(self._blocks)
            arguments = _given(data["input"])
            cut = bool(data.get("truncated")) or any(len(text) > _MAX_TOOL_CHARACTERS for _, text in arguments)
            subject = _subject(data["input"]).removeprefix(self._folder)
            shortened = tuple((name, text[:_MAX_TOOL_CHARACTERS]) for name, text in arguments)
            parent = bool(data.get("parentToolUseId"))
            self._add(Tool(seq, data["name"], subject, shortened, cut=cut, parent=parent))
            return
        place = self._open.pop(data["toolUseId"], None)
        if place is None:  # its call is not among the events any more
            self._add(Tool(seq, "Tool", ""))
            place = len(self._blocks) - 1
        called = self._blocks[place]
        assert isinstance(called, Tool)  # noqa: S101 - `_open` has the places of tools
        result = _shown(data["result"])
        cut = called.cut or bool(data.get("truncated")) or len(result) > _MAX_TOOL_CHARACTERS
        self._blocks[place] = replace(called, result=result[:_MAX_TOOL_CHARACTERS], is_error=data["isError"], cut=cut)


_OTHERS = {
    "gap": _Reader._gap,
    "thinking": _Reader._think,
    "task": _Reader._progress,
    "todo": _Reader._list,
    "denial": _Reader._deny,
    "compaction": _Reader._compact,
}


def _shown(value: Any) -> str:
    return terminal.plain(value) if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False)


def _given(arguments: Any) -> list[tuple[str, str]]:
    """A tool's input as pairs of name and text, so that a text of several lines is shown as such."""
    if not isinstance(arguments, dict):
        return [("", _shown(arguments))]
    return [(name, _shown(value)) for name, value in arguments.items()]


def _subject(value: Any) -> str:
    """Return the part of a tool's input that identifies its target."""
    if isinstance(value, dict):
        for name in _SUBJECTS:
            if isinstance(value.get(name), str):
                return terminal.plain(str(value[name]))
    return ""
