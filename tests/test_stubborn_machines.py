"""Machines that accept everything and end nothing: a hub's cancels, limits and removals act without them."""

from __future__ import annotations

import contextlib
import json
import socketserver
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import urllib3

from occ_app.client.agent_client import AgentClient
from occ_app.errors import Unreachable
from occ_app.executions.records import Outcome
from occ_app.system.files import short_path
from occ_worker.relay import patience
from tests.conftest import make_zip, wait_until
from tests.real_hub import Hub, hub_in

SECONDS = 6.0  # the promise is 5, and a test sees the end by asking


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with hub_in(tmp_path) as hub:
        yield hub.start()


@dataclass
class Machine:
    """A registered machine. The calls named in `trickling` get an endless answer; `confirms` is for cancels."""

    hub: Hub
    trickling: set[str] = field(default_factory=set)
    confirms: bool = False
    agent_id: str = ""
    token: str = ""
    gone: threading.Event = field(default_factory=threading.Event)
    seen: list[str] = field(default_factory=list)

    def register(self, port: int, name: str) -> None:
        body = {"protocol": 1, "name": name, "version": "0.1.0", "port": port, "workers": 1000, "direct": True}
        reply = self._post("/api/agents/register", self.hub.agent_key, body)
        self.agent_id, self.token = reply["agentId"], reply["token"]

    def beat(self) -> None:
        """Send heartbeats until the machine is gone."""
        path = f"/api/agents/{self.agent_id}/heartbeat"
        while not self.gone.wait(0.7):
            with contextlib.suppress(urllib3.exceptions.HTTPError, KeyError, ValueError):
                self._post(path, self.token, {"seqNum": 1, "status": "healthy"})

    def _post(self, path: str, secret: str, body: dict[str, Any]) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {secret}", "Content-Type": "application/json"}
        with urllib3.PoolManager(retries=False) as pool:
            reply = pool.request(
                "POST", self.hub.url + path, body=json.dumps(body).encode(), headers=headers, timeout=9
            )
        found: dict[str, Any] = reply.json()
        return found


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    machine: Machine

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        if self.path == "/health":
            self.answer("health", 200, {"status": "healthy"})
        elif "/events" in self.path:
            self.stream()
        else:
            error = {"status": "error", "code": "WORKSPACE_NOT_FOUND", "message": "no"}
            self.answer("workspace", 404, error)

    def do_DELETE(self) -> None:
        self.answer("delete", 200, {"status": "success"})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.machine.seen.append(self.path)
        if self.path == "/workspace/init":
            self.answer("upload", 200, {"status": "success", "path": "/made-up", "skipped": []})
        elif self.path.endswith("/cancel"):
            if not self.machine.confirms:
                self.machine.trickling.add("cancel")
            else:
                self.machine.trickling.discard("cancel")
            self.answer("cancel", 202, {})
        else:
            self.stream()

    def answer(self, name: str, status: int, content: Any) -> None:
        body = json.dumps(content).encode()
        trickles = name in self.machine.trickling
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body) + trickles * 1_000_000))
        self.end_headers()
        with contextlib.suppress(OSError):
            while trickles and not self.machine.gone.wait(0.2):
                self.wfile.write(b" ")
            self.wfile.write(body)

    def stream(self) -> None:
        """Say that it was begun, and live on."""
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        now = int(time.time() * 1000)
        output = json.dumps({"chunk": "begun ", "timestamp": now})
        with contextlib.suppress(OSError):
            self.wfile.write(f"id: 2\nevent: output\ndata: {output}\n\n".encode())
            while not self.machine.gone.wait(0.5):
                self.wfile.write(b": still here\n\n")


