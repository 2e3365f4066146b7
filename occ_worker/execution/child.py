"""A child process: only this module starts, signals and ends one.

strays.py ends the processes it leaves.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Collection, Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from types import MappingProxyType

from occ_app.system.kernel import die_with_parent
from occ_app.system.strays import MARKER, sweep_children

log = logging.getLogger("occ.process")

_F_SETPIPE_SZ = 1031
READ_BYTES = 1 << 18
_PIPE_BYTES = 1 << 20
_OOM_SCORE = b"500"  # under memory pressure the kernel ends the CLI before the daemon

_quoted = lru_cache(maxsize=256)(shlex.quote)  # almost all words of a command are those of the one before


class Launcher:
    """Starts programs at once by means of a process that waits for its command.

    The waiting process is a shell: it needs little memory and executes fast. `environment` is that of every program it
    starts.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._next: Child | None = None

    @property
    def processes(self) -> set[int]:
        """The pid of the waiting process, if it lives."""
        return set() if self._next is None or self._next.returncode() is not None else {self._next.pid}

    def prepare(self) -> None:
        """Have a process waiting; harmless when one does."""
        if self._next is None:
            self._next = Child(self._environment)

    def start(
        self,
        argv: Sequence[str],
        folder: Path,
        execution_id: str,
        without: Sequence[str] = (),
        more: Mapping[str, str] = MappingProxyType({}),
    ) -> Child:
        """Let the waiting process become this program.

        Where that is impossible, it ends with 126 or 127. The variables `without` are not in the program's
        environment, those of `more` are.
        """
        if self._next is None or self._next.returncode() is not None:  # somebody ended it while it waited
            self.close()
            self._next = Child(self._environment)
        child, self._next = self._next, None
        try:
            child.become(argv, folder, execution_id, without, more)
        except BaseException:
            child.close()
            raise
        return child

    def close(self) -> None:
        """End the waiting process."""
        if self._next is not None:
            self._next.close()
            self._next = None


class Child:
    """One running program, leader of a session, with non-blocking pipes.

    Until `become` it only waits. It dies with the process that started it (PR_SET_PDEATHSIG), even when that is
    killed.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        """Start it. Raises OSError when the machine has no room for another process."""
        # Python can start it without copying itself only when nothing of Python runs in between: a copy takes longer
        # than all else between a prompt and its CLI, and after it every page of the worker is slow to touch once.
        mortal, parent = find_setpriv(), os.getpid()
        self._process = subprocess.Popen(
            # `read` takes no byte beyond the line: the rest of stdin is the program's.
            [*mortal, "/bin/sh", "-c", 'IFS= read -r line && eval "$line"'],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=None if mortal else lambda: die_with_parent(parent),  # noqa: PLW1509 - workers have one thread
            bufsize=0,
        )
        stdin, stdout, stderr = self._process.stdin, self._process.stdout, self._process.stderr
        assert stdin is not None  # noqa: S101 - all three are pipes
        assert stdout is not None  # noqa: S101 - as above
        assert stderr is not None  # noqa: S101 - as above
        self.pid = self._process.pid
        self.began = time.monotonic()  # or when it became its program
        self.exited = os.pidfd_open(self.pid)
        self.stdin, self.stdout, self.stderr = stdin, stdout, stderr
        for pipe in (self.stdin, self.stdout, self.stderr):
            os.set_blocking(pipe.fileno(), False)
        with contextlib.suppress(OSError):
            Path(f"/proc/{self.pid}/oom_score_adj").write_bytes(_OOM_SCORE)
        with contextlib.suppress(OSError):
            # A wider pipe lets a burst flow while its events are stored.
            fcntl.fcntl(self.stdout, _F_SETPIPE_SZ, _PIPE_BYTES)

    def become(
        self,
        argv: Sequence[str],
        folder: Path,
        execution_id: str,
        without: Sequence[str] = (),
        more: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Send the command to execute. Raises ValueError for a line break in it."""
        variables = " ".join(f"{name}={_quoted(value)}" for name, value in {MARKER: execution_id, **more}.items())
        marked = f"unset {' '.join(('PWD', 'OLDPWD', *without))} && export {variables}"
        line = f"cd -- {_quoted(str(folder))} && {marked} && exec {' '.join(map(_quoted, argv))}"
        if "\n" in line:
            raise ValueError(f"a line break in {line!r}")
        with contextlib.suppress(BrokenPipeError):  # its exit says the same
            os.write(self.stdin.fileno(), os.fsencode(line + "\n"))
        self.began = time.monotonic()

    def returncode(self) -> int | None:
        """Return its exit code, minus the signal that ended it, or None while it runs."""
        return self._process.poll()

    def signal_group(self, number: signal.Signals) -> None:
        """Signal its process group; harmless when it is gone."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def close(self, spared: Collection[int] = ()) -> None:
        """End it and all processes it started, and release its pipes.

        Harmless when repeated. Every other child of this process is ended too, except those `spared`.
        """
        self._kill()
        if not sweep_children(spared):
            log.warning("something that process %d left behind cannot be ended; `ps -ef` shows it", self.pid)
        self._release()

    def close_alone(self) -> None:
        """End it and its process group, and release its pipes.

        No other child of this process is touched.
        """
        self._kill()
        self._release()

    def _kill(self) -> None:
        if self._process.poll() is None:
            self.signal_group(signal.SIGKILL)
            self._process.wait()

    def _release(self) -> None:
        for pipe in (self.stdin, self.stdout, self.stderr):
            with contextlib.suppress(OSError):
                pipe.close()
        if self.exited >= 0:
            os.close(self.exited)
            self.exited = -1


@cache
def find_setpriv() -> list[str]:
    """Return the setpriv command that sets PR_SET_PDEATHSIG before a program.

    It needs no Python. Empty where it cannot be used. If the parent dies before that, the shell reaches the end of its
    input.
    """
    program = shutil.which("setpriv", path=os.defpath)
    if program is None:
        return []
    command = [program, "--pdeathsig", "KILL", "--"]
    # That of busybox, and those before 2018, do not know the option.
    tried = subprocess.run([*command, "/bin/sh", "-c", ":"], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    return command if tried.returncode == 0 else []


def read(descriptor: int) -> bytes | None:
    """Return the available bytes of a pipe; empty at the end, None without any."""
    try:
        return os.read(descriptor, READ_BYTES)
    except BlockingIOError:
        return None
    except OSError:
        return b""
