"""Answers to slow readers: one wall-clock limit, over TLS too, and a share of the threads that wait."""

from __future__ import annotations

import contextlib
import errno
import itertools
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from occ_app.home.certificate import checked
from occ_app.web import pacing
from occ_app.web.pacing import PacedSocket
from occ_app.web.shares import Shares
from occ_app.web.tls_socket import server_context
from tests.conftest import wait_until
from tests.test_tls import make_certificate

LARGE = b"x" * 20_000_000


@contextlib.contextmanager
def connected(folder: Path | None = None) -> Iterator[tuple[Any, Any]]:
    """A connection as the server holds it, and its client's end; over TLS with a folder for the certificate."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 20_000)
        client.connect(listener.getsockname())
        server: Any = PacedSocket.of(listener.accept()[0])
    if folder is not None:
        context = server_context(checked(*make_certificate(folder)))
        thread = threading.Thread(target=lambda: wrapped.append(context.wrap_socket(server, server_side=True)))
        wrapped: list[Any] = []
        thread.start()
        trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        trust.check_hostname, trust.verify_mode = False, ssl.CERT_NONE
        client = trust.wrap_socket(client)
        thread.join()
        server = wrapped[0]
    with client, server:
        server.setblocking(True)
        yield server, client


@contextlib.contextmanager
def reading(client: Any, size: int, pause: float) -> Iterator[None]:
    """Read so many bytes at a time, with a pause after each."""
    stop = threading.Event()

    def read() -> None:
        with contextlib.suppress(OSError):
            while not stop.wait(pause) and client.recv(size):
                pass

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        client.close()
        thread.join()


@pytest.fixture(params=["plain", "TLS"])
def ends(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Any, Any]]:
    with connected(tmp_path if request.param == "TLS" else None) as ends:
        yield ends


@pytest.mark.parametrize("way", ["sendall", "sendfile"])
def test_an_answer_has_one_deadline_however_it_is_read(
    ends: tuple[Any, Any], way: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(pacing, "ANSWER_SECONDS", 0.3)
    monkeypatch.setattr(pacing, "MIN_BYTES_PER_SECOND", 1e9)
    server, client = ends
    server.pace = pacing.begin("203.0.113.1")
    (tmp_path / "large").write_bytes(LARGE)
    with (
        reading(client, 20_000, 0.02),
        (tmp_path / "large").open("rb") as file,
        pytest.raises(ConnectionResetError),
    ):
        server.sendall(LARGE) if way == "sendall" else server.sendfile(file, count=len(LARGE))
    assert 0.3 < server.pace.waited < 5


def test_a_reader_that_takes_nothing_is_given_up(ends: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pacing, "SILENCE_SECONDS", 0.2)
    server, _ = ends
    server.pace = pacing.begin("203.0.113.1")
    with pytest.raises(ConnectionResetError):
        server.sendall(LARGE)


def test_the_kernel_s_limit_is_a_reader_that_is_gone(ends: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Anything else would be a traceback in the log for each stranger that stalls."""
    server, _ = ends
    server.pace = pacing.begin("203.0.113.1")

    def timed_out(_: memoryview) -> int:
        raise TimeoutError(errno.ETIMEDOUT, "Connection timed out")

    monkeypatch.setattr(server, "send_at_once", timed_out)
    with pytest.raises(ConnectionResetError):
        server.sendall(b"x")


def test_an_answer_that_is_read_fast_enough_arrives_whole(
    ends: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It takes longer than the limit, at more than the minimum rate."""
    monkeypatch.setattr(pacing, "ANSWER_SECONDS", 0.05)
    monkeypatch.setattr(pacing, "MIN_BYTES_PER_SECOND", 1000)
    server, client = ends
    server.pace = pacing.begin("203.0.113.1")
    content = bytes(range(256)) * 60_000
    (tmp_path / "content").write_bytes(content)
    received, pause = bytearray(), threading.Event()

    def read() -> None:
        while data := client.recv(100_000):
            received.extend(data)
            pause.wait(0.0005)

    thread = threading.Thread(target=read)
    thread.start()
    server.sendall(content)
    with (tmp_path / "content").open("rb") as file:
        assert server.sendfile(file, offset=100, count=1_000_000) == 1_000_000
        assert server.sendfile(file, offset=len(content) - 7) == 7
    server.sendall(b"")
    server.shutdown(socket.SHUT_WR)
    thread.join()
    assert bytes(received) == content + content[100:1_000_100] + content[-7:]
    assert server.pace.waited > 0.05


def test_a_key_and_an_address_have_a_share_of_the_threads_that_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pacing, "_readers", Shares(2, 1, ""))
    monkeypatch.setattr(pacing, "_strangers", Shares(2, 1, ""))
    begun = threading.Semaphore(0)
    gone: dict[str, bool] = {}
    names = (("mine", True), ("mine again", True), ("theirs", True), ("stranger", False), ("stranger again", False))
    with contextlib.ExitStack() as stack:
        pairs = {name: stack.enter_context(connected()) for name, _ in names}

        def send(name: str, *, known: bool) -> None:
            server = pairs[name][0]
            server.pace = pacing.begin("203.0.113.1")
            pacing.answering(name.partition(" ")[0], known=known)
            begun.release()
            try:
                server.sendall(LARGE)
                gone[name] = False
            except ConnectionResetError:
                gone[name] = True

        threads = [threading.Thread(target=send, args=(name,), kwargs={"known": known}) for name, known in names]
        for thread, (name, _) in zip(threads, names, strict=True):
            thread.start()
            begun.acquire()
            if " again" in name:
                thread.join(20)
            else:
                wait_until(lambda holder=name: holder in _holders(), f"{name} to wait")  # type: ignore[misc]  # mypy does not infer the default
        assert gone == {"mine again": True, "stranger again": True}
        for name, (_, client) in pairs.items():
            if name not in gone:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
                left = len(LARGE)
                while left:
                    left -= len(client.recv(1 << 20))
        for thread in threads:
            thread.join()
    assert [name for name, reset in gone.items() if reset] == ["mine again", "stranger again"]
    assert _holders() == set()


def _holders() -> set[str | None]:
    return set(itertools.chain(pacing._readers._held, pacing._strangers._held))


def test_a_stream_has_no_limit(ends: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pacing, "ANSWER_SECONDS", 0.0)
    monkeypatch.setattr(pacing, "SILENCE_SECONDS", 0.01)
    server, client = ends
    server.pace = pacing.begin("203.0.113.1")
    pacing.live()
    with reading(client, 400_000, 0.02):
        server.sendall(LARGE[:5_000_000])
