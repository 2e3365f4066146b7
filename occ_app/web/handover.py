"""Handing a connection from gunicorn's thread to another server."""

from __future__ import annotations

from typing import Protocol


class Successor(Protocol):
    """The server of a connection after the request's thread.

    `begin` is called when the thread has released it.
    """

    def begin(self) -> None: ...


class HandedOver(BaseException):
    """Raised to release the server's thread when another serves the connection.

    It is not an error.
    """

    def __init__(self, stream: Successor) -> None:
        super().__init__("handed over")
        self.stream = stream
