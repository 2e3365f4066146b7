"""One stream of a link: a local socket, and the bytes each side may still send."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable

from occ_app.link.frames import DATA, END, LARGEST_PAYLOAD, WINDOW_BYTES, Frame, Violation, window

_WORTH_TELLING = WINDOW_BYTES // 4
_MAX_CREDIT = 2**31


class Stream:
    """One stream; `emit` sends a frame of it.

    Methods raise OSError for a fault of the local socket, Violation for one of the peer.
    """

    __slots__ = ("_credit", "_emit", "_finished", "_muted", "_owed", "_room", "_unwritten", "ended", "local", "number")

    def __init__(self, number: int, local: socket.socket, emit: Callable[[Frame], None]) -> None:
        self.number = number
        self.local = local
        self._emit = emit
        self._credit = WINDOW_BYTES  # bytes that may still be sent to the peer
        self._room = WINDOW_BYTES  # bytes that the peer may still send
        self._owed = 0  # bytes that the local socket took and no window has granted yet
        self._unwritten = bytearray()
        self._finished = False  # the peer said that it sends no more
        self._muted = False
        self.ended = False  # the local side said so

    @property
    def over(self) -> bool:
        return self.ended and self._finished and not self._unwritten

    @property
    def wants(self) -> int | None:
        """Return the epoll mask to wait for on the local socket.

        None: not even its hang-up.
        """
        if self._muted:
            return None
        reading = select.EPOLLIN if self._may_read else 0
        return reading | (select.EPOLLOUT if self._unwritten else 0)

    @property
    def _may_read(self) -> bool:
        return self._credit > 0 and not self.ended

    def happened(self, mask: int) -> None:
        """Do what epoll says can be done, one read at most."""
        if mask & select.EPOLLOUT:
            self._write()
        if self._may_read:
            if mask & ~select.EPOLLOUT:
                self._read()
        elif mask & (select.EPOLLHUP | select.EPOLLERR):
            if self.ended:
                raise ConnectionResetError("the local side is gone and will hear no answer")
            self._muted = True  # its remaining data is still read, when there is credit

    def _read(self) -> None:
        try:
            data = self.local.recv(min(self._credit, LARGEST_PAYLOAD))
        except BlockingIOError:
            return
        if data:
            self._credit -= len(data)
            self._emit(Frame(self.number, DATA, data))
        else:
            self.ended = True
            self._emit(Frame(self.number, END))

    def grant(self, increment: int) -> None:
        """Allow this many more bytes to the peer."""
        self._credit += increment
        self._muted = False
        if self._credit > _MAX_CREDIT:
            raise Violation(f"a window of {self._credit} bytes")

    def take(self, data: bytes) -> None:
        """Bytes of the peer."""
        self._room -= len(data)
        if self._room < 0 or self._finished:
            raise Violation("more data than its window allows" if self._room < 0 else "data after an end")
        self._unwritten += data
        if len(self._unwritten) == len(data):
            self._write()

    def finish(self) -> None:
        """Note that the peer sends no more."""
        self._finished = True
        if not self._unwritten:
            self._shut()

    def _write(self) -> None:
        try:
            sent = self.local.send(self._unwritten)
        except BlockingIOError:
            return
        del self._unwritten[:sent]
        self._owed += sent
        if self._finished:
            if not self._unwritten:
                self._shut()
        elif self._owed >= _WORTH_TELLING:
            self._emit(window(self.number, self._owed))
            self._room += self._owed
            self._owed = 0

    def _shut(self) -> None:
        self.local.shutdown(socket.SHUT_WR)
