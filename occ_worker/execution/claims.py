"""A process of the CLI that waits for input.

It is a spare without a workspace, or one that is kept for its next turn. Until its prompt is written no execution
depends on it: if anything fails before, the execution starts another process instead.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from occ_app.claude.operator_files import State
from occ_worker.execution import command
from occ_worker.execution.child import Child
from occ_worker.execution.lines import Lines

OLDEST_SECONDS = 1800.0
_READ_BYTES = 1 << 16
_STILL_SECONDS = 1.0  # without an answer and without using the processor, after which a spare counts as stuck
_ANSWER_SECONDS = 10.0  # for one that still loads: another one would take as long on a machine so busy
_LEAVE_SECONDS = 0.3  # for an unused one to exit after its input is closed
_CLAIM, _MODEL, _MODE = "occ-claim", "occ-model", "occ-mode"
_OF_A_TURN = ("assistant", "user", "stream_event", "control_request", "result")


@dataclass(frozen=True)
class Kind:
    """Everything that a spare read when it started.

    It serves an execution only while all of it is the same. `level` is one of the permissions, of which
    `argv` has the tools and the mode.
    """

    level: str
    argv: tuple[str, ...]
    program: tuple[int, ...]
    files: State


class Waiting:
    """A process of the CLI that waits for input.

    `mark` is in its environment, `lines` cuts its output.
    """

    def __init__(self, child: Child, mark: str, lines: Lines | None = None) -> None:
        self.child = child
        self.mark = mark
        self.lines = lines or Lines()
        self._input = b""
        self._awaited: set[str] = set()
        self._refused = False
        self._workspace = Path()

    @property
    def is_old(self) -> bool:
        """Whether it is to serve nothing more.

        It has read more files of the operator's than OCC looks at.
        """
        return time.monotonic() > self.child.began + OLDEST_SECONDS

    @property
    def alive(self) -> bool:
        return self.child.returncode() is None

    def ask_again(self, workspace: Path) -> None:
        """Set the mode in which its next turn begins; `confirmed` returns its answer."""
        self._ask(workspace, {_MODE: command.mode_line(_MODE)})

    def _ask(self, workspace: Path, lines: Mapping[str, bytes]) -> None:
        self._workspace = workspace
        self._awaited, self._input = set(lines), b"".join(lines.values())
        self._write()

    def confirmed(self, wake: int) -> bool:
        """Wait for its reply.

        False when it refuses, exits or is stuck, or `wake` is readable.
        """
        poller = select.poll()
        poller.register(self.child.stdout, select.POLLIN)
        poller.register(self.child.exited, select.POLLIN)
        poller.register(wake, select.POLLIN)
        if self._input:
            poller.register(self.child.stdin, select.POLLOUT)
        deadline, used = time.monotonic() + _ANSWER_SECONDS, _processor_use(self.child.pid)[1]
        while self._awaited and not self._refused:
            ready = {descriptor for descriptor, _ in poller.poll(1000 * _STILL_SECONDS)}
            if not ready:
                before, (waits, used) = used, _processor_use(self.child.pid)
                if waits and used == before:
                    return False
            if ready & {self.child.exited, wake} or time.monotonic() > deadline:
                return False
            if self.child.stdin.fileno() in ready:
                self._write()
                if not self._input:
                    poller.unregister(self.child.stdin)
            if self.child.stdout.fileno() in ready:
                self._read()
        return not self._refused and self.is_in(self._workspace)

    def leave(self) -> None:
        """Have it exit by itself, soon: it then removes the files that name it."""
        with contextlib.suppress(OSError):
            self.child.stdin.close()

    def await_exit(self, seconds: float = _LEAVE_SECONDS) -> None:
        """Wait for it to exit, for a moment."""
        if self.alive:
            poller = select.poll()
            poller.register(self.child.exited, select.POLLIN)
            poller.poll(1000 * seconds)

    def _write(self) -> None:
        try:
            self._input = self._input[os.write(self.child.stdin.fileno(), self._input) :]
        except BlockingIOError:
            return
        except OSError:
            self._refused = True

    def _read(self) -> None:
        try:
            data = os.read(self.child.stdout.fileno(), _READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._refused |= not data
        for line in self.lines.feed(data):
            self._take(line)

    def _take(self, line: bytes) -> None:
        """Look for the answers in a line of its output."""
        try:
            content: Any = json.loads(line)
            if content["type"] in _OF_A_TURN:  # it took something for a prompt
                self._refused = True
            answer = content["response"]
            request_id, subtype = answer["request_id"], answer["subtype"]
        except (ValueError, TypeError, KeyError):
            return
        if request_id not in self._awaited:
            return
        self._awaited.discard(request_id)
        self._refused |= subtype != "success"

    def is_in(self, workspace: Path) -> bool:
        """Return whether it is in a workspace, as the kernel sees it.

        A workspace that was exchanged is another.
        """
        try:
            return os.path.samefile(f"/proc/{self.child.pid}/cwd", workspace)
        except OSError:
            return False


class Spare(Waiting):
    """A process of the CLI that has no workspace yet."""

    def __init__(self, child: Child, kind: Kind, mark: str) -> None:
        super().__init__(child, mark)
        self.kind = kind

    def claim(self, workspace: Path, memory: str, model: str | None) -> None:
        """Give it a workspace, once ever, and the model if one is requested.

        `confirmed` returns its reply.
        """
        lines = {_CLAIM: command.claim_line(_CLAIM, workspace, memory)}
        self._ask(workspace, lines if model is None else lines | {_MODEL: command.model_line(_MODEL, model)})


def _processor_use(pid: int) -> tuple[bool, int]:
    """Return whether a process waits, and the processor time it has used.

    One that waits for the processor or the disk does not count as waiting. The time is in the kernel's ticks.
    """
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2].split()
    except (OSError, ValueError):
        return True, 0
    return state not in (b"R", b"D"), int(fields[10]) + int(fields[11])
