"""The stream of an execution's page: its changes as HTML.

Each message is one JSON object with `items`, in order. An item is either a whole block (`seq`, `html`) or a change of
a text (`seq`): its first `keep` elements are unchanged, and `blocks` are the elements after them. The first of
`blocks` continues the element at its place after `at` characters. `parts` asks the page to fetch its other parts;
`over` ends the stream. The id of a message is the event after which a client that reconnects resumes.

An idle stream sends the event `beat`, so that the page notices a connection that was lost without being closed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from flask import Flask

from occ_app.executions.events import StoredEvent
from occ_app.executions.records import Execution
from occ_app.hub.pages.answer import Reader, Text, files_of
from occ_app.streams.followers import Follower
from occ_app.streams.tail import Live, Tail
from occ_app.system.compact_json import to_json

_NEWS = ("started", "approval", "approval_resolved", "complete", "error")  # events that change the page's other parts
_SHORTEST, _EACH, _LONGEST = 0.06, 0.006, 0.5  # seconds between two messages: at least, for each open page, at most
BEAT_SECONDS = 5.0
_BEAT = b"event: beat\ndata: {}\n\n"
_SHARE = 12  # making a message takes at most one part in so many of the time between two messages


@dataclass(frozen=True)
class Message:
    """A message as bytes."""

    sse: bytes
    final: bool


class PageFollower(Follower):
    """A reader of an execution that receives its page's changes, not its events."""

    def __init__(
        self, app: Flask, tailing: Tail, execution: Execution, after: int, folder: str, **follower: Any
    ) -> None:
        super().__init__(app.extensions["occ"].db, tailing, execution, after, **follower)
        self._tailing = tailing
        self._reader = Reader(
            after, folder, live=not execution.over, files=files_of(execution, folder), run=execution.execution_id
        )
        self._drawn = Drawn(self._reader, app.jinja_env.get_template("blocks.html").module)
        self._open_pages: Callable[[], int] = lambda: app.extensions["occ"].streams.open
        self._push: Callable[[], None] = lambda: None
        self._news = False
        self._due = 0.0
        self._hurried_at = float("-inf")
        self._beat_at = time.monotonic() + BEAT_SECONDS
        self._waits = False  # whether a wake-up is set for the next message

    def attach(self, reader: Live) -> None:
        self._push = reader.push
        super().attach(reader)

    def repeated_final(self) -> Any:
        final = super().repeated_final()
        return None if final is None else self._message([final])

    def stored(self) -> Iterator[list[Any]]:
        """Yield one message for all events stored so far that the page does not have."""
        for batch in super().stored():
            self._take(batch)
        yield [self._made()]

    def ready(self) -> list[Any]:
        """Return the next message if there are changes and it is due."""
        batch = super().ready()
        if batch:
            self._take(batch)
        now = time.monotonic()
        if not self._reader.changed and not self._news and not self._drawn.differs:
            return self._beat(now)
        if now < self._due and not self._reader.over and not self._hurries(now):
            if not self._waits:
                self._waits = True
                self._tailing.at(self._due, self._wake)
            return []
        return [self._made()]

    def _hurries(self, now: float) -> bool:
        """Return whether to send the next message early, for the first words of a text.

        It does so at most twice a second. The first words often come right after another event, such as the start of
        the turn, whose message has just been sent.
        """
        if now < self._hurried_at + _LONGEST or not self._drawn.begins:
            return False
        self._hurried_at = now
        return True

    def _beat(self, now: float) -> list[Any]:
        if now < self._beat_at:
            return []
        self._beat_at = now + BEAT_SECONDS
        return [Message(_BEAT, final=False)]

    def _wake(self) -> None:
        self._waits = False
        self._push()

    def _take(self, batch: list[StoredEvent]) -> None:
        for event in batch:
            self._reader.take(event)
            self._news = self._news or event.name in _NEWS

    def _message(self, batch: list[StoredEvent]) -> Message:
        self._take(batch)
        return self._made()

    def _made(self) -> Message:
        began = time.thread_time()  # CPU time of this thread: load from others must not delay the next message
        content = self._drawn.changes() | ({"parts": True} if self._news else {})
        over, self._news = self._reader.over, False
        if over:
            content["over"] = True
        took, now = time.thread_time() - began, time.monotonic()
        self._beat_at = now + BEAT_SECONDS
        self._due = now + max(_SHARE * took, min(_LONGEST, max(_SHORTEST, _EACH * self._open_pages())))
        head = f"id: {self._reader.stable}\nevent: page\n"
        return Message(f"{head}data: {to_json(content)}\n\n".encode(errors="replace"), over)


class Drawn:
    """The blocks as the page currently shows them."""

    def __init__(self, reader: Reader, macros: Any) -> None:
        self._reader = reader
        self._macros = macros
        self._texts: dict[int, list[str]] = {}  # the elements of each text, by the number of its first event
        self._others: dict[str, str] = {}

    @property
    def differs(self) -> bool:
        """Return whether the status or the todo list differs from the page's."""
        return self._reader.status != self._others.get("status", "") or self._todo() != self._others.get("todo", "")

    @property
    def begins(self) -> bool:
        """Return whether a text has changed that the page does not show yet."""
        changed = (self._reader.blocks[place] for place in self._reader.changed)
        return any(isinstance(block, Text) and not self._texts.get(block.first) for block in changed)

    def changes(self) -> dict[str, Any]:
        """Return the changes since the last call."""
        reader = self._reader
        places, reader.changed = sorted(reader.changed), set()
        items = [self._item(reader.blocks[place]) for place in places]
        content: dict[str, Any] = {"items": [item for item in items if item]}
        for name, value in (("status", reader.status), ("todo", self._todo())):
            if value != self._others.get(name, ""):
                content[name] = self._others[name] = value
        return content

    def _todo(self) -> str:
        return str(self._macros.todo(self._reader.todo)).strip() if self._reader.todo else ""

    def _item(self, block: Any) -> dict[str, Any] | None:
        if not isinstance(block, Text):
            return {"seq": block.first, "html": str(self._macros.block(block)).strip()}
        old, new = self._texts.get(block.first, []), block.blocks
        keep = _common(old, new)
        if keep == len(old) == len(new) and block.first in self._texts:
            return None
        added = new[keep:]
        at = 0
        if added and keep == len(old) - 1:
            same = _common(old[keep], added[0])
            at = (
                len(added[0][:same].encode("utf-16-le", "surrogatepass")) // 2
            )  # in UTF-16 units, as the browser counts
            added[0] = added[0][same:]
        self._texts[block.first] = new
        return {"seq": block.first, "keep": keep, "at": at, "blocks": added}


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    """Return how many elements two sequences share at the start."""
    if one == other[: len(one)]:
        return len(one)
    return next((place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(other))
