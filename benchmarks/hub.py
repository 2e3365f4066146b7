"""`python -m benchmarks.hub [--seconds S]`: the cost of a hub and of many agents.

The same stub CLI runs 20 executions of 50 events a second at once: requested of the agent itself, and through the hub
that reaches it over its link, in turn: a hub calls no address of its own machine. Then 200 idle agents hold their
links and beat as agents do, and 1,000 agents beat.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks import processes, streams
from benchmarks.capture import Capture, Prompt
from benchmarks.link import idle_links
from benchmarks.report import idle_table, table
from benchmarks.rows import Row, percentile
from benchmarks.streams import Stream, over_http
from benchmarks.targets import compile_stub
from occ_app.client.hub_client import HubClient
from tests.conftest import make_zip, processes_with
from tests.real_hub import Hub, hub_in

_STREAMS, _PER_SECOND, _SECONDS, _ROUNDS = 20, 50, 4, 3
_LINKED, _BEATING = 200, 1000
_BEAT_SECONDS = 30.0


@dataclass(frozen=True)
class Api:
    """An API that runs the stub CLI; `more` goes into each request."""

    name: str
    url: str
    token: str = field(repr=False)
    more: Mapping[str, Any]

    def begin(self, prompt: Prompt, lane: int = 0) -> Stream:
        execution_id = f"bench-{uuid.uuid4()}"
        asked = {"executionId": execution_id, "workspaceId": f"{self.name}-{lane}", "prompt": str(prompt), **self.more}
        body = json.dumps(asked).encode()
        host, port = self.url.removeprefix("http://").split(":")
        head = (
            f"POST /execute HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {self.token}\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        capture = Capture()
        stream = over_http(
            capture, (host, int(port)), head.encode() + body, lambda: capture.http_run(prompt, execution_id)
        )
        return replace(stream, execution_id=execution_id)

    def cpu_seconds(self) -> float:
        return 0.0


def main() -> int:
    """Run it. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hub")
    parser.add_argument("--seconds", type=float, default=30, help="how long idle agents are watched")
    seconds = parser.parse_args().seconds
    with tempfile.TemporaryDirectory(prefix="occ-bench-") as scratch:
        with hub_in(Path(scratch), OCC_HUB_HEARTBEAT_SECONDS=f"{_BEAT_SECONDS:.0f}") as hub:
            hub.start()
            print(_added(hub, compile_stub(Path(scratch))))
        (Path(scratch) / "many").mkdir()
        with hub_in(Path(scratch) / "many", OCC_HUB_HEARTBEAT_SECONDS=f"{_BEAT_SECONDS:.0f}") as hub:
            print(_many(hub.start(), seconds))
    return 0


def _added(hub: Hub, stub: Path) -> str:
    """Print the two ways, and the time that the hub adds at the median."""
    settings = {"OCC_WORKERS": str(_STREAMS), "OCC_CLAUDE_BIN": str(stub)}
    agent = hub.agent("box", **settings)
    apis = (
        Api("agent", agent.url, agent.token, {}),
        Api("over-its-link", hub.url, hub.client_key, {"agent": "box"}),
    )
    for lane in range(_STREAMS):
        agent.client.upload(f"agent-{lane}", make_zip({"README.md": "benchmark\n"}))
        hub.client.upload(f"over-its-link-{lane}", make_zip({"README.md": "benchmark\n"}))
    prompt = Prompt(_PER_SECOND * _SECONDS, _PER_SECOND)
    latencies: dict[str, list[float]] = {api.name: [] for api in apis}
    firsts: dict[str, list[float]] = {api.name: [] for api in apis}
    missing = 0
    for number in range(_ROUNDS + 1):
        for api in apis:
            runs = streams.together([api.begin(prompt, lane) for lane in range(_STREAMS)])
            missing += sum(run.lost + run.damaged for run in runs)
            if number > 0:  # the first round places the workspaces
                latencies[api.name] += [ms for run in runs for ms in run.latencies_ms]
                firsts[api.name] += [run.first_ms for run in runs]
    lines = [f"{_STREAMS} executions at once, {_PER_SECOND} events/s each; lost or damaged: {missing}", ""]
    alone = percentile(latencies["agent"], 50)
    for name, samples in latencies.items():
        middle, high = percentile(samples, 50), percentile(samples, 99)
        added = "" if name == "agent" else f", added to the median {middle - alone:.2f} ms"
        first = percentile(firsts[name], 50)
        lines.append(f"{name}: line → event {middle:.2f} / {high:.2f} ms{added}; request → first output {first:.1f} ms")
    return "\n".join(lines)


