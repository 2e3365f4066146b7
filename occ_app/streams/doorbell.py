"""Rings between processes: datagrams to every listener in a folder.

A ring is sent after a commit. It carries a short key and, if they are few, the committed events, which saves the
listener a query. The rows remain authoritative, and every listener re-reads them from time to time: a lost ring delays
an event and never loses one. A sender never waits.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from pathlib import Path

from occ_app.system.files import short_path

_LONGEST = 16384
_QUEUE = 10  # datagrams that Linux keeps for a listener by default; it drops further ones
_TICK_NANOSECONDS = 50_000_000


class Doorbell:
    """One listener: a datagram socket in `folder`, readable after a ring."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / f"{os.getpid()}-{os.urandom(4).hex()}"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        with short_path(folder) as short:
            self._socket.bind(f"{short}/{self._path.name}")

    def fileno(self) -> int:
        return self._socket.fileno()

    def rings(self) -> tuple[list[tuple[str, bytes]], bool]:
        """Return the keys that rang since the last call, and whether these are all.

        Each key comes with its events. Never waits.
        """
        rung = list[tuple[str, bytes]]()
        while True:
            try:
                key, _, news = self._socket.recv(_LONGEST).partition(b"\n")
            except BlockingIOError:
                return rung, len(rung) < _QUEUE
            rung.append((key.decode(), news))

    def hush(self) -> None:
        """Discard the pending rings."""
        self.rings()

    def close(self) -> None:
        self._socket.close()
        self._path.unlink(missing_ok=True)


class Ringer:
    """The sending side: it rings every listener in `folder`.

    Safe to use from several threads.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._changed = -1
        self._listeners: dict[str, socket.socket] = {}
        self._lock = threading.Lock()

    def ring(self, key: str, news: bytes = b"") -> None:
        """Ring every listener for `key`.

        A listener that is full or dead is skipped; `news` that are too long are left out.
        """
        ring = key.encode() + b"\n" + news
        if len(ring) > _LONGEST:
            ring = key.encode()
        with self._lock:
            changed = self._folder.stat().st_mtime_ns
            if changed != self._changed:
                # The clock of files ticks every few milliseconds: a change in the same tick would never be seen.
                settled = time.time_ns() - changed > _TICK_NANOSECONDS
                self.close()
                self._changed, self._listeners = changed if settled else -1, self._connected()
            for name, listener in self._listeners.items():
                try:
                    listener.send(ring)
                except ConnectionRefusedError:
                    # Its process is gone without a word; the file would be tried for ever.
                    (self._folder / name).unlink(missing_ok=True)
                except OSError:
                    continue

    def close(self) -> None:
        for listener in self._listeners.values():
            listener.close()
        self._listeners = {}

    def _connected(self) -> dict[str, socket.socket]:
        """Return a connected socket for each current listener.

        With it, a ring does not resolve a path.
        """
        listeners = {}
        with short_path(self._folder) as short:
            for name in os.listdir(self._folder):
                kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
                listener = socket.socket(socket.AF_UNIX, kind)
                try:
                    listener.connect(f"{short}/{name}")
                    listeners[name] = listener
                except ConnectionRefusedError:
                    listener.close()
                    (self._folder / name).unlink(missing_ok=True)
                except OSError:
                    listener.close()
        return listeners
