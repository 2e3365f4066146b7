"""`python -m benchmarks.link [--idle N] [--seconds S]`: the cost of the link.

It is between an agent and its hub. The same agent is called directly and through the link, in turn or at once: small
calls, an upload of 100 MB, and 20 streams of 50 events a second, each followed on both ways. Then N idle links are
held and the hub's process is watched.
"""

from __future__ import annotations

import argparse
import io
import os
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NoReturn

from benchmarks import processes
from benchmarks.report import idle_table, table
from benchmarks.rows import Row
from occ_app.client.agent_client import AgentClient
from occ_app.link.link import Link
from occ_app.link.websocket import LinkSocket
from occ_app.system.event_loop import Loop
from occ_worker.control.link import connect
from tests import fake_link_hub
from tests.conftest import make_zip, occ_in, steps

_CALLS = 300
_UPLOADS = 3
_UPLOAD_BYTES = 99_000_000
_STREAMS, _PER_SECOND = 20, 50


def main() -> int:
    """Run it. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.link")
    parser.add_argument("--idle", type=int, default=200, help="idle links to hold")
    parser.add_argument("--seconds", type=float, default=30, help="how long they are watched, and the streams go on")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="occ-bench-") as scratch:
        folder = Path(scratch)
        with (
            fake_link_hub.serve(folder) as hub,
            occ_in(folder, OCC_WORKERS=str(_STREAMS), OCC_API_KEY="made-up") as occ,
        ):
            occ.start("--remote-url", hub.url, "--bind-address", "127.0.0.1")
            hub.linked()
            ways = {"direct": occ.client, "occ": hub.client()}
            rows = [_small_calls(ways), _uploads(ways), *_events(ways, min(asked.seconds, 15.0))]
        print(table(rows))
        (folder / "idle").mkdir()
        with fake_link_hub.serve(folder / "idle") as hub:
            print(f"\nWithout a link, then with {asked.idle} idle ones:\n")
            machines = [(f"idle-{number}", "token") for number in range(asked.idle)]
            hub.behave(tokens=dict(machines))
            costs = processes.watch([hub.server], 5.0)
            with idle_links(hub.url, machines):
                time.sleep(2.0)  # the handshakes are over, and their threads idle
                costs += processes.watch([hub.server], asked.seconds)
                print(idle_table(costs))
                print(f"\nthreads of the hub's serving process: {hub.server.num_threads()}")
    return 0


def _small_calls(ways: dict[str, AgentClient]) -> Row:
    samples: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(_CALLS + 20):
        for name, client in ways.items():
            begun = time.perf_counter()
            client.health()
            if number >= 20:
                samples[name].append(1000 * (time.perf_counter() - begun))
    return Row("GET /health, one after the other", "ms", samples)


def _uploads(ways: dict[str, AgentClient]) -> Row:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as zipped:
        zipped.writestr("large", os.urandom(_UPLOAD_BYTES))
    samples: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(_UPLOADS):
        for name, client in ways.items():
            archive.seek(0)
            begun = time.perf_counter()
            client.upload("large", archive)
            samples[name].append(time.perf_counter() - begun)
    return Row("upload of 99 MB, to the reply", "s", samples)


def _events(ways: dict[str, AgentClient], seconds: float) -> list[Row]:
    """Follow each execution on both ways at once and compare the arrival of events."""
    times = int(seconds * _PER_SECOND)
    spoken = steps({"sleep": 2}, {"say": "x" * 40, "times": times, "every": 1 / _PER_SECOND})
    direct = ways["direct"]
    for number in range(_STREAMS):
        direct.upload(f"lane-{number}", make_zip({"README.md": "hello\n"}))
    arrived: dict[tuple[str, int], dict[int, float]] = {}

    def follow(way: str, number: int) -> None:
        seen = arrived[way, number] = {}
        for event in ways[way].events(f"exec-{number}"):
            seen[event.seq] = time.perf_counter()

    for number in range(_STREAMS):
        next(direct.execute(f"lane-{number}", spoken, executionId=f"exec-{number}"))
    threads = [threading.Thread(target=follow, args=(way, n)) for n in range(_STREAMS) for way in ways]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # The first events are there when a follower comes, and tell nothing.
    later = [
        1000 * (arrived["occ", number][seq] - at)
        for number in range(_STREAMS)
        for seq, at in arrived["direct", number].items()
        if seq > 5
    ]
    name = f"{_STREAMS} streams of {_PER_SECOND} events/s: how much later over the link"
    return [Row(name, "ms", {"occ": later}, "about 1")]


@contextmanager
def idle_links(url: str, machines: Sequence[tuple[str, str]]) -> Iterator[None]:
    """Hold machines' ends of their links with the hub at `url`.

    Each machine is an id and a token; all links are in one thread.
    """
    loop = Loop()
    links: list[Link] = []
    ended: list[str] = []
    with ExitStack() as at_the_end:
        at_the_end.callback(loop.close)
        for agent_id, token in machines:
            connection, framing = connect(url, agent_id, token)
            links.append(Link(loop, LinkSocket(connection, framing), ended.append, _no_api))
            loop.soon(links[-1].begin)
        thread = threading.Thread(target=loop.run)
        thread.start()
        yield
        assert not ended, ended
        loop.soon(lambda: _close(links))
        loop.stop()
        thread.join()


def _close(links: Sequence[Link]) -> None:
    for link in links:
        link.close("measured")


def _no_api() -> NoReturn:
    raise ConnectionRefusedError


if __name__ == "__main__":
    raise SystemExit(main())
