"""Events of an execution, numbered 1, 2, 3 ….

Every client reads these rows and nothing else.
"""

from __future__ import annotations

import itertools
import json
import re
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from occ_app.database.database import Database
from occ_app.system.compact_json import object_of, to_json

FINAL_EVENTS = ("complete", "error")
MAX_EVENTS_PER_READ = 1000
MAX_EVENTS_PER_RING = 50  # a ring with more carries none: readers fetch a burst from the table

_ROW_BYTES = 100

# Rows of a burst are inserted in groups: a statement for each row takes half as long again.
_GROUP = 16
_INSERT_GROUP = "INSERT INTO events (execution, seq, event, data) VALUES " + ", ".join(  # noqa: S608 - made of numbers
    f"(?1, ?2 + {row}, ?{3 + 2 * row}, ?{4 + 2 * row})" for row in range(_GROUP)
)

NewEvent = tuple[str, str]
"""An event before it has a number: its name, and its data, a JSON object as text."""

# Characters that a row must not bring into a stream raw: a reader may break a line there or obey them.
_NAME = re.compile("[\x21-\x7e]+")
_BREAK = re.compile("[\x00-\x1f\x7f]")
_RAW = re.compile("[\x80-\x9f\u2028\u2029]")


@dataclass(slots=True)
class StoredEvent:
    """One event as stored: `data` is one JSON object, as text.

    Nothing changes one. It is not frozen because a frozen one takes twice as long to make.
    """

    seq: int
    name: str
    data: str
    _sse: bytes = field(default=b"", init=False, repr=False, compare=False)

    @property
    def sse(self) -> bytes:
        """The event as a server-sent event; built once however many readers it has."""
        if not self._sse:
            event = self.sound
            frame = f"id: {event.seq}\nevent: {event.name}\ndata: {event.data}\n\n"
            self._sse = frame.encode(errors="replace")
        return self._sse

    @property
    def frame(self) -> str:
        """The event as one text message of a WebSocket."""
        event = self.sound
        return f'{{"id":{event.seq},"event":{to_json(event.name)},"data":{event.data}}}'

    @property
    def sound(self) -> StoredEvent:
        """Return the event, or a replacement for an unreadable one.

        An earlier version may have stored such a row.
        """
        data = self.data
        # The two checks in C first: almost every event passes them, and a replay makes them for each.
        if not (self.name.isidentifier() and self.name.isascii()) and not _NAME.fullmatch(self.name):
            return unreadable(self)
        if isinstance(data, str) and data.isprintable():
            return self
        if isinstance(data, str) and (data.isascii() or not _RAW.search(data)) and not _BREAK.search(data):
            return self
        try:
            return StoredEvent(self.seq, self.name, to_json(object_of(data)))
        except (ValueError, TypeError, RecursionError):
            return unreadable(self)

    @property
    def final(self) -> bool:
        return self.name in FINAL_EVENTS


def unreadable(event: StoredEvent) -> StoredEvent:
    """Return the replacement for a stored event that cannot be read."""
    if event.final:
        failure = {"code": "INTERNAL", "message": "The final event is damaged.", "timestamp": 0}
        return StoredEvent(event.seq, "error", to_json(failure))
    return StoredEvent(
        event.seq, "gap", to_json({"fromSeq": event.seq, "toSeq": event.seq, "reason": "it cannot be read"})
    )


def append(db: Database, number: int, first_seq: int, events: Sequence[NewEvent]) -> None:
    """Store events of a running execution, the first of them as `first_seq`.

    Each is a name and a JSON object as text. The CLI's `started` data is also stored in the execution's row. This does
    not wait for the disk: the state change that ends the execution does, and it comes after them in the same file.
    """
    with db.write(durable=False) as connection:
        insert(connection, number, first_seq, events)
        for name, data in events:
            if name == "started":
                _note_start(connection, number, json.loads(data))


def size(event: NewEvent) -> int:
    """Return the bytes that an event counts against the limit on output.

    These are its data and an estimate for its row.
    """
    data = event[1]
    return _ROW_BYTES + (len(data) if data.isascii() else len(data.encode(errors="replace")))


def stored_bytes(db: Database, number: int) -> int:
    """Return the bytes of an execution's stored events after `queued`, by `size`."""
    with db.read() as connection:
        total: int = connection.execute(
            """
            SELECT coalesce(sum(:row + length(CAST(data AS BLOB))), 0) FROM events
            WHERE execution = :number AND seq > 1
            """,
            {"row": _ROW_BYTES, "number": number},
        ).fetchone()[0]
    return total


