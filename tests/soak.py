"""`python -m tests.soak [SECONDS]`: load with random kills of every part, then the promises; prints the counts."""

from __future__ import annotations

import random
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from statistics import median

from occ_app.supervisor.processes import STEADY_SECONDS
from tests.conftest import Occ, free_port_number, occ_in, stand_in, wait_until
from tests.promises import VICTIMS, Load, Promises, counting_cli, kill, load_for, serves

WORKERS = 4
PART = {"the executions consumer": "executions", "its whole group": "executions"}
CLIENTS = 8


def soak(folder: Path, seconds: float, kills: int = 1) -> str:
    """Run it for so long and so many kills at least; return the report. Raises AssertionError for a broken promise."""
    stand_in(folder)
    program, starts = counting_cli(folder)
    settings = {"OCC_WORKERS": str(WORKERS), "OCC_HTTP_PORT": str(free_port_number())}
    with occ_in(folder, program=program, **settings) as occ:
        occ.start()
        return _soak(Promises(occ, starts), seconds, kills)


def _soak(promises: Promises, seconds: float, least: int) -> str:
    occ = promises.occ
    for number in range(4):
        occ.workspace(f"w{number}")
    load = Load(occ, promises)
    kills: Counter[str] = Counter()
    recoveries: list[float] = []
    struck: dict[str, float] = {}
    deadline = time.monotonic() + seconds
    with load_for(load, CLIENTS, seconds):
        while time.monotonic() < deadline or sum(kills.values()) < least:
            threading.Event().wait(random.uniform(0.3, 2))  # noqa: S311 - any instant
            victim = random.choice(VICTIMS)  # noqa: S311 - any part
            part = PART.get(victim, victim)
            if time.monotonic() - struck.get(part, 0.0) < STEADY_SECONDS + 1:
                continue  # five early deaths in a row would end the daemon, as they should
            if kill(occ, victim):
                kills[victim] += 1
                struck[part] = time.monotonic()
                recoveries.append(_recover(occ, victim))
    promises.check()
    ends = ", ".join(f"{count} {name}" for name, count in load.outcomes.most_common())
    hits = ", ".join(f"{victim} {count}" for victim, count in kills.most_common())
    return (
        f"{seconds:.0f} s, {sum(kills.values())} kills ({hits})\n"
        f"{sum(load.outcomes.values())} executions: {ends}; lost 0, doubled 0\n"
        f"serving again after {median(recoveries):.2f} s (median), {max(recoveries):.2f} s (worst)\n"
        f"checked: {', '.join(f'{name} {count}' for name, count in promises.checked.items())}"
    )


def _recover(occ: Occ, victim: str) -> float:
    begun = time.monotonic()
    if victim in ("the supervisor", "everything"):
        wait_until(lambda: not occ.processes(), "nothing of the daemon to be left")
        begun = time.monotonic()
        occ.start()
    wait_until(lambda: serves(occ), "the agent to serve again")
    return time.monotonic() - begun


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="occ-soak-") as scratch:
        print(soak(Path(scratch), float(sys.argv[1]) if len(sys.argv) > 1 else 600.0))
