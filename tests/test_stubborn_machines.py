"""Machines that accept everything and end nothing: a hub's cancels, limits and removals act without them."""

from __future__ import annotations

import contextlib
import json
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import urllib3
from wsproto.connection import Connection, ConnectionType

from occ_app.client import bodies
from occ_app.client.agent_client import AgentClient
from occ_app.client.deadlines import TimedHTTPConnection
from occ_app.errors import Unreachable
from occ_app.executions import lifecycle, queries
from occ_app.executions.records import Outcome, Request
from occ_app.hub import placement
from occ_app.hub.links import Links
from occ_app.system.files import short_path
from occ_app.system.process_identity import own_identity
from occ_worker.relay import patience
from tests.conftest import make_zip, wait_until
from tests.hub_app import hub_app
from tests.real_hub import Hub, hub_in

SECONDS = 20.0  # the promise is 5 on a machine with nothing else to do; without it, a machine is waited for minutes


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with hub_in(tmp_path) as hub:
        yield hub.start()


@dataclass
class Machine:
    """A registered machine. The calls named in `trickling` get an endless answer; `confirms` is for cancels.

    A `mute` one accepts executions and sends no event of them.
    """

    hub: Hub
    trickling: set[str] = field(default_factory=set)
    confirms: bool = False
    mute: bool = False
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
            if not self.machine.mute:
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
        wait_until(lambda: state(hub, "e1") == "cancelled", "the cancel")
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
        wait_until(lambda: state(hub, "e1") == "failed", "its limit")
        assert time.monotonic() - begun < 1 + SECONDS
        assert hub.client.execution("e1")["errorCode"] == "EXECUTION_TIMEOUT"
        evil.trickling.add("upload")
        start(hub, evil, "e2", "two")
        wait_until(lambda: evil.seen.count("/workspace/init") == 2, "the upload trickles")
        begun = time.monotonic()
        hub.client.call("DELETE", f"/agents/{evil.agent_id}")
        wait_until(lambda: state(hub, "e2") == "failed", "the removal")
        assert time.monotonic() - begun < SECONDS
        assert hub.client.execution("e2")["errorCode"] == "AGENT_LOST"


def test_a_limit_a_cancel_and_a_drain_act_on_a_machine_that_accepts_and_sends_nothing(hub: Hub) -> None:
    with machine_of(hub, "mute") as mute:
        mute.mute = True
        reached(hub, mute)
        for name in ("one", "two", "three"):
            hub.client.upload(name, make_zip({"a.txt": "a"}))
        start(hub, mute, "e1", "one", timeoutSeconds=1)
        start(hub, mute, "e2", "two")
        wait_until(lambda: mute.seen.count("/execute") == 2, "both are accepted")
        begun = time.monotonic()
        wait_until(lambda: state(hub, "e1") == "failed", "its limit")
        assert time.monotonic() - begun < 1 + SECONDS
        assert hub.client.execution("e1")["errorCode"] == "EXECUTION_TIMEOUT"
        begun = time.monotonic()
        assert hub.client.call("POST", f"/agents/{mute.agent_id}/drain")["state"] == "draining"
        start(hub, mute, "e3", "three")
        wait_until(lambda: "draining" in (hub.client.execution("e3")["waitsFor"] or ""), "it says why it waits")
        hub.client.cancel("e2")
        wait_until(lambda: state(hub, "e2") == "cancelled", "the cancel")
        assert time.monotonic() - begun < 2 * SECONDS
        assert "/execute" in mute.seen
        assert mute.seen.count("/execute") == 2


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


class _PatientSocket(socket.socket):
    """A socket without a limit, so that only the limit on the whole head can end a read."""

    def settimeout(self, value: float | None, /) -> None:
        super().settimeout(None)


def test_a_cut_connection_is_reported_as_a_missed_deadline_even_before_its_socket_times_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        connection = TimedHTTPConnection("127.0.0.1", silent.getsockname()[1], timeout=0.2)
        with contextlib.closing(connection):
            connection.connect()
            connection.sock = _PatientSocket(fileno=connection.sock.detach())
            connection.request("GET", "/")
            with pytest.raises(TimeoutError, match="too slowly"):
                connection.getresponse()


