"""Long answers in parts, each of which ends at the end of a block.

A part has the place where the next one begins.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace

from occ_app.database.database import Database
from occ_app.executions import events
from occ_app.executions.records import Execution
from occ_app.hub.pages import markdown
from occ_app.hub.pages.answer import Reader, Text, files_of
from occ_app.system.compact_json import to_json

PART_BYTES = 100_000
WINDOW_BYTES = 300_000  # of the newest events, which are shown of a running execution
_FENCE = "```\n"


@dataclass(frozen=True)
class Place:
    """The place where a part begins.

    `seq` is an event, and `skip` is the number of characters of its text that come before the place. `code` is true
    inside a code block.
    """

    seq: int = 1
    skip: int = 0
    code: bool = False


@dataclass(frozen=True)
class Part:
    """A part of an answer, and the place of the next part, if there is one."""

    reader: Reader
    next: Place | None = None


def read(db: Database, execution: Execution, place: Place, folder: str = "", until: Place | None = None) -> Part:
    """Read about PART_BYTES of an execution's events from a place.

    With `until`, read only the events before that place.
    """
    last = execution.last_seq if until is None else until.seq - (until.skip == 0)
    ends = execution.over or until is not None  # otherwise it is the newest part, which the page's stream continues
    reader = Reader(place.seq - 1, folder, live=not ends, files=files_of(execution, folder), run=execution.execution_id)
    for event in _from(db, execution.number, place, last):
        reader.take(event if until is None or event.seq < until.seq else _beginning(event, until.skip))
        if ends and reader.bytes > PART_BYTES and event.seq < last and (following := _end(reader, place)):
            return Part(reader, following)
    return Part(reader)


def window(db: Database, execution: Execution) -> Place:
    """Return where the newest part of a running execution begins.

    That is at the start of a block where one can be found.
    """
    start = events.newest_from(db, execution.number, WINDOW_BYTES)
    if start == 1:
        return Place()
    before = ""
    for event in _from(db, execution.number, Place(start), start + 2_000):
        if event.name != "output" and before == "output":
            return Place(event.seq)
        before = event.name
        if event.name == "output" and (end := event.data.find("\\n\\n")) >= 0:
            chunk = json.loads(event.data)["chunk"]
            return Place(event.seq, chunk.find("\n\n") + 2) if "\n\n" in chunk else Place(event.seq, end)
    return Place(start)


def _from(db: Database, number: int, place: Place, last: int) -> Iterator[events.StoredEvent]:
    """Yield the events from a place to the event `last`.

    A `gap` replaces events that retention removed.
    """
    after = place.seq - 1
    while batch := events.after(db, number, after):
        missing = events.gap(after, batch[0])
        if missing is not None:
            yield missing
        for event in batch:
            if event.seq > last:
                return
            yield _shortened(event, place) if event.seq == place.seq else event
        after = batch[-1].seq


def _shortened(event: events.StoredEvent, place: Place) -> events.StoredEvent:
    if event.name != "output" or not (place.skip or place.code):
        return event
    data = json.loads(event.data)
    text = str(data.get("chunk", ""))[place.skip :]
    return replace(event, data=to_json(data | {"chunk": (_FENCE if place.code else "") + text}))


def _beginning(event: events.StoredEvent, length: int) -> events.StoredEvent:
    data = json.loads(event.data)
    return replace(event, data=to_json(data | {"chunk": str(data.get("chunk", ""))[:length]}))


def _end(reader: Reader, start: Place) -> Place | None:
    """End the part here if possible, and return where the next one begins."""
    last = reader.blocks[-1] if reader.blocks else None
    if not isinstance(last, Text):
        return Place(reader.last + 1) if not reader.waits or reader.bytes > 3 * PART_BYTES else None
    text = "".join(last.pieces)
    cut, code = markdown.last_cut(text), False
    if not cut:
        if last.size < 2 * PART_BYTES:
            return None
        cut = text.rfind("\n") + 1 or len(text)  # one very long block
        code = markdown.ends_in_code(text[:cut])
    seq, begin = next((seq, begin) for seq, begin in reversed(last.places) if begin <= cut)
    last.pieces = [text[:cut]]
    skipped = start.skip - (len(_FENCE) if start.code else 0) if seq == start.seq else 0
    return Place(seq, cut - begin + skipped, code)