def news(first_seq: int, events: Sequence[NewEvent]) -> bytes:
    """Events that were just stored, as a ring carries them."""
    # JSON escapes every line break, so an event is one line.
    return f"{first_seq}\n".encode() + "\n".join(f"{name} {data}" for name, data in events).encode()


def from_news(content: bytes) -> list[StoredEvent]:
    """Return the events that a ring carries."""
    first_seq, _, lines = content.partition(b"\n")
    if not first_seq:
        return []
    pairs = (line.split(" ", 1) for line in lines.decode().split("\n"))
    return [StoredEvent(seq, name, data) for seq, (name, data) in enumerate(pairs, int(first_seq))]


def newest_from(db: Database, number: int, limit: int) -> int:
    """Return the seq at which the newest `limit` bytes of events begin.

    1 when all events are below the limit.
    """
    total, seq = 0, 1
    with db.read() as connection:
        for row in connection.execute(
            "SELECT seq, length(data) AS size FROM events WHERE execution = :number ORDER BY seq DESC",
            {"number": number},
        ):
            seq, total = row["seq"], total + row["size"]
            if total > limit:
                return int(seq)
    return 1


def after(db: Database, number: int, seq: int, limit: int = MAX_EVENTS_PER_READ) -> list[StoredEvent]:
    """Up to `limit` events above `seq`, in order."""
    with db.read() as connection:
        rows = connection.execute(
            "SELECT seq, event, data FROM events WHERE execution = ? AND seq > ? ORDER BY seq LIMIT ?",
            (number, seq, limit),
        ).fetchall()
    return [StoredEvent(*row) for row in rows]


def sendable(
    db: Database, number: int, seq: int, final_seq: int, limit: int = MAX_EVENTS_PER_READ
) -> list[StoredEvent]:
    """Return events as `after` does, for sending.

    A final event above `final_seq` is on the disk when this returns: a reader sees an event from its commit on, while
    its writer may still wait for the disk, and no client may receive an end that a power cut removes.
    """
    batch = after(db, number, seq, limit)
    if batch and batch[-1].final and batch[-1].seq > final_seq:
        db.sync()
    return batch


def newest(db: Database, number: int) -> int:
    """Return the seq of an execution's newest event; 0 when there is none."""
    with db.read() as connection:
        row = connection.execute("SELECT max(seq) FROM events WHERE execution = ?", (number,)).fetchone()
    return row[0] or 0


def final(db: Database, number: int) -> StoredEvent | None:
    """Return the event that ended an execution; None while it is not over."""
    with db.read() as connection:
        row = connection.execute(
            "SELECT seq, event, data FROM events WHERE execution = ? ORDER BY seq DESC LIMIT 1", (number,)
        ).fetchone()
    event = StoredEvent(*row) if row else None
    return event if event and event.final else None


def purge(db: Database, number: int, limit: int) -> int:
    """Delete up to `limit` of a finished execution's oldest events.

    Returns how many. The final one is never deleted.
    """
    with db.write(durable=False) as connection:
        return connection.execute(
            """
            DELETE FROM events WHERE execution = ? AND seq IN (
                SELECT seq FROM events WHERE execution = ? AND seq < (
                    SELECT last_seq FROM executions WHERE number = ?)
                ORDER BY seq LIMIT ?)
            """,
            (number, number, number, limit),
        ).rowcount


def gap(after: int, following: StoredEvent) -> StoredEvent | None:
    """Return the event that says that events before `following` were removed.

    It is for a reader at `after`; None when none were removed.
    """
    if following.seq <= after + 1:
        return None
    data = {"fromSeq": after + 1, "toSeq": following.seq - 1, "reason": "removed by retention"}
    return StoredEvent(following.seq - 1, "gap", to_json(data))


def insert(connection: sqlite3.Connection, number: int, first_seq: int, events: Sequence[NewEvent]) -> None:
    """Write events, each a name and its data as text, inside the caller's transaction."""
    grouped = len(events) - len(events) % _GROUP
    for begin in range(0, grouped, _GROUP):
        group = itertools.chain.from_iterable(events[begin : begin + _GROUP])
        connection.execute(_INSERT_GROUP, (number, first_seq + begin, *group))
    connection.executemany(
        "INSERT INTO events (execution, seq, event, data) VALUES (?, ?, ?, ?)",
        [(number, seq, name, data) for seq, (name, data) in enumerate(events[grouped:], first_seq + grouped)],
    )


def _note_start(connection: sqlite3.Connection, number: int, data: Mapping[str, Any]) -> None:
    connection.execute(
        "UPDATE executions SET session_id = ?, model = ?, claude_version = ? WHERE number = ? AND state = 'running'",
        (data["sessionId"], data["model"], data["claudeVersion"], number),
    )
