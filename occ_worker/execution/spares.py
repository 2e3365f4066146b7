"""The spare process of a worker: a CLI that loads before its execution exists.

A spare serves one execution that begins a session with the permissions for which the spare started: its tools and its
mode cannot change later. It is a child of its worker from its start to its end, like a CLI that starts for an
execution: it dies with that worker and is never handed to another one. Locks of files bound how many there are in all
workers.
"""

from __future__ import annotations

import contextlib
import logging
import time
import uuid
from collections.abc import Callable, Mapping, Sequence

from occ_app.claude import operator_files
from occ_app.claude import program as claude_cli
from occ_app.config.config import Config
from occ_app.database.database import Database
from occ_app.errors import OCCError
from occ_app.executions import waiting
from occ_app.system.available_memory import available_bytes
from occ_worker.execution import command, levels, versions
from occ_worker.execution.child import Child, Launcher
from occ_worker.execution.claims import Kind, Spare
from occ_worker.execution.kept import LEAST_MEMORY_BYTES, Kept, await_claim
from occ_worker.execution.places import Places

log = logging.getLogger("occ.spares")

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
        self._places = Places(self._folder)
        self._failures = 0
        self._not_before = 0.0
        untouched = config.sandbox is None and not config.trust_workspaces
        self._limit = self._room = config.warm_processes if untouched else 0

    @property
    def processes(self) -> set[int]:
        """Return the pids of the live processes that wait for an execution.

        They are the spare, the kept one, and that of the launcher.
        """
        spares = [*self._leaving, *([] if self._spare is None else [self._spare])]
        pids = {spare.child.pid for spare in spares if spare.alive}
        return pids | self.kept.processes | self._launcher.processes

    def keep(self) -> bool:
        """Start, replace or end the spare.

        Returns whether workers with a spare are to be woken before this one. For an idle worker, called now and then.
        """
        if self._limit == 0:
            return False
        self._reap()
        self.kept.look()
        self._room = min(self._limit - self.kept.count(), self._config.workers)
        if self._spare is not None and self._places.number >= self._room:
            self._end()
        if self._spare is not None and not self._spare.alive:
            self._fail("the spare process exited")
        if self._spare is None and (self._stopping() or time.monotonic() < self._not_before):
            return False
        if self._spare is None and not self._places.take(self._room):
            return True
        kind = self._kind(self._level())
        if self._spare is not None and self._is_outdated(self._spare, kind):
            self._end()
        if self._spare is None and kind is not None and self._places.take(self._room):
            self._start(kind)
        if self._spare is None:
            self._places.free()
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
        if not self._spare.alive or self._is_outdated(self._spare, self._kind(self._spare.kind.level)):
            self._end()
            return None
        spare, self._spare = self._spare, None
        self._places.free()
        return spare

    def let_other_claim(self, wake: int, ring: Callable[[], None]) -> None:
        """Have a better worker claim the next execution before this one does.

        That is one with the right spare, or else one without any: this spare then waits for its own execution. `ring`
        wakes the next worker. Raises OCCError.
        """
        if self._spare is None or self.kept.waits:
            return
        queued = waiting.next_queued(self._db)
        if queued is None or not self._others_are_better(queued[1]):
            return
        ring()
        await_claim(lambda: waiting.next_queued(self._db) == queued, wake)

    def _others_are_better(self, permissions: str | None) -> bool:
        """Return whether a free worker is better for an execution.

        `permissions` is None for one that no spare serves.
        """
        level = None if permissions is None else levels.of(permissions)
        if self._spare is not None and self._spare.kind.level == level:
            return False
        busy = waiting.running_workers(self._db)
        free = [other.level for other in self._places.others(self._limit) if other.worker not in busy]
        return level in free or len(busy) + len(free) + 1 < self._config.workers

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

    def _level(self) -> str:
        """Return the permissions that this worker's spare should have.

        The places are for all wanted permissions, as far as there is room, and for the newest first. A spare with
        wanted permissions stays, except one of two with the same permissions while others are missing.
        """
        wanted = levels.wanted(self._db, self._config.ceiling)
        others = list(self._places.others(self._room))
        missing = [level for level in wanted if level not in [other.level for other in others]]
        if self._spare is not None and self._spare.kind.level in wanted:
            present = self._spare.kind.level
            if not missing or not any((o.level, o.number < self._places.number) == (present, True) for o in others):
                return present
        choice = missing or wanted
        return choice[self._places.number % len(choice)]

    def _kind(self, level: str) -> Kind | None:
        """Return the kind of a spare that would start now.

        None when none is to start, or to stay.
        """
        path = claude_cli.find(self._config)
        if path is None or self._stopping() or self._memory() < LEAST_MEMORY_BYTES:
            return None
        if not claude_cli.waits_for_claim(versions.noted(self._db, path)):
            return None
        return Kind(
            level,
            tuple(command.plain_command(path, level, self._config)),
            tuple(claude_cli.file_identity(path)),
            operator_files.state_of(self._config.cli_environment),
        )

    def _is_outdated(self, spare: Spare, kind: Kind | None) -> bool:
        return spare.kind != kind or spare.is_old

    def _start(self, kind: Kind) -> None:
        parking = self._folder / "empty"
        child = None
        try:
            parking.mkdir(mode=0o700, exist_ok=True)
            mark = f"spare-{uuid.uuid4()}"
            child = Child(self._environment)
            child.become([*kind.argv, command.AWAIT_CLAIM], parking, mark)
            self._spare = Spare(child, kind, mark)
            self._places.note(kind.level)
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
        self._places.free()

    def _reap(self) -> None:
        """End the processes that were to exit; they had the time since the last look."""
        leaving, self._leaving = self._leaving, []
        for spare in leaving:
            spare.child.close(self.processes)
