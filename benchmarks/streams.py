"""The client side: streams over HTTP or a bare pipe.

They are read alone or many at the same time.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.capture import READ_BYTES, Broken, Capture, Run

ANSWER_SECONDS = 45.0


@dataclass
class Stream:
    """One stream: the source of its bytes, the way to read it, and its result."""

    capture: Capture
    descriptor: int
    read: Callable[[], bytes]
    last: bytes
    finish: Callable[[], Run]
    close: Callable[[], None]
    execution_id: str = ""

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def take(self) -> bool:
        """Read what is there. False when that was the end."""
        return self.capture.take(self.read(), self.last)


def over_http(capture: Capture, address: tuple[str, int], request: bytes, finish: Callable[[], Run]) -> Stream:
    """Send a request whose response is the stream."""
    connection = socket.create_connection(address)
    connection.sendall(request)
    return Stream(
        capture, connection.fileno(), lambda: connection.recv(READ_BYTES), b"\r\n0\r\n\r\n", finish, connection.close
    )


def await_answer(address: tuple[str, int], request: str, failed: Callable[[], bool] = lambda: False) -> None:
    """Request until there is a reply of 200, for a server that has just started.

    Raises Broken when none comes.
    """
    deadline = time.monotonic() + ANSWER_SECONDS
    while time.monotonic() < deadline:
        last_try = failed()
        with contextlib.suppress(OSError), socket.create_connection(address, timeout=ANSWER_SECONDS) as connection:
            connection.sendall(request.encode())
            answer = connection.recv(READ_BYTES)
            if answer.startswith(b"HTTP/1.1 200 "):
                while connection.recv(READ_BYTES):
                    pass
                return
        if last_try:
            return  # what failed says why
        time.sleep(0.002)  # there is nothing to wait on before it listens
    raise Broken(f"nothing answers on port {address[1]}")


def read(stream: Stream) -> Run:
    """Read one stream to its end."""
    with stream:
        while stream.take():
            pass
    return stream.finish()


def together(streams: Sequence[Stream]) -> list[Run]:
    """Read many streams at the same time, each to its end. All are parsed only then."""
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as selector:
        for stream in streams:
            stack.enter_context(stream)
            selector.register(stream.descriptor, selectors.EVENT_READ, stream)
        while selector.get_map():
            for key, _ in selector.select():
                if not key.data.take():
                    selector.unregister(key.fileobj)
    return [stream.finish() for stream in streams]
