"""The identity of a process across recycled pids and reboots."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class ProcessIdentity:
    """One process of one boot.

    `start` is field 22 of /proc/PID/stat, in ticks since boot; no clock change moves it.
    """

    boot_id: str
    pid: int
    start: int

    def alive(self) -> bool:
        """Whether that very process still runs (a zombie does not)."""
        return self.boot_id == boot_id() and process_start(self.pid) == self.start


@cache
def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def process_start(pid: int) -> int | None:
    """Return when process `pid` started, in ticks since boot.

    None when there is no such process or it is a zombie.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command's name, in brackets, may itself hold brackets and spaces.
    fields = text[text.rindex(")") + 2 :].split()
    return None if fields[0] in ("Z", "X") else int(fields[19])


def own_identity() -> ProcessIdentity:
    start = process_start(os.getpid())
    assert start is not None  # noqa: S101 - the process that asks is running
    return ProcessIdentity(boot_id(), os.getpid(), start)
