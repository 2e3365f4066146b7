"""The process of a worker that is kept for the next turn of its conversation.

It is a child of its worker from its start to its end and is never handed to another one. A row names its owner
(occ_app/executions/kept.py): the worker that claims the next execution of the workspace removes the row, and uses the
process if it is its own and nothing has changed. Otherwise it ends the process before anything else.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from occ_app.claude import program as claude_cli
from occ_app.claude import projects, transcript_ends
from occ_app.claude.operator_files import State, state_of
from occ_app.config.config import Config
from occ_app.config.permission_rules import Rule
from occ_app.database.database import Database
from occ_app.errors import OCCError, Unavailable
from occ_app.executions import kept as rows
from occ_app.executions.kept import KeptProcess
from occ_app.executions.records import Execution
from occ_app.system.available_memory import available_bytes
from occ_app.system.process_identity import ProcessIdentity, process_start
from occ_worker.execution.claims import Waiting

log = logging.getLogger("occ.kept")

LEAST_MEMORY_BYTES = 2_000_000_000  # available to the machine, below which no process waits for work
_END_SECONDS = 2.0  # for a process to exit by itself, which then notes the cost of its session
_KILL_SECONDS = 5.0
_CLAIM_SECONDS = 0.05  # for another worker to claim an execution
_LOOK_SECONDS = 0.001


@dataclass(frozen=True)
class Terms:
    """Everything that a process of a conversation depends on.

    It serves another turn only while all is the same. `argv` is without the session, `memory` is the text of
    CLAUDE.md.
    """

    permissions: str
    argv: tuple[str, ...]
    program: tuple[int, ...]
    files: State
    memory: str
    rules: tuple[Rule, ...]
    hooked: bool
    owner_id: str | None
    key_id: str | None


@dataclass(frozen=True)
class _Held:
    process: Waiting
    terms: Terms
    workspace: Path
    generation: int
    session_id: str
    transcript: transcript_ends.End | None
    until: float


class Kept:
    """At most one kept process, of the worker that calls this.

    `ring` wakes all workers. `stopping` returns whether the daemon stops, `memory` the available bytes.
    """

    def __init__(
        self,
        config: Config,
        db: Database,
        worker: ProcessIdentity,
        ring: Callable[[], None],
        stopping: Callable[[], bool],
        memory: Callable[[], int] = available_bytes,
    ) -> None:
        self._config = config
        self._db = db
        self._worker = worker
        self._ring = ring
        self._stopping = stopping
        self._memory = memory
        self._most = config.warm_processes - 1  # one place is left for a spare process
        self._held: _Held | None = None
        self._offered: _Held | None = None  # to the execution that this worker has claimed
        self._leaving: list[_Held] = []

    @property
    def enabled(self) -> bool:
        return self._most > 0 and self._config.keep_seconds > 0 and self._config.sandbox is None

    @property
    def processes(self) -> set[int]:
        """The pids of the live processes that this keeps, or that are to exit."""
        held = [each for each in (self._held, self._offered, *self._leaving) if each is not None]
        return {each.process.child.pid for each in held if each.process.alive}

    @property
    def waits(self) -> bool:
        """Whether this worker has a process for the next turn of a conversation."""
        return self._held is not None

    def count(self) -> int:
        """Return how many processes all workers keep. Raises OCCError."""
        return rows.living(self._db) if self.enabled else 0

    def keep(self, process: Waiting, terms: Terms, execution: Execution, session_id: str, workspace: Path) -> bool:
        """Keep the process of a successful execution; False when it is not to be kept."""
        if not self.enabled or self._stopping() or self._memory() < LEAST_MEMORY_BYTES:
            return False
        start = process_start(process.child.pid)
        if start is None:
            return False
        transcript = transcript_ends.end(projects.claude_folder(self._config.cli_environment), workspace, session_id)
        generation, until = execution.workspace_generation, time.monotonic() + self._config.keep_seconds
        identity = ProcessIdentity(self._worker.boot_id, process.child.pid, start)
        if self._held is not None:
            self._leave()
        try:
            rows.add(self._db, KeptProcess(generation, session_id, process.mark, identity, self._worker), self._most)
        except OCCError as error:
            log.warning("a process cannot be kept: %s", error)
            return False
        self._held = _Held(process, terms, workspace, generation, session_id, transcript, until)
        self._ring()  # the others end those that are too many now
        return True

    def settle(self, execution: Execution) -> None:
        """Offer an execution its conversation's process; end any other of its workspace.

        Raises OCCError when that is not possible; the execution must not start then.
        """
        if not self.enabled:
            return
        generation = execution.workspace_generation
        for leaving in [each for each in self._leaving if each.generation == generation]:
            self._leaving.remove(leaving)
            self._end(leaving)
        held = self._held if self._held is not None and self._held.generation == generation else None
        row = rows.remove(self._db, generation)
        own = held is not None and row is not None and row.mark == held.process.mark
        if held is not None:
            self._held = None
            if row is not None and own and not row.revoked:
                self._offered = held
                return
            self._end(held)
        if row is not None and not own:
            _terminate(row.process)

    def take(self, execution: Execution, terms: Terms | None, workspace: Path) -> Waiting | None:
        """Return the offered process if it serves an execution on these terms, or end it.

        The process is the caller's from here on, and has its first request.
        """
        held, self._offered = self._offered, None
        if held is None:
            return None
        reason = self._hindrance(held, execution, terms, workspace)
        if reason is not None:
            log.info("execution %s starts a process: %s", execution.execution_id, reason)
            self._end(held)
            return None
        held.process.ask_again(workspace)
        return held.process

    def release(self) -> None:
        """End the offered process that its execution did not take."""
        held, self._offered = self._offered, None
        if held is not None:
            self._end(held)

    def drop(self) -> None:
        """End the process that was kept for an execution which then failed."""
        self._leave()

    def look(self) -> None:
        """End the process once it is over its time, useless or in the way.

        Raises OCCError when that cannot be known.
        """
        self._reap()
        held = self._held
        if held is None:
            return
        useless = not held.process.alive or self._stopping() or time.monotonic() > held.until
        useless = useless or not held.process.is_in(held.workspace)
        useless = useless or self._memory() < LEAST_MEMORY_BYTES or self._is_outdated(held.terms)
        if useless or not rows.is_valid(self._db, held.generation, held.process.mark):
            self._leave()

    def let_owner_claim(self, wake: int) -> None:
        """Have the idle worker with a queued execution's process claim it first."""
        if not self.enabled or not rows.is_awaited(self._db, self._worker):
            return
        self._ring()
        await_claim(lambda: rows.is_awaited(self._db, self._worker), wake)

    def close(self) -> None:
        """End all of them."""
        self._leave()
        for each in self._leaving:
            each.process.await_exit(_END_SECONDS)
        self._reap()

    def _hindrance(self, held: _Held, execution: Execution, terms: Terms | None, workspace: Path) -> str | None:
        """Return why a process cannot serve an execution; None when it can."""
        if terms is None or execution.resume_session_id != held.session_id:
            return "a kept process cannot serve it"
        if terms != held.terms:
            changed = ", ".join(name for name in vars(terms) if getattr(terms, name) != getattr(held.terms, name))
            return f"since the last turn these have changed: {changed}"
        if not held.process.alive or self._stopping() or time.monotonic() > held.until:
            return "the kept process is over"
        if held.process.is_old:
            return "the kept process is old"
        if not held.process.is_in(workspace):
            return "its workspace was exchanged"
        if held.transcript is not None and transcript_ends.has_grown(held.transcript):
            return "another process continued the session"
        return None

    def _is_outdated(self, terms: Terms) -> bool:
        program = claude_cli.file_identity(terms.argv[0])
        return tuple(program) != terms.program or state_of(self._config.cli_environment) != terms.files

    def _leave(self) -> None:
        """Have the process exit without waiting; a worker that resumes it waits."""
        held, self._held = self._held, None
        if held is not None:
            held.process.leave()
            self._leaving.append(replace(held, until=time.monotonic() + _END_SECONDS))
            with contextlib.suppress(OCCError):  # a held database: its end removes the row
                rows.withdraw(self._db, held.generation, held.process.mark)

    def _reap(self) -> None:
        """End the processes that were to exit and had the time, and remove their rows."""
        leaving, self._leaving = self._leaving, []
        for held in leaving:
            if held.process.alive and time.monotonic() < held.until:
                self._leaving.append(held)
                continue
            held.process.child.close_alone()
            with contextlib.suppress(OCCError):  # a row without a process is removed with the next one there
                rows.forget(self._db, held.generation, held.process.mark)

    def _end(self, held: _Held) -> None:
        """End a process now, before another one resumes its session."""
        held.process.leave()
        held.process.await_exit(_END_SECONDS)
        held.process.child.close_alone()


def await_claim(unclaimed: Callable[[], bool], wake: int) -> None:
    """Wait at most 50 ms for another worker's claim, or until `wake` is readable.

    Workers send each other no event for a claim, so the rows are read each millisecond.
    """
    deadline = time.monotonic() + _CLAIM_SECONDS
    while time.monotonic() < deadline and unclaimed():
        if select.select([wake], [], [], _LOOK_SECONDS)[0]:
            return


def _terminate(process: ProcessIdentity) -> None:
    """End a process of another worker's. Raises OCCError when it does not end."""
    if not process.alive():
        return
    try:
        descriptor = os.pidfd_open(process.pid)
    except OSError:
        return
    try:
        for number, seconds in ((signal.SIGTERM, _END_SECONDS), (signal.SIGKILL, _KILL_SECONDS)):
            if not process.alive():  # by its start, so that it is no other one
                return
            signal.pidfd_send_signal(descriptor, number)
            poller = select.poll()
            poller.register(descriptor, select.POLLIN)
            poller.poll(1000 * seconds)
    except ProcessLookupError:
        return
    finally:
        os.close(descriptor)
    if process.alive():
        raise Unavailable("BUSY", f"The process {process.pid} of the last turn does not end; `ps -ef` shows it.")