class _LinkEnd(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Take the place of the socket through which a hub calls a linked machine."""

    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """Say nothing of a hub that gave up on a slow answer."""


@contextlib.contextmanager
def machine_of(hub: Hub, name: str, *trickling: str) -> Iterator[Machine]:
    machine = Machine(hub, set(trickling))
    machine.register(1, name)
    with short_path(hub.home / "run/links") as short:
        server = _LinkEnd(f"{short}/{machine.agent_id}", type("Handler", (_Handler,), {"machine": machine}))
    serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    serving.start()
    beating = threading.Thread(target=machine.beat)
    beating.start()
    try:
        yield machine
    finally:
        machine.gone.set()
        server.shutdown()
        serving.join()
        beating.join()
        server.server_close()


def start(hub: Hub, machine: Machine, execution_id: str, workspace: str = "work", **options: Any) -> None:
    """Send a prompt for this machine and wait until it is placed there."""
    stream = hub.client.execute(workspace, "x", executionId=execution_id, agent=machine.agent_id, **options)
    next(stream)
    stream.close()  # type: ignore[attr-defined]  # it is a generator


def state(hub: Hub, execution_id: str) -> str:
    return str(hub.client.execution(execution_id)["state"])


def reached(hub: Hub, machine: Machine) -> None:
    wait_until(lambda: hub.seen(machine.agent_id)["via"] == "link", "the machine is reached", 30)


def test_a_cancel_acts_and_the_workspace_is_held_until_the_machine_confirms(hub: Hub) -> None:
    with machine_of(hub, "evil") as evil:
        reached(hub, evil)
        hub.client.upload("work", make_zip({"a.txt": "a"}))
        start(hub, evil, "e1")
        wait_until(lambda: hub.client.execution("e1")["lastSeq"] >= 2, "it has begun")
        begun = time.monotonic()
        hub.client.cancel("e1")
        wait_until(lambda: state(hub, "e1") == "cancelled", "the cancel", 20)
        assert time.monotonic() - begun < SECONDS
        start(hub, evil, "e2")
        time.sleep(2)  # nothing can be waited for: it is not to be placed
        assert state(hub, "e2") == "queued"
        evil.confirms = True
        wait_until(lambda: state(hub, "e2") == "running", "the workspace is free", 40)
        assert hub.client.execution("e1")["errorCode"] == "EXECUTION_CANCELLED"


def test_a_time_limit_and_a_removal_act_whatever_the_machine_does(hub: Hub) -> None:
    with machine_of(hub, "evil") as evil:
        reached(hub, evil)
        for name in ("one", "two"):
            hub.client.upload(name, make_zip({"a.txt": "a"}))
        start(hub, evil, "e1", "one", timeoutSeconds=1)
        wait_until(lambda: state(hub, "e1") == "running", "it runs")
        begun = time.monotonic()
        wait_until(lambda: state(hub, "e1") == "failed", "its limit", 20)
        assert time.monotonic() - begun < 1 + SECONDS
        assert hub.client.execution("e1")["errorCode"] == "EXECUTION_TIMEOUT"
        evil.trickling.add("upload")
        start(hub, evil, "e2", "two")
        wait_until(lambda: evil.seen.count("/workspace/init") == 2, "the upload trickles")
        begun = time.monotonic()
        hub.client.call("DELETE", f"/agents/{evil.agent_id}")
        wait_until(lambda: state(hub, "e2") == "failed", "the removal", 20)
        assert time.monotonic() - begun < SECONDS
        assert hub.client.execution("e2")["errorCode"] == "AGENT_LOST"


@pytest.mark.parametrize(
    ("head", "later"),
    [(b"HTTP/1.1 200 OK", b" "), (b"HTTP/1.1 200 OK\r\nX-A: ", b"a"), (b"", b"HTTP/1.1 100 Continue\r\n\r\n")],
    ids=["status line", "headers", "100 continue"],
)
def test_a_trickled_head_of_an_answer_has_a_deadline(head: bytes, later: bytes) -> None:
    done = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None: ...

        def do_GET(self) -> None:
            with contextlib.suppress(OSError):
                self.wfile.write(head)
                while not done.wait(0.05):
                    self.wfile.write(later)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    client = AgentClient(f"http://127.0.0.1:{server.server_address[1]}", "made-up")
    try:
        begun = time.monotonic()
        with pytest.raises(Unreachable):
            client.health(0.5)
        assert time.monotonic() - begun < 5
    finally:
        done.set()
        client.close()
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_agent_s_time_limit_comes_before_the_hub_s(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(patience.time, "monotonic", lambda: now[0])
    clock = patience.Patience(begun=False)
    clock.prompt_sent()

    def code() -> Any:
        found: Outcome | None = clock.over(None, 10.0)
        return found and found.data["code"]

    now[0] += 60
    assert code() is None  # it may wait on its agent
    clock.begun()
    now[0] += 10 + patience.TIMEOUT_GRACE_SECONDS
    assert code() is None
    now[0] += 1
    assert code() == "EXECUTION_TIMEOUT"
    assert clock.over(None, 0) is None
