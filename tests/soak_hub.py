"""`python -m tests.soak_hub [KILLS]`: load through a hub with random kills of it and its agents; prints the counts."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from statistics import median

from occ_app.supervisor.processes import STEADY_SECONDS
from tests.conftest import Occ, free_port_number, make_zip, stand_in, wait_until
from tests.promises import VICTIMS, Load, Promises, counting_cli, kill, load_for, serves
from tests.real_hub import Hub, hub_in

CLIENTS = 8
HUB_VICTIMS = {
    "the hub's web": "occ_app.hub_wsgi",
    "the relays": "occ_worker.hub executions",
    "the hub's control": "occ_worker.hub control",
    "the hub's supervisor": "supervisor",
    "all of the hub": "-m occ_",
}
_ENDS_ALL = ("the supervisor", "everything", "the hub's supervisor", "all of the hub")


def soak(folder: Path, kills: int) -> str:
    """Run it and return the report. Raises AssertionError when a promise was broken."""
    stand_in(folder)
    program, starts = counting_cli(folder)
    with hub_in(folder) as hub:
        hub.start()
        agents = [
            hub.agent(
                name,
                OCC_WORKERS="4",
                OCC_BIND_ADDRESS=address,
                OCC_HTTP_PORT=str(free_port_number()),
                OCC_CLAUDE_BIN=str(program),
            )
            for name, address in (("exposed", "0.0.0.0"), ("linked", "127.0.0.1"))
        ]
        return _soak(hub, agents, Promises(hub, starts), kills)


def _soak(hub: Hub, agents: list[Occ], promises: Promises, kills: int) -> str:
    for number in range(4):
        hub.client.upload(f"w{number}", make_zip({"README.md": "hello\n"}))
    load = Load(hub, promises)
    done: Counter[str] = Counter()
    recoveries: list[float] = []
    struck: dict[str, float] = {}
    begun = time.monotonic()
    with load_for(load, CLIENTS, 0):
        while sum(done.values()) < kills:
            threading.Event().wait(random.uniform(0.3, 2))  # noqa: S311 - any instant
            agent = random.choice([None, *agents])  # noqa: S311 - any machine
            victim = random.choice(VICTIMS if agent else tuple(HUB_VICTIMS))  # noqa: S311 - any part
            place = f"{agent.home.name if agent else 'hub'}"
            if time.monotonic() - struck.get(place, 0.0) < STEADY_SECONDS + 1:
                continue  # five early deaths in a row would end a daemon, as they should
            if kill(agent, victim) if agent else _kill(hub, victim):
                done[victim] += 1
                struck[place] = time.monotonic()
                recoveries.append(_recover(agent or hub, victim))
    seconds = time.monotonic() - begun
    promises.check()
    compared = _compare(hub, agents, promises)
    ends = ", ".join(f"{count} {name}" for name, count in load.outcomes.most_common())
    hits = ", ".join(f"{victim} {count}" for victim, count in done.most_common())
    return (
        f"{seconds:.0f} s, {sum(done.values())} kills ({hits})\n"
        f"{sum(load.outcomes.values())} executions: {ends}; lost 0, doubled 0\n"
        f"{compared} compared with their agent's rows, event for event\n"
        f"serving again after {median(recoveries):.2f} s (median), {max(recoveries):.2f} s (worst)\n"
        f"checked: {', '.join(f'{name} {count}' for name, count in promises.checked.items())}"
    )


def _kill(hub: Hub, victim: str) -> bool:
    pids = hub.part(HUB_VICTIMS[victim])
    if victim == "all of the hub":
        pids = hub.part("supervisor") + pids  # first, so that it restarts nothing
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return bool(pids)


def _recover(daemon: Occ | Hub, victim: str) -> float:
    if victim in _ENDS_ALL:
        left = daemon.processes if isinstance(daemon, Occ) else lambda: daemon.part("-m occ_")
        wait_until(lambda: not left(), "nothing of the daemon to be left")
    begun = time.monotonic()
    if victim in _ENDS_ALL:
        daemon.start()
    wait_until(lambda: serves(daemon), "it serves again")
    return time.monotonic() - begun


def _compare(hub: Hub, agents: list[Occ], promises: Promises) -> int:
    """Hold every execution's events on the hub against those on the agent that ran it; returns how many there were."""
    by_id = {hub.seen(agent.home.name)["agentId"]: agent.client for agent in agents}
    compared = 0
    for execution_id in sorted(promises.accepted):
        record = hub.client.execution(execution_id)
        on_hub = list(hub.client.events(execution_id))
        on_agent = list(by_id[record["agentId"]].events(execution_id))
        assert on_hub[1:] == on_agent[1:], execution_id
        compared += 1
    return compared


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="occ-hub-soak-") as scratch:
        print(soak(Path(scratch), int(sys.argv[1]) if len(sys.argv) > 1 else 100))
