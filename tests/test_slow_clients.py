"""Clients that are slow, idle, greedy or gone: others are served, and threads and descriptors come back."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tests.conftest import Occ, command_line, output, steps, wait_until
from tests.promises import HEALTH_SECONDS, Promises, counted, counting_cli, prompt


@pytest.fixture
def sockets() -> Iterator[Callable[[Occ], socket.socket]]:
    """Makes connections to an agent; all are closed afterwards."""
    with contextlib.ExitStack() as stack:

        def connect(agent: Occ) -> socket.socket:
            host, port = agent.url.removeprefix("http://").split(":")
            return stack.enter_context(socket.create_connection((host, int(port)), timeout=30))

        yield connect


def healthy(occ: Occ) -> float:
    """How long /health takes; it must be in time."""
    begun = time.monotonic()
    assert occ.request("GET", "/health").status == 200
    seconds = time.monotonic() - begun
    assert seconds < HEALTH_SECONDS
    return seconds


def head(occ: Occ, start: str, *more: str) -> bytes:
    lines = [start, "Host: localhost", f"Authorization: Bearer {occ.token}", *more]
    return ("\r\n".join(lines) + "\r\n").encode()


def test_many_idle_connections_keep_nobody_waiting(agent: Occ, sockets: Callable[[Occ], socket.socket]) -> None:
    for _ in range(500):
        sockets(agent)
    assert max(healthy(agent) for _ in range(5)) < HEALTH_SECONDS
    assert agent.run("x")[-1].name == "complete"


@pytest.mark.parametrize("kind", ["headers", "body", "upload", "never closes"])
def test_stalled_clients_keep_nobody_waiting(agent: Occ, sockets: Callable[[Occ], socket.socket], kind: str) -> None:
    starts = {
        "headers": b"GET /health HTTP/1.1\r\nHost: loc",
        "body": head(agent, "POST /execute HTTP/1.1", "Content-Type: application/json", "Content-Length: 900")
        + b'\r\n{"executionId',
        "upload": stalled_upload(agent),
        "never closes": head(agent, "GET /health HTTP/1.1", "Connection: close") + b"\r\n",
    }
    for _ in range(100):
        sockets(agent).sendall(starts[kind])
    worst = 0.0
    for _ in range(20):
        worst = max(worst, healthy(agent))
    assert agent.run("x")[-1].name == "complete"
    print(f"\n100 clients, {kind}: /health at worst {worst * 1000:.0f} ms")


def test_more_stalled_heads_than_threads_keep_nobody_waiting(
    agent: Occ, sockets: Callable[[Occ], socket.socket]
) -> None:
    """Nobody needs a token to send half a request."""
    for number in range(1000):
        sockets(agent).sendall(b"GET /health HTTP/1.1\r\nHost: loc" if number % 2 else b"G")
    assert max(healthy(agent) for _ in range(20)) < HEALTH_SECONDS
    assert agent.run("x")[-1].name == "complete"


def test_more_stalled_bodies_than_places_keep_health_free(occ: Occ, sockets: Callable[[Occ], socket.socket]) -> None:
    occ.start(OCC_MAX_STREAMS="10")
    occ.workspace()
    start = head(occ, "POST /execute HTTP/1.1", "Content-Type: application/json", "Content-Length: 900")
    for _ in range(120):
        sockets(occ).sendall(start + b'\r\n{"executionId')
    assert max(healthy(occ) for _ in range(20)) < HEALTH_SECONDS
    wait_until(lambda: _accepts(occ), "the places to come back", 30)


def _accepts(occ: Occ) -> bool:
    return occ.run("x")[-1].name == "complete"


def stalled_upload(occ: Occ) -> bytes:
    """The beginning of an upload."""
    kind = "Content-Type: multipart/form-data; boundary=f"
    start = head(occ, "POST /workspace/init HTTP/1.1", kind, "Content-Length: 9000")
    return start + b'\r\n--f\r\nContent-Disposition: form-data; name="zip"; filename="z"\r\n\r\nPK'


def test_a_reader_that_never_reads_holds_up_neither_the_cli_nor_others(
    agent: Occ, sockets: Callable[[Occ], socket.socket]
) -> None:
    """Nor does a request that stalls, which is given up and leaves nothing; each waits for a limit of 10 s."""
    stalled = sockets(agent)
    stalled.sendall(stalled_upload(agent))
    lazy = sockets(agent)
    lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    body = json.dumps(
        {"executionId": "big", "workspaceId": "work", "prompt": steps({"say": "0 " + "x" * 8000, "times": 1500})}
    ).encode()
    lazy.sendall(
        head(agent, "POST /execute HTTP/1.1", "Content-Type: application/json", f"Content-Length: {len(body)}")
        + b"\r\n"
        + body
    )
    wait_until(lambda: agent.request("GET", "/executions/big").status == 200, "it to be accepted")
    events = list(agent.client.events("big"))
    assert len(output(events)) == 8002 * 1500
    healthy(agent)
    # The lazy one is cut once a write has waited long enough; then its thread is free.
    wait_until(lambda: _streams(agent) == 0, "its stream to be given up", 30)
    answer = stalled.recv(65536)
    assert answer == b"" or b" 400 " in answer.split(b"\r\n")[0]
    wait_until(lambda: not list((agent.home / "run/uploads").iterdir()), "its upload to be gone")


def _streams(agent: Occ) -> int:
    """How many of the agent's connections have something unsent."""
    host_port = agent.url.removeprefix("http://").split(":")[1]
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    port = f":{int(host_port):04X}"
    return sum(
        1
        for line in lines
        if line.split()[1].endswith(port) and line.split()[3] == "01" and line.split()[4][:8] != "00000000"
    )


