"""Processes that outlived who started them: found, ended and waited for.

Workers, their consumer and the supervisor are subreapers: a process that a tool daemonised, in any session, becomes a
child of the nearest of them that lives when its parent dies. So one look at a worker's children tells whether anything
of an execution's tree is left, and the consumer ends those of a killed worker.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Collection
from pathlib import Path

# psutil is loaded where it is used: the supervisor does without its memory.

SWEEP_SECONDS = 5.0
MARKER = "OCC_EXECUTION_ID"


def sweep_children(spared: Collection[int] = ()) -> bool:
    """Kill every child of this process except the spared ones.

    Orphans that become its children are killed, too, until none is left. False when some are left, such as one that
    changed to another user by sudo.
    """
    deadline = time.monotonic() + SWEEP_SECONDS
    untouchable = set(spared)
    while children := [pid for pid in children_of_this() if pid not in untouchable]:
        for pid in children:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            except PermissionError:
                untouchable.add(pid)
        for pid in children:
            if pid not in untouchable:
                _reap(pid, deadline)
        if time.monotonic() > deadline:
            return False
    return len(untouchable) == len(set(spared))


def children_of_this() -> list[int]:
    """Return the children of this process, adopted ones included."""
    pid = os.getpid()
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:  # a kernel built without it
        import psutil

        return [child.pid for child in psutil.Process().children()]


def children_of(pid: int) -> list[int]:
    """Return the children of a process, of all its threads; none when it is gone."""
    try:
        return [int(child) for tasks in Path(f"/proc/{pid}/task").iterdir() for child in _children(tasks)]
    except FileNotFoundError:
        return []


def _children(task: Path) -> list[str]:
    """Return the children of a thread; none when it is gone."""
    try:
        return (task / "children").read_text().split()
    except ProcessLookupError:
        return []


def sweep_marked(execution_id: str, home: Path) -> bool:
    """Kill every process with an execution's marker in its environment.

    For processes that outlived their worker. An agent of another home may run an execution of the same id; descendants
    of its processes are spared. False when some are still alive after the time limit.
    """
    import psutil

    marker = f"{MARKER}={execution_id}".encode()
    deadline = time.monotonic() + SWEEP_SECONDS
    while marked := [pid for pid in psutil.pids() if marker in _environ(pid) and not _of_another_home(pid, home)]:
        for pid in marked:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        for pid in marked:
            _await_exit(pid, deadline)
        if time.monotonic() > deadline:
            return False
    return True


def _environ(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def _of_another_home(pid: int, home: Path) -> bool:
    """Return whether a process descends from an agent with another OCC_HOME.

    A living worker keeps all that it started.
    """
    import psutil

    marker = b"OCC_HOME=" + os.fsencode(home)
    try:
        ancestors = psutil.Process(pid).parents()
    except psutil.Error:
        return False
    for ancestor in ancestors:
        homes = [entry for entry in _environ(ancestor.pid) if entry.startswith(b"OCC_HOME=")]
        if homes:
            return marker not in homes
    return False


def _reap(pid: int, deadline: float) -> None:
    _await_exit(pid, deadline)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def _await_exit(pid: int, deadline: float) -> None:
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    poller.poll(max(0.0, deadline - time.monotonic()) * 1000)
    os.close(descriptor)
