"""A child process and everything it leaves behind: started, signalled and swept here, and nowhere else.

The worker is a subreaper: whatever a tool daemonised, in whatever session, becomes the worker's own child when its
parent dies. So one look at the worker's children tells whether anything of the tree is left.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import shlex
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from occ_app.kernel import die_with_parent

SWEEP_SECONDS = 5.0
MARKER = "OCC_EXECUTION_ID"

_F_SETPIPE_SZ = 1031
_PIPE_BYTES = 1 << 20
_SCRIPT = 3  # the descriptor on which the waiting shell gets its command
_NAME = re.compile("[A-Za-z_][A-Za-z0-9_]*")
_OOM_SCORE = b"500"  # under memory pressure the kernel ends the CLI before the daemon


class Launcher:
    """Starts programs at once: the process that becomes the next one waits for its command.

    A fork of the worker would take longer than all else between a prompt and its CLI, so it is made beforehand. What
    waits is a shell, which is small: its memory is little and its exec short.
    """

    def __init__(self) -> None:
        self._next: Child | None = None

    def prepare(self) -> None:
        """Have a process waiting; harmless when one does."""
        if self._next is None:
            self._next = Child()

    def start(self, argv: Sequence[str], environment: Mapping[str, str], folder: Path) -> Child:
        """Let the waiting process become this program. When that cannot be, it ends with 126 or 127."""
        if self._next is None or self._next.returncode() is not None:  # somebody ended it while it waited
            self.close()
            self._next = Child()
        child, self._next = self._next, None
        child.become(argv, environment, folder)
        return child

    def close(self) -> None:
        """End the waiting process."""
        if self._next is not None:
            self._next.close()
            self._next = None


class Child:
    """One running program, leader of its own session, with non-blocking pipes; until `become` it only waits.

    It dies with the process that started it (PR_SET_PDEATHSIG), even when that is killed without a word.
    """

    def __init__(self) -> None:
        """Start it. Raises OSError when the machine has no room for another process."""
        parent = os.getpid()
        script, self._script = os.pipe()

        def before_exec() -> None:
            die_with_parent(parent)
            os.dup2(script, _SCRIPT)
            with contextlib.suppress(OSError):
                descriptor = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
                os.write(descriptor, _OOM_SCORE)
                os.close(descriptor)

        try:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", f". /proc/self/fd/{_SCRIPT}"],
                env={},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                preexec_fn=before_exec,  # noqa: PLW1509 - workers have one thread, so nothing can hold a lock here
                pass_fds=[_SCRIPT],
                bufsize=0,
            )
        finally:
            os.close(script)
        stdin, stdout, stderr = self._process.stdin, self._process.stdout, self._process.stderr
        assert stdin is not None  # noqa: S101 - all three are pipes
        assert stdout is not None  # noqa: S101 - as above
        assert stderr is not None  # noqa: S101 - as above
        self.pid = self._process.pid
        self.exited = os.pidfd_open(self.pid)
        self.stdin, self.stdout, self.stderr = stdin, stdout, stderr
        for pipe in (self.stdin, self.stdout, self.stderr):
            os.set_blocking(pipe.fileno(), False)
        with contextlib.suppress(OSError):
            # A wider pipe lets a burst flow while its events are stored.
            fcntl.fcntl(self.stdout, _F_SETPIPE_SZ, _PIPE_BYTES)

    def become(self, argv: Sequence[str], environment: Mapping[str, str], folder: Path) -> None:
        """Tell it what to become, with this environment and no other; names that no shell can export are left out."""
        exports = [f"{name}={shlex.quote(value)}" for name, value in environment.items() if _NAME.fullmatch(name)]
        steps = [
            f"exec {_SCRIPT}<&-",
            shlex.join(["cd", "--", str(folder)]),
            "unset PWD OLDPWD",
            " ".join(["export", *exports]),
            f"exec {shlex.join(argv)}",
        ]
        with open(self._script, "wb") as script, contextlib.suppress(BrokenPipeError):  # its end says the same
            script.write(os.fsencode(" && ".join(steps) + "\n"))
        self._script = -1

    def returncode(self) -> int | None:
        """How it ended: an exit code, minus the signal that ended it, or None while it runs."""
        return self._process.poll()

    def signal_group(self, number: signal.Signals) -> None:
        """Signal its process group; harmless when it is gone."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def close(self) -> None:
        """End it and all it started, and release what it held; harmless when repeated."""
        if self._process.poll() is None:
            self.signal_group(signal.SIGKILL)
            self._process.wait()
        sweep_children()
        if self._script >= 0:
            os.close(self._script)
            self._script = -1
        for pipe in (self.stdin, self.stdout, self.stderr):
            with contextlib.suppress(OSError):
                pipe.close()
        if self.exited >= 0:
            os.close(self.exited)
            self.exited = -1


def sweep_children() -> bool:
    """Kill every child of this process, and theirs as they become ours, until a look finds none. False: some stayed."""
    deadline = time.monotonic() + SWEEP_SECONDS
    while children := [child.pid for child in psutil.Process().children()]:
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in children:
            _reap(pid, deadline)
        if time.monotonic() > deadline:
            return False
    return True


def sweep_marked(execution_id: str, home: Path) -> bool:
    """Kill every process that carries an execution's marker in its environment, until a look finds none.

    For what outlived its worker. Another home's agent may run an execution of the same id: what descends from its
    processes is spared. False: some were still there after the time limit.
    """
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
    """Whether it descends from an agent's process with another OCC_HOME: a worker that lives keeps all it started."""
    own = b"OCC_HOME=" + os.fsencode(home)
    try:
        ancestors = psutil.Process(pid).parents()
    except psutil.Error:
        return False
    for ancestor in ancestors:
        homes = [entry for entry in _environ(ancestor.pid) if entry.startswith(b"OCC_HOME=")]
        if homes:
            return own not in homes
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
