"""Handing a connection from gunicorn's thread to another server."""

from __future__ import annotations

from typing import Protocol


class Successor(Protocol):
    """What serves a connection after the server's thread: `begin` is called when that has let go of it."""

    def begin(self) -> None: ...


class HandedOver(BaseException):
    """Leaves the server's thread with the connection: from here on another serves it. Nobody's error."""

    def __init__(self, stream: Successor) -> None:
        super().__init__("handed over")
        self.stream = stream
