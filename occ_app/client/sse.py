"""Server-sent events as a client reads them.

The bytes of a response become batches of events, as they arrive.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import urllib3

from occ_app.client import replies
from occ_app.client.event_checks import RawEvent, checked, replacement
from occ_app.errors import Unreachable

_PIECE = 1 << 16
_LONGEST_EVENT = 16 << 20


@dataclass(frozen=True)
class StreamEvent:
    """One event of an execution: `seq` counts 1, 2, 3 …; `data` is its object."""

    seq: int
    name: str
    data: dict[str, Any]

    @property
    def final(self) -> bool:
        return self.name in ("complete", "error")


def batches(response: urllib3.BaseHTTPResponse) -> Iterator[list[RawEvent]]:
    """Yield the events of a stream in batches as they arrive.

    An empty list for a comment: the other side is alive. Raises Unreachable when the connection breaks.
    """
    rest = b""
    try:
        with response:
            while data := cast(urllib3.HTTPResponse, response).read1(_PIECE):
                *frames, rest = (rest + data).split(b"\n\n")
                if len(rest) > _LONGEST_EVENT:
                    raise ValueError("an event without an end")
                if frames:
                    yield [raw for frame in frames if (raw := _raw_event(frame)) is not None]
    except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
        raise Unreachable(f"The connection broke ({replies.reason(error)}).") from None


def _raw_event(frame: bytes) -> RawEvent | None:
    fields = dict(line.split(b": ", 1) for line in frame.split(b"\n") if b": " in line and not line.startswith(b":"))
    if b"data" not in fields:
        return None
    number, name = fields.get(b"id", b""), fields.get(b"event", b"")
    if not re.fullmatch(rb"[0-9]{1,20}", number):
        raise ValueError("an event without a number")
    return RawEvent(int(number), name.decode(errors="replace"), fields[b"data"].decode(errors="replace"))


def parsed(raw: RawEvent) -> StreamEvent:
    """Return an event with its data as an object.

    One that breaks its schema is replaced.
    """
    sound = checked(raw) or replacement(raw)
    return StreamEvent(sound.seq, sound.name, json.loads(sound.data))
