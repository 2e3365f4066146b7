"""Bytes as they come from a pipe, cut into lines; only whole lines are ever looked into."""

from __future__ import annotations

from collections.abc import Iterator

LONGEST_LINE = 16 * 1024 * 1024


class Lines:
    """Cuts a stream of bytes into lines; a line over the limit is counted and never held."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self.too_long = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        first, *others = data.split(b"\n")
        self._rest += first
        for following in others:
            if self._rest and len(self._rest) <= LONGEST_LINE:
                yield bytes(self._rest)
            self.too_long |= len(self._rest) > LONGEST_LINE
            self._rest = bytearray(following)
        if len(self._rest) > LONGEST_LINE:
            self.too_long = True
            self._rest = bytearray(self._rest[: LONGEST_LINE + 1])

    def rest(self) -> bytes:
        """Return the data after the last line break."""
        return bytes(self._rest)
