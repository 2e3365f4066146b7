"""Connections without a request: they take neither threads nor the last open file, however many and slow they are."""

from __future__ import annotations

import contextlib
import errno
import itertools
import resource
import select
import shlex
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from http.client import HTTPConnection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from occ_app.web import admission, heads
from tests.conftest import Occ, raw, wait_until
from tests.small_server import small_server

MANY = 1200


@pytest.fixture(autouse=True)
def _many_files() -> Iterator[None]:
    """Let this process open the connections of an attacker, and the agents keep the limit of a usual system."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(8192, before[1]), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def start_with_limit(occ: Occ, limit: str, *arguments: str) -> Occ:
    """Start an agent under `ulimit`, for example "-Sn 1024"."""
    words = [sys.executable, "-m", "occ_app.cli", "start", *arguments]
    script = f"ulimit {limit}; exec {shlex.join(words)}"
    subprocess.run(["bash", "-c", script], env=occ.environment, check=True, capture_output=True, timeout=60)
    occ.attach()
    return occ


def sockets(pid: int) -> int:
    """The number of open sockets of a process."""
    found = 0
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found += str(path.readlink()).startswith("socket:")
    return found


def web_process(occ: Occ) -> int:
    return next(pid for pid, command in occ.commands().items() if "occ_app.wsgi" in command)


class Crowd:
    """Connections to an agent that are replaced as soon as it closes them."""

    def __init__(self, occ: Occ, count: int, greeting: bytes = b"", tls: ssl.SSLContext | None = None) -> None:
        host, port = occ.url.split("//")[1].split(":")
        self._address, self._count, self._greeting, self._tls = (host, int(port)), count, greeting, tls
        self._open: list[socket.socket] = []
        self.made = 0

    def keep_up(self, *, seconds: float = 3.0) -> None:
        until = time.monotonic() + seconds
        self._open = [one for one in self._open if not self._is_closed(one)]
        while len(self._open) < self._count and time.monotonic() < until:
            with contextlib.suppress(OSError):
                one = socket.create_connection(self._address, timeout=1)
                self._open.append(self._tls.wrap_socket(one) if self._tls else one)
                self._open[-1].sendall(self._greeting)
                self.made += 1

    def trickle(self) -> None:
        for one in self._open:
            with contextlib.suppress(OSError):
                one.sendall(b"a")

    def close(self) -> None:
        for one in self._open:
            one.close()

    @staticmethod
    def _is_closed(one: socket.socket) -> bool:
        poll = select.poll()
        poll.register(one, select.POLLIN)
        if poll.poll(0) and not isinstance(one, ssl.SSLSocket):
            with contextlib.suppress(OSError):
                if one.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT):
                    return False
            one.close()
            return True
        return False


def answers(occ: Occ) -> None:
    begun = time.monotonic()
    assert occ.request("GET", "/health").status == 200
    assert time.monotonic() - begun < heads.HEAD_SECONDS  # when the idle ones would make room


@pytest.mark.parametrize("limit", ["-Sn 1024", "-n 1024", "-n 256"])
def test_idle_connections_never_take_the_last_open_file(occ: Occ, limit: str) -> None:
    start_with_limit(occ, limit)
    occ.workspace()
    web = web_process(occ)
    crowd = Crowd(occ, MANY)
    try:
        for _ in range(3):
            crowd.keep_up()
            answers(occ)
        assert occ.run("x")[-1].name == "complete"
        assert crowd.made >= 300
        assert web_process(occ) == web
        if limit == "-n 256":  # a quarter is for the files of requests
            assert sockets(web) <= 192
    finally:
        crowd.close()


@pytest.mark.parametrize("kind", ["plain", "tls", "handshake"])
def test_trickled_heads_take_no_thread(occ: Occ, kind: str) -> None:
    """An agent of one stream has 129 threads."""
    occ.start(*(() if kind == "plain" else ("--tls", "self-signed")), OCC_MAX_STREAMS="1")
    occ.workspace()
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    head = b"GET /health HTTP/1.1\r\nHost: localhost\r\nA: " + b"a" * 8000 + b"\r\nB: " + b"b" * 8000 + b"\r\nC: "
    crowd = Crowd(occ, 200, b"\x16\x03\x01" if kind == "handshake" else head, context if kind == "tls" else None)
    try:
        crowd.keep_up(seconds=30)
        assert crowd.made >= 200
        for _ in range(5):
            crowd.trickle()
            answers(occ)
        assert occ.run("x")[-1].name == "complete"
    finally:
        crowd.close()


LONG_HEAD = b"GET /health HTTP/1.1\r\nA: " + b"a" * 8000 + b"\r\nB: " + b"b" * 8000 + b"\r\nC: " + b"c" * 1000
SHORT_SECONDS = 0.7  # the limit on heads of `small_server`


def seconds_until_closed(address: tuple[str, int], start: bytes, more: Iterable[bytes]) -> float:
    """Send the start of a request, then a piece whenever nothing comes back; the seconds until the server ends it."""
    begun = time.monotonic()
    with socket.create_connection(address, timeout=0.05) as slow, contextlib.suppress(ConnectionError):
        slow.sendall(start)
        for piece in more:
            slow.sendall(piece)
            with contextlib.suppress(TimeoutError):
                if not slow.recv(100):
                    break
            if time.monotonic() - begun > 60:
                pytest.fail("the head was still being read")
    return time.monotonic() - begun


@pytest.mark.parametrize("trickled", [b"a", b"a: b\r\n"])
def test_a_long_head_that_trickles_ends_at_its_deadline(trickled: bytes) -> None:
    with small_server(SHORT_SECONDS) as address:
        assert seconds_until_closed(address, LONG_HEAD, itertools.repeat(trickled)) >= SHORT_SECONDS


def test_a_head_that_trickles_is_given_up() -> None:
    with small_server(SHORT_SECONDS) as address:
        pieces = (bytes([byte]) for byte in itertools.cycle(b"GET /health"))
        assert seconds_until_closed(address, b"", pieces) >= SHORT_SECONDS


def test_the_head_of_a_later_request_has_a_deadline_too() -> None:
    """It begins with the first byte of that head, and not with the connection."""
    seconds = 2.0  # enough for a whole head that is sent at once, on a busy machine too
    with small_server(seconds) as address, contextlib.closing(HTTPConnection(*address, timeout=60)) as client:
        for _ in range(2):
            client.request("GET", "/health")
            assert client.getresponse().read() == b"healthy"
        begun = time.monotonic()
        client.sock.sendall(b"GET /hea")
        assert client.sock.recv(1000) == b""
        assert time.monotonic() - begun >= seconds


def test_a_bare_line_feed_is_refused_at_once(agent: Occ) -> None:
    host, port = agent.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as client:
        client.sendall(f"GET /health HTTP/1.1\nHost: localhost\nAuthorization: Bearer {agent.token}\n\n".encode())
        assert client.recv(100).startswith(b"HTTP/1.1 400 ")


def test_a_head_over_64_kib_is_refused(agent: Occ) -> None:
    status, answer = raw(agent, b"GET /health HTTP/1.1\r\n" + (b"A: " + b"a" * 8000 + b"\r\n") * 9)
    assert (status, answer["code"]) == (400, "BAD_REQUEST")


def read_on(unreader: heads.Unreader) -> None:
    while True:
        unreader.chunk()


def test_a_body_has_one_deadline_however_it_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "BODY_SECONDS", 0.5)
    client, server = socket.socketpair()
    stop = threading.Event()

    def trickle() -> None:
        while not stop.wait(0.02):
            client.send(b"a")

    thread = threading.Thread(target=trickle)
    with client, server:
        unreader = heads.Unreader(server)
        unreader.begin_body()
        thread.start()
        begun = time.monotonic()
        try:
            with pytest.raises(TimeoutError):
                read_on(unreader)
            assert time.monotonic() - begun > 0.4
        finally:
            stop.set()
            thread.join()


def test_a_body_at_the_minimum_rate_is_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "BODY_SECONDS", 0.2)
    monkeypatch.setattr(heads, "MIN_BYTES_PER_SECOND", 1000)
    client, server = socket.socketpair()
    with client, server:
        unreader = heads.Unreader(server)
        unreader.begin_body()
        for _ in range(4):
            client.send(b"a" * 500)
            threading.Event().wait(0.15)
            assert unreader.chunk()


def _worker(accept: Callable[[], Any], waiting: int = 0) -> Any:
    worker = admission.AdmittingWorker.__new__(admission.AdmittingWorker)
    worker.cfg = SimpleNamespace(worker_connections=100)
    worker.nr_conns, worker._highest, worker.sockets, worker._accepting = waiting, 1 << 20, [], True
    closed: list[str] = []
    worker.closed = closed

    def connection(number: int) -> Any:
        address = "203.0.113.1" if number % 3 else "203.0.113.2"
        return SimpleNamespace(client=(address, 1), sock=None, close=lambda: closed.append(f"{address} {number}"))

    worker.pending_conns = admission.deque(map(connection, range(waiting)))
    worker.keepalived_conns = admission.deque()
    worker.poller = SimpleNamespace(unregister=lambda _: None)
    worker.listener = SimpleNamespace(accept=accept, fileno=lambda: 0)
    return worker


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_no_open_file_for_a_connection_is_a_pause_and_no_exit(number: int) -> None:
    def accept() -> Any:
        raise OSError(number, "no")

    worker = _worker(accept)
    worker.accept(worker.listener)
    assert not worker._accepting
    worker.set_accept_enabled(True)
    assert not worker._accepting
    wait_until(lambda: worker.set_accept_enabled(True) or worker._accepting, "it to accept again")


def test_the_oldest_of_the_address_with_most_makes_room() -> None:
    def accept() -> Any:
        raise OSError(errno.EMFILE, "no")

    worker = _worker(accept, 10)
    worker.accept(worker.listener)
    assert worker.closed == ["203.0.113.1 1"]
    assert worker._accepting
    assert worker.nr_conns == 9


def test_a_connection_waits_in_the_queue_while_no_other_one_can_make_room() -> None:
    def accept() -> Any:
        pytest.fail("it was accepted")

    worker = _worker(accept)  # every connection has a request
    worker._highest = 0  # of the numbers for connections none is free
    worker.accept(worker.listener)
    assert not worker._accepting
