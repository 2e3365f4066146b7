"""A small real coordination server for the tests: takes registrations and heartbeats, and can be made to misbehave."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

API_KEY = "hub-key-made-up"


@dataclass
class Beat:
    """A heartbeat as it came; `at` is on the monotonic clock."""

    agent_id: str
    token: str
    body: dict[str, Any]
    at: float


@dataclass
class Hub:
    """What the server knows and how it behaves. `register_with` and `beat_with` answer instead of it while set:
    a status, or a function that is given the handler."""

    url: str = ""
    interval: int = 1
    registrations: list[dict[str, Any]] = field(default_factory=list)
    beats: list[Beat] = field(default_factory=list)
    tokens: dict[str, str] = field(default_factory=dict)
    register_with: Any = None
    beat_with: Any = None
    released: threading.Event = field(default_factory=threading.Event)

    def revoke(self) -> None:
        """Refuse every token given out so far."""
        self.tokens.clear()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        secret = self.headers["Authorization"].removeprefix("Bearer ")
        registering = self.path == "/api/agents/register"
        if not registering:
            self.hub.beats.append(Beat(self.path.split("/")[3], secret, body, time.monotonic()))
        misbehave = self.hub.register_with if registering else self.hub.beat_with
        if registering:
            self.hub.registrations.append(body)
        if misbehave is not None:
            self.misbehave(misbehave)
        elif registering:
            self.register(body, secret)
        else:
            known = self.hub.tokens.get(self.path.split("/")[3])
            self.answer(200 if known == secret else 401, {})

    def register(self, body: dict[str, Any], key: str) -> None:
        if key != API_KEY:
            self.answer(401, {"status": "error", "code": "UNAUTHORIZED", "message": "This key is not known."})
            return
        agent_id = body["agentId"] or f"agent-{len(self.hub.tokens) + 1}"
        token = f"token-{len(self.hub.registrations)}"
        self.hub.tokens[agent_id] = token
        answer = {"agentId": agent_id, "token": token, "heartbeatIntervalSeconds": self.hub.interval}
        self.answer(201, answer)

    def misbehave(self, how: Any) -> None:
        if isinstance(how, int):
            self.answer(how, {"status": "error", "code": "OOPS", "message": f"The hub says {how}."})
        else:
            how(self)

    def answer(self, status: int, content: Any, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def hang(self) -> None:
        """Say nothing until the test is over."""
        self.hub.released.wait(60)


@contextlib.contextmanager
def serve() -> Iterator[Hub]:
    """A hub on a loopback port for the time of the block."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # an agent that gave up on a slow answer
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        hub.released.set()
        server.shutdown()
        thread.join()
        server.server_close()