def test_the_agent_s_time_limit_comes_before_the_hub_s(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(patience.time, "monotonic", lambda: now[0])
    clock = patience.Patience(begun=False)
    clock.prompt_sent()

    def code(*, full: bool = False) -> Any:
        found: Outcome | None = clock.over(None, 10.0, lambda: full)
        return found and found.data["code"]

    now[0] += 10 + patience.TIMEOUT_GRACE_SECONDS
    assert code() is None
    now[0] += 1
    assert code() == "EXECUTION_TIMEOUT"
    assert code(full=True) is None  # it waits on its agent
    clock.begun()
    now[0] += 10 + patience.TIMEOUT_GRACE_SECONDS
    assert code() is None
    now[0] += 1
    assert code(full=True) == "EXECUTION_TIMEOUT"
    assert clock.over(None, 0) is None


def test_no_machine_has_more_than_its_share_of_relays_beside_others(tmp_path: Path) -> None:
    with hub_app(tmp_path) as hub:
        key = hub.key("machines", "agent")
        ids = {name: hub.register(key, name, workers=100).get_json()["agentId"] for name in ("greedy", "other")}
        agents = hub.app.extensions["occ_hub"].agents
        for number, wanted in enumerate(["greedy"] * 5 + ["other"]):
            workspace = f"w{number}"
            hub.workspace(workspace)
            asked = Request(f"e{number}", workspace, "hello", 60, 60, None, None, None, None, "h", None, ids[wanted])
            lifecycle.create(hub.database, asked, max_queue=10, admit=lambda *_: lifecycle.Admission(ids[wanted]))  # noqa: B023 - called at once
        claimed = list[str]()
        while (execution := placement.claim(hub.database, agents, own_identity(), relays=4)) is not None:
            claimed.append(execution.execution_id)
        assert claimed == ["e0", "e1", "e2", "e5"]  # 3 of 4, and one for the other machine
        assert "free worker" in (queries.get(hub.database, "e3").waits_for or "")


def test_the_link_of_a_machine_ends_when_its_key_expires(tmp_path: Path) -> None:
    with hub_app(tmp_path) as hub:
        machines = {
            name: hub.register(hub.key(name, "agent"), name).get_json()["agentId"] for name in ("brief", "long")
        }
        links = hub.app.extensions["occ_hub"].links
        ends = {}
        for name, agent_id in machines.items():
            here, ends[name] = socket.socketpair()
            links.serve(agent_id, SimpleNamespace(sock=here, ws=Connection(ConnectionType.SERVER)))
        wait_until(lambda: links.connected() == set(machines.values()), "both are linked")
        with hub.database.write() as connection:
            connection.execute("UPDATE keys SET expires_at = '2026-01-01T00:00:00.000Z' WHERE name = 'brief'")
        wait_until(lambda: links.connected() == {machines["long"]}, "the link ended without a heartbeat")
        for end in ends.values():
            end.close()


def test_the_link_of_a_machine_that_is_silent_ends(tmp_path: Path) -> None:
    """Its connection may stay open for hours, as that of a stopped machine does."""
    links = Links(tmp_path / "links", ping_seconds=0.05)
    here, there = socket.socketpair()
    with contextlib.closing(links), there:
        links.serve("agent-1", SimpleNamespace(sock=here, ws=Connection(ConnectionType.SERVER)))
        wait_until((tmp_path / "links" / "agent-1").exists, "it is linked")
        wait_until(lambda: not links.connected(), "its link to be given up")
        wait_until(lambda: not (tmp_path / "links" / "agent-1").exists(), "calls to fail at once")


def test_an_upload_to_a_machine_has_a_least_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(bodies.time, "monotonic", lambda: now[0])

    def sent(seconds_a_piece: float) -> int:
        count = 0
        with contextlib.suppress(TimeoutError):
            for _ in bodies.timed([bytes(1 << 16)] * 100):
                now[0] += seconds_a_piece
                count += 1
        return count

    assert sent(4.0) == 100  # 16 KiB a second
    assert sent(6.0) < 50
