"""A wire between two programs for the tests: it carries bytes, and can be cut, be silent, or cut idle connections."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator


class Wire:
    """A TCP proxy of one thread. `idle_seconds` is how long it lets a connection say nothing; None: for ever."""

    def __init__(self, target: tuple[str, int], idle_seconds: float | None = None) -> None:
        self._target = target
        self._idle_seconds = idle_seconds
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.cut_for_silence = 0
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._clients: list[socket.socket] = []
        self._silent = threading.Event()
        self._spoke: dict[socket.socket, float] = {}
        self._cut = self._lost = self._closing = False
        self._dead: list[socket.socket] = []  # clients whose connections a silence has ended
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def cut(self) -> None:
        """Break every connection there is, with a reset; new ones are carried."""
        self._cut = True

    def lose(self) -> None:
        """Carry nothing, as a network that is lost: connections stay open and silent, new ones are not accepted."""
        self._silent.clear()
        self._lost = True
        self._silent.wait()

    def restore(self) -> None:
        """Carry new connections again. One from before stays silent, and is reset when its client sends on it."""
        self._lost = False

    def close(self) -> None:
        self._closing = True
        self._thread.join()
        self._listener.close()

    def _run(self) -> None:
        while not self._closing:
            if self._lost:
                self._silence()
                time.sleep(0.02)
                continue
            ready, _, _ = select.select([self._listener, *self._pairs, *self._dead], [], [], 0.02)
            for each in ready:
                if each is self._listener:
                    self._accept()
                elif each in self._dead:
                    self._dead.remove(each)
                    _reset(each)
                elif each in self._pairs:
                    self._carry(each)
            if self._cut:
                self._cut = False
                self._break(list(self._pairs))
            if self._idle_seconds is not None:
                silent = [each for each, at in self._spoke.items() if time.monotonic() - at > self._idle_seconds]
                self.cut_for_silence += len(silent)
                self._break(silent)
        self._break(list(self._pairs))
        for client in self._dead:
            client.close()

    def _silence(self) -> None:
        """Forget all connections, and end them on the side of the server."""
        for client in [side for side in self._clients if side in self._pairs]:
            server = self._pairs.pop(client)
            del self._pairs[server]
            server.close()
            self._dead.append(client)
        self._silent.set()
        self._clients.clear()
        self._spoke.clear()

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        try:
            server = socket.create_connection(self._target)
        except OSError:
            client.close()
            return
        self._clients = [side for side in (*self._clients, client) if side is client or side in self._pairs]
        self._pairs |= {client: server, server: client}
        self._spoke |= {client: time.monotonic(), server: time.monotonic()}

    def _carry(self, side: socket.socket) -> None:
        other = self._pairs[side]
        try:
            data = side.recv(1 << 16)
            other.sendall(data)
        except OSError:
            data = b""
        if data:
            self._spoke[side] = self._spoke[other] = time.monotonic()
        else:
            self._break([side], reset=False)

    def _break(self, sides: list[socket.socket], *, reset: bool = True) -> None:
        for side in sides:
            other = self._pairs.pop(side, None)
            if other is None:
                continue
            del self._pairs[other]
            for each in (side, other):
                self._spoke.pop(each, None)
                if reset:
                    _reset(each)
                else:
                    each.close()


def _reset(side: socket.socket) -> None:
    side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    side.close()


@contextlib.contextmanager
def to(url: str, idle_seconds: float | None = None) -> Iterator[Wire]:
    """A wire to this http address for the time of the block."""
    host, port = url.removeprefix("http://").split(":")
    with contextlib.closing(Wire((host, int(port)), idle_seconds)) as wire:
        yield wire
