"""The bytes that a client received, and when.

Raw pieces while it runs, events with their times afterwards. The client loop only reads and looks at the clock.
Everything is parsed when the stream is over, so that the one Python process that measures takes no time from the
processes that it measures.
"""

from __future__ import annotations

import json
import re
import time
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate

READ_BYTES = 1 << 18

_STARTED = re.compile(rb'"model":"benchmark-(\d+)"')
_OUTPUT = re.compile(rb'"text_delta"|^event: output$', re.MULTILINE)
# An event is there when its whole frame is: a line of the CLI, or a line and an empty one of server-sent events.
_TEXT = re.compile(rb'"(?:text|chunk)":"((\d+) (\d+) x*)"[^\n]*\n\n?')


class Broken(Exception):
    """The benchmark cannot go on; says in one sentence why."""


@dataclass(frozen=True)
class Prompt:
    """The output of the stub CLI: `count` texts of `size` bytes, `rate` a second.

    Rate 0 is as fast as possible.
    """

    count: int
    rate: int = 0
    size: int = 40

    def __str__(self) -> str:
        return f"n={self.count} rate={self.rate} size={self.size}"


@dataclass(frozen=True)
class Run:
    """One stream of the stub, as the client received it.

    All moments are nanoseconds of CLOCK_MONOTONIC. `written` and `arrived` belong together, text by text; `spawned` is
    None where the stream does not have it.
    """

    begun: int
    spawned: int | None
    written: list[int]
    arrived: list[int]
    lost: int
    damaged: int
    execution_id: str = ""

    @property
    def spawn_ms(self) -> float:
        if self.spawned is None:
            raise Broken("a stream did not tell when the stub CLI started")
        return (self.spawned - self.begun) / 1e6

    @property
    def first_ms(self) -> float:
        return (self.arrived[0] - self.begun) / 1e6

    @property
    def latencies_ms(self) -> list[float]:
        return [(arrived - written) / 1e6 for written, arrived in zip(self.written, self.arrived, strict=True)]

    @property
    def written_to_read_seconds(self) -> float:
        """From the first text written to the last one received."""
        return (self.arrived[-1] - self.written[0]) / 1e9

    @property
    def asked_to_read_seconds(self) -> float:
        """From the request to the last text received."""
        return (self.arrived[-1] - self.begun) / 1e9


@dataclass
class Capture:
    """The pieces of one stream in order, each with the moment its read returned."""

    begun: int = field(default_factory=time.monotonic_ns)
    pieces: list[bytes] = field(default_factory=list)
    moments: list[int] = field(default_factory=list)
    _before: bytes = b""

    def take(self, piece: bytes, last: bytes) -> bool:
        """Store a piece that was just read.

        False when it is the end, or `last` came with it.
        """
        self.moments.append(time.monotonic_ns())
        self.pieces.append(piece)
        ended = not piece or last in self._before + piece
        self._before = piece[-64:]
        return not ended

    def run(self, prompt: Prompt, execution_id: str = "") -> Run:
        """Return the events of a stream of lines."""
        return self._run(prompt, b"".join(self.pieces), lambda position: position, execution_id)

    def http_run(self, prompt: Prompt, execution_id: str = "") -> Run:
        """Return the events of an HTTP response.

        Raises Broken unless it is a 200 that ends with `complete`.
        """
        raw = b"".join(self.pieces)
        head, _, _ = raw.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200 "):
            raise Broken(f"a request was refused: {raw[-500:].decode(errors='replace')}")
        content, received_at = _unchunked(raw, len(head) + 4)
        last = content.rstrip().rpartition(b"\n\n")[2]
        if b"event: complete" not in last:
            raise Broken(f"an execution did not succeed: {last[-500:].decode(errors='replace')}")
        return self._run(prompt, content, received_at, execution_id)

    def relay_run(self, prompt: Prompt) -> Run:
        """Return the events of a response whose frames carry pieces of the CLI's output.

        Raises Broken as `http_run`.
        """
        raw = b"".join(self.pieces)
        head, _, _ = raw.partition(b"\r\n\r\n")
        framed, received_at = _unchunked(raw, len(head) + 4)
        if b"event: complete" not in framed[-200:]:
            raise Broken(f"the relay did not finish: {raw[-300:].decode(errors='replace')}")
        content, ends, moments, position = b"", list[int](), list[int](), 0
        pieces = list[bytes]()
        for frame in framed.split(b"\n\n"):
            position += len(frame) + 2
            if frame.startswith(b"event: output\ndata: "):
                pieces.append(json.loads(frame.partition(b"data: ")[2])["chunk"].encode())
                ends.append((ends[-1] if ends else 0) + len(pieces[-1]))
                moments.append(received_at(min(position, len(framed))))
        content = b"".join(pieces)
        return self._run(prompt, content, lambda end: moments[bisect_left(ends, end)], "")

    def _run(self, prompt: Prompt, content: bytes, received_at: Callable[[int], int], execution_id: str) -> Run:
        """Parse `content`.

        `received_at` returns how far the stream must be read to contain it up to a position.
        """
        ends = list(accumulate(map(len, self.pieces)))
        written, arrived, expected = list[int](), list[int](), 0
        for match in _TEXT.finditer(content):
            if len(match[1]) != max(prompt.size, len(match[2]) + len(match[3]) + 2) or int(match[3]) < expected:
                continue
            expected = int(match[3]) + 1
            written.append(int(match[2]))
            arrived.append(self.moments[bisect_left(ends, received_at(match.end()))])
        if not written:
            raise Broken("a stream held no output at all")
        came = len(_OUTPUT.findall(content))
        started = _STARTED.search(content)
        return Run(
            begun=self.begun,
            spawned=int(started[1]) if started else None,
            written=written,
            arrived=arrived,
            lost=max(0, prompt.count - came),
            damaged=came - len(written),
            execution_id=execution_id,
        )


def _unchunked(raw: bytes, start: int) -> tuple[bytes, Callable[[int], int]]:
    """Return the content of a chunked body that begins at `start`, and a map.

    The map leads from positions in the content to positions in `raw`.
    """
    pieces, ends, shifts = list[bytes](), list[int](), list[int]()
    position, length = start, 0
    while True:
        line_end = raw.find(b"\r\n", position)
        size = int(raw[position:line_end] or b"0", 16) if line_end >= 0 else 0
        if size == 0:
            break
        pieces.append(raw[line_end + 2 : line_end + 2 + size])
        shifts.append(line_end + 2 - length)
        length += size
        ends.append(length)
        position = line_end + 4 + size
    return b"".join(pieces), lambda content_position: content_position + shifts[bisect_left(ends, content_position)]
