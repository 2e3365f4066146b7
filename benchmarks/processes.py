"""The cost of a group of processes, read from /proc.

CPU time, memory that is theirs alone or in part (PSS), and wake-ups.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Cost:
    """One process over a while.

    Per cent of one core, wake-ups a second, and its share of memory (PSS) in MB.
    """

    name: str
    cpu_percent: float
    wakeups: float
    pss_mb: float


def watch(processes: Sequence[psutil.Process], seconds: float) -> list[Cost]:
    """Return the cost of each process over `seconds`.

    Memory is read at the end: reading it takes CPU.
    """
    names = _names(processes)
    before = [(cpu_seconds(process.pid), _wakeups(process.pid)) for process in processes]
    begun = time.monotonic()
    time.sleep(seconds)
    elapsed = time.monotonic() - begun
    after = [(cpu_seconds(process.pid), _wakeups(process.pid)) for process in processes]
    return [
        Cost(
            name=name,
            cpu_percent=100 * (later[0] - earlier[0]) / elapsed,
            wakeups=(later[1] - earlier[1]) / elapsed,
            pss_mb=pss_mb(process),
        )
        for name, process, earlier, later in zip(names, processes, before, after, strict=True)
    ]


def pss_mb(process: psutil.Process) -> float:
    """Return a process's memory in MB, with shared memory counted in shares."""
    for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024 / 1e6
    return 0.0


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of all threads, from the scheduler.

    The ticks in `stat` miss processes that sleep most of the time.
    """
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


def _wakeups(pid: int) -> int:
    """How often its threads gave up the CPU to wait."""
    lines = [
        line
        for path in Path(f"/proc/{pid}/task").glob("*/status")
        for line in path.read_text().splitlines()
        if line.startswith("voluntary_ctxt_switches")
    ]
    return sum(int(line.split()[1]) for line in lines)


def _names(processes: Sequence[psutil.Process]) -> list[str]:
    """Return the name of each process: the module it runs.

    A forked one is named after its parent.
    """
    commands = {process.pid: process.cmdline() for process in processes}
    names = []
    for process in processes:
        command = commands[process.pid]
        # `python -X faulthandler -m module argument`, or a waiting shell: `sh -c 'read …'`
        words = command[command.index("-m") + 1 :] if "-m" in command else command[2:] or command
        name = " ".join(words) if words[0].startswith("occ_worker") else words[0]
        forked = commands.get(process.ppid()) == command
        names.append(f"{name} (forked)" if forked else name)
    return names
