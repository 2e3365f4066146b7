"""Bytes of a pipe, cut into lines.

Only whole lines are read.
"""

from __future__ import annotations

LONGEST_LINE = 16 * 1024 * 1024


class Lines:
    """Cuts a stream of bytes into lines.

    A line over the limit is counted and never held.
    """

    def __init__(self) -> None:
        self._rest = bytearray()
        self.too_long = False

    def feed(self, data: bytes) -> list[bytes]:
        """Return the lines that end in `data`, without line breaks and without empty ones."""
        *whole, rest = data.split(b"\n")
        may_be_long = len(self._rest) + len(data) > LONGEST_LINE
        if whole:
            whole[0] = bytes(self._rest) + whole[0]
            self._rest = bytearray(rest)
        else:
            self._rest += rest
        if may_be_long:
            whole = self._without_long(whole)
        return [line for line in whole if line]

    def _without_long(self, whole: list[bytes]) -> list[bytes]:
        """Count the lines over the limit.

        Of an unfinished one hold no more than shows that it is too long.
        """
        kept = [line for line in whole if len(line) <= LONGEST_LINE]
        self.too_long |= len(kept) < len(whole) or len(self._rest) > LONGEST_LINE
        del self._rest[LONGEST_LINE + 1 :]
        return kept

    def rest(self) -> bytes:
        """Return the data after the last line break."""
        return bytes(self._rest)
