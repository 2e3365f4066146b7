"""The spare process of a worker: a CLI that loads before its execution exists.

A spare serves one execution that begins a session at the default permissions. It is a child of its worker from its
start to its end, like a CLI that starts for an execution: it dies with that worker and is never handed to another one.
Locks of files limit how many there are in all workers.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from occ_app.claude import operator_files
from occ_app.claude import program as claude_cli
from occ_app.config.config import Config
from occ_app.database.database import Database
from occ_app.errors import OCCError
from occ_app.system.available_memory import available_bytes
from occ_worker.execution import command, versions
from occ_worker.execution.child import Child, Launcher
from occ_worker.execution.claims import Kind, Spare
from occ_worker.execution.kept import LEAST_MEMORY_BYTES, Kept

log = logging.getLogger("occ.spares")

_OLDEST_SECONDS = 1800.0  # then a spare is replaced: it has read more files of the operator's than OCC looks at
_FIRST_PAUSE, _LONGEST_PAUSE = 10.0, 3600.0  # seconds after a spare that failed, doubled with each in a row


class Spares:
    """At most one spare process of this worker, and the one that is `kept`.

    `stopping` returns whether the daemon stops.
    """

    def __init__(
        self,
        config: Config,
        db: Database,
        launcher: Launcher,
        environment: Mapping[str, str],
        kept: Kept,
        stopping: Callable[[], bool],
        memory: Callable[[], int] = available_bytes,
    ) -> None:
        self._config = config
        self._db = db
        self.kept = kept
        self._launcher = launcher
        # Only releases that know CLAUDE_CODE_DISABLE_FILE_MENTIONS start ahead.
        self._environment = {name: value for name, value in environment.items() if name != command.ALL_ATTACHMENTS}
        self._stopping = stopping
        self._memory = memory
        self._folder = config.run / "warm"
        self._spare: Spare | None = None
        self._leaving: list[Spare] = []
        self._slot, self._place = -1, 0
        self._failures = 0
        self._not_before = 0.0
        untouched = config.sandbox is None and not config.trust_workspaces and config.ceiling != "plan"
        self._limit = self._room = config.warm_processes if untouched else 0

    @property
    def processes(self) -> set[int]:
        """Return the pids of the live processes that wait for an execution.

        They are the spare, the kept one, and that of the launcher.
        """
        spares = [*self._leaving, *([] if self._spare is None else [self._spare])]
        waiting = {spare.child.pid for spare in spares if spare.alive}
        return waiting | self.kept.processes | self._launcher.processes

    def keep(self) -> bool:
        """Start, replace or end the spare.

        Returns whether workers with a spare are to be woken before this one. For an idle worker, called now and then.
        """
        if self._limit == 0:
            return False
        self._reap()
        self.kept.look()
        self._room = self._limit - self.kept.count()
        if self._spare is not None and self._place >= self._room:
            self._end()
        if self._spare is not None and not self._spare.alive:
            self._fail("the spare process exited")
        if self._spare is None and (self._stopping() or time.monotonic() < self._not_before):
            return False
        if self._spare is None and not self._take_slot():
            return True
        kind = self._kind()
        if self._spare is not None and self._is_outdated(self._spare, kind):
            self._end()
        if self._spare is None and kind is not None and self._take_slot():
            self._start(kind)
        if self._spare is None:
            self._free_slot()
        return False

    def spare_memory(self) -> None:
        """End processes when other work needs the memory.

        For a worker with an execution, which does not call `keep`.
        """
        with contextlib.suppress(OCCError):  # a held database is looked at again
            self.kept.look()
        if self._spare is not None and self._memory() < LEAST_MEMORY_BYTES:
            self._end()

    def take(self, argv: Sequence[str]) -> Spare | None:
        """Return the spare for an execution whose CLI has these arguments.

        None when there is none for it. The spare is the caller's from here on.
        """
        if self._spare is None or list(self._spare.kind.argv) != list(argv):
            return None
        if not self._spare.alive or self._is_outdated(self._spare, self._kind()):
            self._end()
            return None
        spare, self._spare = self._spare, None
        self._free_slot()
        return spare

    def served(self) -> None:
        """Note that a spare answered its claim."""
        self._failures = 0

    def reject(self, spare: Spare, reason: str) -> None:
        """End a spare that was taken and cannot be used."""
        spare.child.close(self.processes)
        self._pause(reason)

    def close(self) -> None:
        """End the spare, and the process that is kept."""
        self._end()
        self.kept.close()
        for spare in self._leaving:
            spare.await_exit()
        self._reap()

    def _kind(self) -> Kind | None:
        """Return the kind of a spare that would start now.

        None when none is to start, or to stay.
        """
        path = claude_cli.find(self._config)
        if path is None or self._stopping() or self._memory() < LEAST_MEMORY_BYTES:
            return None
        if not claude_cli.waits_for_claim(versions.noted(self._db, path)):
            return None
        return Kind(
            tuple(command.default_command(path, self._config)),
            tuple(claude_cli.file_identity(path)),
            operator_files.state_of(self._config.cli_environment),
        )

    def _is_outdated(self, spare: Spare, kind: Kind | None) -> bool:
        return spare.kind != kind or time.monotonic() > spare.started + _OLDEST_SECONDS

    def _start(self, kind: Kind) -> None:
        parking = self._folder / "empty"
        child = None
        try:
            parking.mkdir(mode=0o700, exist_ok=True)
            mark = f"spare-{uuid.uuid4()}"
            child = Child(self._environment)
            child.become([*kind.argv, command.AWAIT_CLAIM], parking, mark)
            self._spare = Spare(child, kind, mark)
        except (OSError, ValueError) as error:
            if child is not None:
                child.close(self.processes)
            self._pause(f"a spare process cannot be started: {error}")

    def _fail(self, reason: str) -> None:
        self._end()
        self._pause(reason)

    def _pause(self, reason: str) -> None:
        pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**self._failures)
        self._failures = min(self._failures + 1, 16)
        self._not_before = time.monotonic() + pause
        log.warning("%s; there is no other one for %g s", reason, pause)

    def _end(self) -> None:
        """Have the spare exit, without waiting for it."""
        if self._spare is not None:
            self._spare.leave()
            self._leaving.append(self._spare)
            self._spare = None
        self._free_slot()

    def _reap(self) -> None:
        """End the processes that were to exit; they had the time since the last look."""
        leaving, self._leaving = self._leaving, []
        for spare in leaving:
            spare.child.close(self.processes)

    def _take_slot(self) -> bool:
        """Take one of the places that all workers share.

        The kernel frees that of a killed worker.
        """
        if self._slot >= 0:
            return True
        for number in range(self._room):
            try:
                slot = os.open(self._slot_path(number), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except OSError:
                return False
            try:
                fcntl.flock(slot, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(slot)
                continue
            self._slot, self._place = slot, number
            return True
        return False

    def _slot_path(self, number: int) -> Path:
        return self._folder / f"slot-{number}"

    def _free_slot(self) -> None:
        if self._slot >= 0:
            os.close(self._slot)
            self._slot = -1
