"""The Python client against a server that breaks connections and loses replies."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from occ_app.client.agent_client import AgentClient
from occ_app.errors import Refused, Unreachable
from tests import sentences
from tests.conftest import Occ, output, steps, wait_until
from tests.promises import kill


class Proxy:
    """Passes bytes to the agent and can cut: after so many bytes of an answer, or the answer to a request it saw."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(0.2)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.answer_bytes: Callable[[], int | None] = lambda: None
        self.connections = 0
        self._closing = threading.Event()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while not self._closing.is_set():
            with contextlib.suppress(TimeoutError):
                client, _ = self._listener.accept()
                self.connections += 1
                thread = threading.Thread(target=self._serve, args=(client,))
                thread.start()
                self._threads.append(thread)

    def _serve(self, client: socket.socket) -> None:
        left = self.answer_bytes()
        with client, socket.create_connection(self._target) as server:
            up = threading.Thread(target=self._pump, args=(client, server))
            up.start()
            with contextlib.suppress(OSError):
                while data := server.recv(1024):
                    if left is not None:
                        data = data[:left]
                        left -= len(data)
                    client.sendall(data)
                    if left == 0:
                        break
            for each in (client, server):
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
            up.join()

    def _pump(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                server.sendall(data)

    def close(self) -> None:
        self._closing.set()
        for thread in self._threads:
            thread.join()
        self._listener.close()


@pytest.fixture
def proxy(agent: Occ) -> Iterator[Proxy]:
    host, port = agent.url.removeprefix("http://").split(":")
    proxy = Proxy((host, int(port)))
    yield proxy
    proxy.close()


@pytest.fixture
def client(agent: Occ, proxy: Proxy) -> AgentClient:
    client = AgentClient(proxy.url, agent.token)
    agent.clients.append(client)
    return client


def test_a_stream_cut_again_and_again_comes_whole(agent: Occ, proxy: Proxy, client: AgentClient) -> None:
    lengths = iter([0, 10, 250, 300, 420, 777, 1500, 3000])
    proxy.answer_bytes = lambda: next(lengths, None)
    words = "".join(f"word{i} " for i in range(60))
    prompt = steps(*({"say": f"word{i} "} for i in range(60)))
    events = list(client.execute("work", prompt, executionId="cut"))
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert output(events) == words
    assert proxy.connections > 8


def test_a_lost_reply_attaches_and_the_cli_runs_once(occ: Occ, tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    (tmp_path / "counting").write_text(f'#!/bin/sh\nFAKE_CLAUDE_STARTS={starts} exec "{tmp_path}/fake-claude" "$@"\n')
    (tmp_path / "counting").chmod(0o700)
    occ.start(OCC_CLAUDE_BIN=str(tmp_path / "counting"))
    occ.workspace()
    host, port = occ.url.removeprefix("http://").split(":")
    proxy = Proxy((host, int(port)))
    client = AgentClient(proxy.url, occ.token)
    try:
        for number in range(10):
            lengths = iter([0, 0, 0])
            proxy.answer_bytes = lambda lengths=lengths: next(lengths, None)
            events = list(client.execute("work", f"prompt {number}", executionId=f"once-{number}"))
            assert output(events) == f"You said: prompt {number}"
        assert sorted(starts.read_text().split()) == sorted(f"once-{number}" for number in range(10))
    finally:
        client.close()
        proxy.close()


def test_a_zip_that_is_cut_is_no_zip(proxy: Proxy, client: AgentClient, tmp_path: Path) -> None:
    proxy.answer_bytes = lambda: 300
    with (tmp_path / "cut.zip").open("wb") as file, pytest.raises(Unreachable, match="broke off"):
        client.archive("work", file)


def test_a_stream_outlives_a_restart_of_the_agent_s_web_part(agent: Occ, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    prompt = steps({"say": "before "}, {"wait": str(gate)}, {"say": "after"})
    stream, seen = agent.under_way(prompt, "restart")
    wait_until(lambda: kill(agent, "web"), "it to be killed")
    with ThreadPoolExecutor(1) as pool:
        rest = pool.submit(list, stream)
        wait_until(lambda: _serves(agent), "the agent to serve again")
        gate.touch()
        events = seen + rest.result()
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert output(events) == "before after"


def _serves(agent: Occ) -> bool:
    with contextlib.suppress(Unreachable):
        return bool(agent.client.health())
    return False


def test_a_refusal_is_raised_with_its_code(agent: Occ) -> None:
    with pytest.raises(Refused) as refusal:
        next(agent.client.execute("nope", "x"))
    assert (refusal.value.status, refusal.value.code) == (404, "WORKSPACE_NOT_FOUND")
    with pytest.raises(Refused) as refusal:
        AgentClient(agent.url, "wrong").health()
    assert refusal.value.code == "UNAUTHORIZED"


def test_an_address_where_nobody_listens_is_unreachable(free_port: int) -> None:
    with pytest.raises(Unreachable, match=sentences.DOES_NOT_ANSWER):
        AgentClient(f"http://127.0.0.1:{free_port}", "x").health()


@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.1 200 OK\r\n\r\n<html>", b"HTTP/1.1 200 OK\r\n\r\n[]", b"garbage\r\n\r\n", b""],
    ids=["html", "list", "garbage", "nothing"],
)
def test_something_that_is_no_agent_is_told_in_a_sentence(answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        client = AgentClient(f"http://127.0.0.1:{listener.getsockname()[1]}", "x")
        with pytest.raises(Unreachable):
            client.health()
        thread.join()
        client.close()