def _many(hub: Hub, seconds: float) -> str:
    """Measure 200 idle linked agents, and the beats of 1,000."""
    hub_processes = processes_with(hub.marker)
    before = processes.watch(hub_processes, 5.0)
    machines = _registered(hub, _LINKED)
    with idle_links(hub.url, machines), _beating(hub, machines):
        time.sleep(30.0)  # the handshakes are over, and each address was asked once
        costs = processes.watch(hub_processes, seconds)
    with _beating(hub, machines + _registered(hub, _BEATING - _LINKED)) as took:
        time.sleep(seconds)
    beats = Row(f"{_BEATING} agents: a heartbeat, to the reply", "ms", {"occ": list(took)}, "p99 < 100 ms")
    told = [
        f"\nThe hub without agents: {_sum(before)}; with {_LINKED} idle linked ones that beat: {_sum(costs)}\n",
        idle_table(costs),
        "",
        table([beats]),
    ]
    return "\n".join(told)


def _sum(costs: Sequence[processes.Cost]) -> str:
    cpu, pss = sum(cost.cpu_percent for cost in costs), sum(cost.pss_mb for cost in costs)
    return f"{cpu:.2f} % of a core, {pss:.0f} MB PSS"


def _registered(hub: Hub, count: int) -> list[tuple[str, str]]:
    """So many made-up machines; their ids and tokens."""
    client = HubClient(hub.url)
    said = {"protocol": 1, "agentId": None, "version": "0", "platform": "linux", "url": None, "workers": 5}
    # Registered from loopback with a port where nobody listens: each is reached over its link or not at all.
    found = []
    for number in range(count):
        told = client.register(hub.agent_key, {**said, "name": f"made-up-{number}", "port": 1})
        found.append((told.agent_id, told.token))
    return found


@contextmanager
def _beating(hub: Hub, machines: Sequence[tuple[str, str]]) -> Iterator[list[float]]:
    """Send those machines' heartbeats, each every 30 s and spread.

    Yields the list of their times, in ms.
    """
    took: list[float] = []
    stop = threading.Event()
    with ThreadPoolExecutor(8) as pool:
        thread = threading.Thread(target=_beat_on, args=(pool, hub, machines, took, stop))
        thread.start()
        yield took
        stop.set()
        thread.join()


def _beat_on(
    pool: ThreadPoolExecutor,
    hub: Hub,
    machines: Sequence[tuple[str, str]],
    took: list[float],
    stop: threading.Event,
) -> None:
    number = 0
    while not stop.wait(_BEAT_SECONDS / len(machines)):
        agent_id, token = machines[number % len(machines)]
        pool.submit(_beat, hub.url, agent_id, token, number, took.append)
        number += 1


def _beat(url: str, agent_id: str, token: str, number: int, note: Callable[[float], None]) -> None:
    body = {"seqNum": number, "status": "healthy", "version": "0", "workers": {"total": 5, "busy": 0}}
    begun = time.perf_counter()
    HubClient(url).beat(agent_id, token, {**body, "queue": {"depth": 0}, "executions": []})
    note(1000 * (time.perf_counter() - begun))


if __name__ == "__main__":
    os.umask(0o077)
    raise SystemExit(main())
