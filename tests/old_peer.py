"""Exchanges between the real 0.1.0's hub and its agent, and both sides played from them.

`data/exchanges-0.1.0.jsonl` was recorded on the wire between the two daemons, with the tests' own substitute for Claude
Code; secrets and home folders are made up. Its lines are requests with their replies as they were sent, the messages of
the first stream of their link, and schemas of the two OpenAPI documents of 0.1.0.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import socket
import socketserver
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import jsonschema_rs
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage

OPEN, DATA, END = 1, 2, 3  # of the frames of a link
TOKEN = "occ_" + "0" * 43  # the one in the recording
RECORDING = Path(__file__).with_name("data") / "exchanges-0.1.0.jsonl"


@dataclass(frozen=True)
class Exchange:
    """A request to the hub or to the agent, and the reply, as bytes of HTTP."""

    to: str
    request: bytes
    reply: bytes

    @property
    def method(self) -> str:
        return self.request.split(b" ")[0].decode()

    @property
    def path(self) -> str:
        return self.request.split(b" ")[1].decode()

    @cached_property
    def headers(self) -> dict[str, str]:
        lines = self.request.partition(b"\r\n\r\n")[0].decode().splitlines()[1:]
        return dict(line.split(": ", 1) for line in lines)

    @property
    def body(self) -> bytes:
        return self.request.partition(b"\r\n\r\n")[2]

    @property
    def status(self) -> int:
        return int(self.reply.split(b" ")[1])

    @property
    def content(self) -> Any:
        """The JSON of the reply."""
        return json.loads(self.reply.partition(b"\r\n\r\n")[2])

    @property
    def events(self) -> list[tuple[str, dict[str, Any]]]:
        """The events of a streamed reply, by name."""
        return events_in(b"".join(re.split(rb"(?:^|\r\n)[0-9A-Fa-f]+\r\n", self.reply.partition(b"\r\n\r\n")[2])))


def events_in(stream: bytes) -> list[tuple[str, dict[str, Any]]]:
    """Return the names and the data of server-sent events."""
    return [(name, json.loads(data)) for name, data in re.findall(r"event: (\w+)\ndata: (.*)", stream.decode())]


@dataclass(frozen=True)
class Recording:
    """All of the file. `messages` are those of one stream of the link, in each direction."""

    exchanges: Sequence[Exchange]
    messages: dict[str, list[bytes]]
    schemas: dict[str, Any]

    def to(self, side: str, what: str = "") -> list[Exchange]:
        """The exchanges with one side whose request line has this in it."""
        return [each for each in self.exchanges if each.to == side and what in f"{each.method} {each.path}"]

    def check(self, schema: str, value: Any) -> None:
        """Raise ValidationError when 0.1.0 would refuse this body."""
        documented = {**self.schemas[schema], "components": {"schemas": self.schemas}}
        jsonschema_rs.validator_for(documented).validate(value)


def recording() -> Recording:
    exchanges, schemas = list[Exchange](), dict[str, Any]()
    messages: dict[str, list[bytes]] = {"hub": [], "agent": []}
    for line in map(json.loads, RECORDING.read_text().splitlines()):
        if "schema" in line:
            schemas[line["schema"]] = line["is"]
        elif "link" in line:
            messages[line["link"]].append(line["message"].encode("latin-1"))
        else:
            exchanges.append(Exchange(line["to"], *(line[name].encode("latin-1") for name in ("request", "reply"))))
    return Recording(exchanges, messages, schemas)


def lacking(recorded: Any, now: Any, where: str = "") -> list[str]:
    """Return the fields of a recorded value that another one lacks, or has with a value of another kind."""
    if recorded is None:
        return []
    if isinstance(recorded, dict) and isinstance(now, dict):
        missing = [f"{where}.{name}" for name in recorded if name not in now]
        both = [name for name in recorded if name in now and now[name] is not None]
        return missing + [found for name in both for found in lacking(recorded[name], now[name], f"{where}.{name}")]
    numbers = isinstance(recorded, (int, float)) and isinstance(now, (int, float))
    return [] if numbers or isinstance(now, type(recorded)) else [f"{where}: {now!r} for {recorded!r}"]


def whole_request(data: bytes) -> bytes | None:
    """Return the first request in these bytes; None while it is not all there."""
    head, end, _ = data.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
    needed = len(head + end) + (int(length[1]) if length else 0)
    return data[:needed] if end and len(data) >= needed else None


class OldAgent:
    """The agent's end of a link of 0.1.0: answers each request as 0.1.0 did, and keeps it in `requests`."""

    def __init__(self, connection: socket.socket, exchanges: Sequence[Exchange]) -> None:
        self.requests = list[Exchange]()
        self._connection = connection
        self._exchanges = exchanges
        self._framing = Connection(ConnectionType.CLIENT)
        self._streams = dict[int, bytes]()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._connection.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while data := self._connection.recv(1 << 16):
                self._framing.receive_data(data)
                for event in self._framing.events():
                    if isinstance(event, BytesMessage):
                        self._take(bytes(event.data))

    def _take(self, message: bytes) -> None:
        stream, kind = struct.unpack("!IB", message[:5])
        if kind == OPEN:
            self._streams[stream] = b""
        elif kind == DATA:
            self._streams[stream] += message[5:]
            while (request := whole_request(self._streams[stream])) is not None:
                self._streams[stream] = self._streams[stream][len(request) :]
                self._answer(stream, request)

    def _answer(self, stream: int, request: bytes) -> None:
        asked = Exchange("agent", request, b"")
        reply = next((each.reply for each in self._exchanges if _answers(each, asked)), _NOTHING_HERE)
        self.requests.append(Exchange("agent", request, reply))
        message = BytesMessage(data=struct.pack("!IB", stream, DATA) + reply)
        self._connection.sendall(self._framing.send(message))