def test_readers_that_drop_give_their_place_back_at_once(occ: Occ, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    occ.start(OCC_MAX_STREAMS="4")
    occ.workspace()
    stream, _ = occ.under_way(steps({"say": "0 "}, {"wait": str(gate)}), "long")
    for _ in range(50):
        host, port = occ.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as reader:
            reader.sendall(head(occ, "GET /executions/long/events HTTP/1.1") + b"\r\n")
            assert b" 200 " in reader.recv(4096)
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, not a goodbye
        wait_until(
            lambda: occ.request("GET", "/executions/long/events?follow=0").status == 200, "its place to come back"
        )
    gate.touch()
    assert list(stream)[-1].name == "complete"


def test_fifty_readers_that_come_and_go_each_miss_nothing(agent: Occ, tmp_path: Path) -> None:
    body = prompt(100, 0.02)
    stream = agent.client.execute("work", body, executionId="many")
    next(stream)

    def read(number: int) -> str:
        text, after, client = "", 0, agent.client
        while True:
            part = client.events("many", after=after)
            for event in part:
                after = event.seq
                text += event.data["chunk"] if event.name == "output" else ""
                if event.final:
                    return text
                if event.seq % (5 + number) == 0:
                    break
            part.close()  # type: ignore[attr-defined]  # it is a generator

    with ThreadPoolExecutor(50) as pool:
        assert set(pool.map(read, range(50))) == {counted(100)}
    list(stream)


REPEATS = 50 if os.environ.get("TEST_ALL") else 20  # many more than the descriptors and threads that may be added


def test_nothing_grows_over_many_repeats(occ: Occ, tmp_path: Path) -> None:
    program, starts = counting_cli(tmp_path)
    occ.start(OCC_CLAUDE_BIN=str(program))
    occ.workspace()

    def once(number: int) -> None:
        occ.run(steps({"spawn": "session"}, {"say": "0 "}))
        occ.workspace(f"again-{number % 2}")
        stream = occ.client.execute("work", prompt(3))
        next(stream)
        stream.close()  # type: ignore[attr-defined]  # it is a generator
        while occ.clients:
            occ.clients.pop().close()

    def at_rest() -> tuple[dict[int, tuple[int, int]], int, list[str]] | None:
        """The cost of each process, the memory of all and the files, in one look, once nothing is under way."""
        health = occ.request("GET", "/health").json()
        if health["workers"]["busy"] or health["queue"]["depth"]:
            return None
        with contextlib.suppress(psutil.NoSuchProcess, OSError):  # one that asked for a version has just ended
            processes, folders = occ.processes(), _folders(occ)
            cost = {process.pid: (process.num_fds(), process.num_threads()) for process in processes}
            memory = _pss(processes)
            lasting = 6  # the supervisor, web, control, executions and its two workers
            if len(cost) == lasting and not any(name.startswith(".") for name in folders):  # trees that are replaced
                return cost, memory, folders
        return None

    for number in range(10):
        once(number)
    before, memory, folders = wait_until(at_rest, "rest")
    for number in range(REPEATS):
        once(number)
    after, memory_after, folders_after = wait_until(at_rest, "rest")
    assert before.keys() == after.keys()
    for pid, (descriptors, threads) in before.items():
        assert after[pid][0] <= descriptors + 4, (command_line(psutil.Process(pid)), before[pid], after[pid])
        assert after[pid][1] <= threads + 8, (command_line(psutil.Process(pid)), before[pid], after[pid])
    assert memory_after < memory + 15_000_000
    assert folders_after == folders
    Promises(occ, starts).check()


def _pss(processes: list[psutil.Process]) -> int:
    total = 0
    for process in processes:
        for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    return total


def _folders(occ: Occ) -> list[str]:
    return (
        sorted(os.listdir(occ.home / "run"))
        + sorted(os.listdir(occ.home / "run/uploads"))
        + sorted(os.listdir(occ.home / "workspaces"))
    )
