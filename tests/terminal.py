"""Runs a command on a pseudoterminal: tests wait for its output and press keys."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.conftest import wait_until


class Terminal:
    """A process and the other side of its terminal. Output is kept until it has been read up to what was wanted."""

    def __init__(self, pid: int, descriptor: int) -> None:
        self.pid = pid
        self._descriptor = descriptor
        self._unread = b""
        self._status: int | None = None

    def until(self, wanted: str, seconds: float = 60) -> str:
        """Wait for a text, and return the output up to its end; what follows is for the next call."""
        return self.until_like(re.escape(wanted), seconds)

    def until_like(self, pattern: str, seconds: float = 60) -> str:
        """The same for a regular expression."""
        deadline = time.monotonic() + seconds
        compiled = re.compile(pattern.encode())
        while (found := compiled.search(self._unread)) is None:
            ready, _, _ = select.select([self._descriptor], [], [], max(0.0, deadline - time.monotonic()))
            piece = self._read() if ready else b""
            if not piece:
                pytest.fail(f"waited in vain for {pattern!r} after {self._unread.decode(errors='replace')!r}")
            self._unread += piece
        seen, self._unread = self._unread[: found.end()], self._unread[found.end() :]
        return seen.decode(errors="replace")

    def type(self, line: str) -> None:
        """Type a line and press Enter."""
        self.press(f"{line}\n")

    def press(self, keys: str) -> None:
        os.write(self._descriptor, keys.encode())

    def until_it_reads(self) -> None:
        """Wait until the process is in a read of its terminal."""
        call = Path(f"/proc/{self.pid}/syscall")
        reads = [
            [number, "0x0"] for number in ("0", "63")
        ]  # of x86-64 and of arm64; other calls have such numbers, too
        wait_until(lambda: call.read_text().split()[:2] in reads, "the terminal to be read")

    def hang_up(self) -> None:
        """Close the terminal under the process."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def wait(self, seconds: float = 60) -> int:
        """Wait for the end of the process, whose last output nobody needs; returns its exit code."""

        def ended() -> bool:
            while self._descriptor >= 0 and select.select([self._descriptor], [], [], 0)[0]:
                if not self._read():
                    break
            pid, self._status = os.waitpid(self.pid, os.WNOHANG)
            return pid != 0

        wait_until(ended, "the command to end", seconds)
        assert self._status is not None
        return os.waitstatus_to_exitcode(self._status)

    def end(self) -> None:
        """Kill the process if it runs."""
        self.hang_up()
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(self.pid, os.WNOHANG)[0] == 0:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)

    def _read(self) -> bytes:
        try:
            return os.read(self._descriptor, 4096)
        except OSError:  # EIO: the process has closed its side
            return b""


@contextlib.contextmanager
def occ_at_terminal(environment: Mapping[str, str], *arguments: str, kind: str = "xterm") -> Iterator[Terminal]:
    """Run `occ` on a terminal of a kind, with these arguments."""
    pid, descriptor = pty.fork()
    if pid == 0:
        command = [sys.executable, "-m", "occ_app.cli", *arguments]
        os.execve(sys.executable, command, {**environment, "TERM": kind})
    terminal = Terminal(pid, descriptor)
    try:
        yield terminal
    finally:
        terminal.end()