def _answers(recorded: Exchange, asked: Exchange) -> bool:
    """Whether a recorded reply is that to a request: of POST /execute and of uploads there are several."""
    if (recorded.method, recorded.path) != (asked.method, asked.path):
        return False
    name = re.search(rb'"executionId": "([^"]+)"|name="workspaceId"\r\n\r\n(\S+)', recorded.body)
    return name is None or (name[1] or name[2]) in asked.body


_NOTHING_HERE = (
    b'HTTP/1.1 404 NOT FOUND\r\nContent-Type: application/json\r\nContent-Length: 59\r\n\r\n{"status": "error", '
    b'"code": "NOT_FOUND", "message": "None"}   '
)


@dataclass
class OldHub:
    """A server that answers as the hub of 0.1.0 did. `sent` are the requests; the link plays the recorded stream."""

    recorded: Recording
    url: str = ""
    sent: list[Exchange] = field(default_factory=list)
    received: bytes = b""  # the data of the link's stream
    over: threading.Event = field(default_factory=threading.Event)  # when the stream was answered whole

    def reply(self, request: Exchange) -> bytes | None:
        kind = request.path.rpartition("/")[2]
        return next((each.reply for each in self.recorded.to("hub", f"{request.method} ") if kind in each.path), None)

    def play(self, connection: socket.socket) -> None:
        """Send the hub's messages of a stream, and take the agent's."""
        framing = Connection(ConnectionType.SERVER)
        for message in self.recorded.messages["hub"]:
            connection.sendall(framing.send(BytesMessage(data=message)))
        while data := connection.recv(1 << 16):
            framing.receive_data(data)
            for event in framing.events():
                if isinstance(event, BytesMessage) and event.data[4] == DATA:
                    self.received += bytes(event.data[5:])
                elif isinstance(event, BytesMessage) and event.data[4] == END:
                    self.over.set()


@contextlib.contextmanager
def old_hub(recorded: Recording) -> Iterator[OldHub]:
    """A hub of 0.1.0 for the time of the block."""
    hub = OldHub(recorded)

    def serve(connection: socket.socket, data: bytes) -> None:
        request = Exchange("hub", data, b"")
        hub.sent.append(request)
        connection.sendall(_accepting(hub.reply(request) or _NOTHING_HERE, request))
        if "Upgrade" in request.headers:
            hub.play(connection)

    with served(serve) as address:
        hub.url = f"http://{address[0]}:{address[1]}"
        yield hub


def _accepting(reply: bytes, request: Exchange) -> bytes:
    """Return the reply to a handshake with the answer to its own key."""
    key = request.headers.get("Sec-WebSocket-Key", "") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
    accept = base64.b64encode(hashlib.sha1(key.encode(), usedforsecurity=False).digest())
    return re.sub(rb"(?<=Sec-WebSocket-Accept: )\S+", accept, reply)


@contextlib.contextmanager
def served(serve: Callable[[socket.socket, bytes], None]) -> Iterator[tuple[str, int]]:
    """A TCP server that calls `serve` with each connection and its first bytes, a whole request at least."""
    connections = set[socket.socket]()

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            connections.add(self.request)
            data = b""
            with contextlib.suppress(OSError):
                while whole_request(data) is None:
                    piece = self.request.recv(1 << 16)
                    if not piece:
                        return
                    data += piece
                serve(self.request, data)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:  # its end waits for the threads
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield ("127.0.0.1", server.server_address[1])
        finally:
            server.shutdown()
            thread.join()
            for connection in connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
