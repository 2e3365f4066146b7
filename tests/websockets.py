"""A WebSocket client for the tests that takes what comes with the handshake's answer, unlike simple_websocket's."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, CloseConnection, Ping, RejectConnection, Request, TextMessage


class Refused(Exception):
    """Raised when the answer is no WebSocket; its text is the status."""


def messages(url: str, token: str, seconds: float = 10.0) -> Iterator[str]:
    """Each text message, until the server closes; waits at most so long for each. Raises Refused."""
    parts = urlsplit(url)
    ws = WSConnection(ConnectionType.CLIENT)
    target = parts.path + (f"?{parts.query}" if parts.query else "")
    asked = Request(host=parts.netloc, target=target, extra_headers=[(b"Authorization", f"Bearer {token}".encode())])
    with socket.create_connection((parts.hostname, parts.port), timeout=seconds) as connection:
        connection.sendall(ws.send(asked))
        text = ""
        while True:
            data = connection.recv(65536)
            ws.receive_data(data or None)
            for event in ws.events():
                if isinstance(event, RejectConnection):
                    raise Refused(str(event.status_code))
                if isinstance(event, Ping):
                    connection.sendall(ws.send(event.response()))
                if isinstance(event, TextMessage):
                    text += event.data
                    if event.message_finished:
                        yield text
                        text = ""
                if isinstance(event, CloseConnection):
                    return
                assert isinstance(event, (AcceptConnection, Ping, TextMessage)), event
            assert data, "the connection ended without a word"
