"""The process of one execution: a spare that is given its workspace, or one that starts for it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from occ_app.claude import program as claude_cli
from occ_app.claude import sandbox
from occ_app.errors import OCCError
from occ_app.executions import process_marks
from occ_app.executions.records import Execution
from occ_worker.execution import command, versions
from occ_worker.execution.child import Child
from occ_worker.execution.claims import Spare
from occ_worker.execution.context import ExecutionContext
from occ_worker.execution.lines import Lines
from occ_worker.execution.resumable import Resumable

log = logging.getLogger("occ.starting")


@dataclass(frozen=True)
class Program:
    """The CLI as one execution needs it: `path`, in `workspace`, with files that name its memory and its servers."""

    path: str
    workspace: Path
    trusted: bool
    memory: Path | None
    servers: Path | None
    resumable: Resumable


class Process:
    """A process of the CLI for one execution, which loads or is claimed from here on; `ready` comes before the prompt.

    After `ready`, `lines` has the beginning of a line that was read of its output.
    """

    def __init__(self, context: ExecutionContext, execution: Execution, program: Program) -> None:
        self._context = context
        self._execution = execution
        self._program = program
        self._spare = self._claimed()
        self.lines = Lines()
        self.child = self._started() if self._spare is None else self._spare.child

    @property
    def is_claimed(self) -> bool:
        """Whether a spare serves the execution, as far as is known."""
        return self._spare is not None

    def note(self) -> None:
        """Map the mark of a spare to the execution, for the caller's next `db.sync()`."""
        if self._spare is not None:
            try:
                process_marks.note(self._context.db, self._spare.mark, self._execution.number)
            except OCCError as error:
                self._replace(f"the mark of a spare process could not be stored: {error}")

    def ready(self) -> None:
        """Wait until a spare has its workspace; one that does not answer is replaced by a process that starts now."""
        if self._spare is None:
            return
        if self._spare.confirmed(self._context.wake):
            self._context.spares.served()
            self.lines = self._spare.lines
            log.info("execution %s has the spare process %d", self._execution.execution_id, self.child.pid)
        else:
            self._replace("a spare process did not take its workspace")

    def close(self) -> None:
        """End it and all processes it started; harmless when repeated."""
        self.child.close(self._context.spares.processes)

    def _replace(self, reason: str) -> None:
        spare, self._spare = self._spare, None
        if spare is not None:
            self._context.spares.reject(spare, reason)
            self.child = self._started()

    def _claimed(self) -> Spare | None:
        """Return a spare that this execution may use, with its claim written; None when there is none.

        A spare can be given a model, and a memory. Everything else that an execution may request is in the arguments.
        """
        program, model = self._program, self._execution.requested_model
        if program.resumable.parked is not None:
            return None
        plain = command.command(
            program.path,
            replace(self._execution, requested_model=None),
            None,
            self._context.config,
            program.resumable,
            trusted=program.trusted,
            servers=program.servers,
        )
        spare = self._context.spares.take(plain)
        if spare is None:
            return None
        try:
            text = "" if program.memory is None else program.memory.read_text()
            spare.claim(program.workspace, text, model)
        except (OSError, ValueError) as error:
            self._context.spares.reject(spare, f"a spare process could not be claimed: {error}")
            return None
        return spare

    def _started(self) -> Child:
        program, context = self._program, self._context
        argv = command.command(
            program.path,
            self._execution,
            program.memory,
            context.config,
            program.resumable,
            trusted=program.trusted,
            servers=program.servers,
        )
        readable = [file for file in (program.memory, program.servers) if file is not None]
        return context.launcher.start(
            sandbox.wrapped(argv, program.workspace, context.config, readable),
            program.workspace,
            self._execution.execution_id,
            self._unset(),
            self._more(),
        )

    def _unset(self) -> Sequence[str]:
        version = versions.noted(self._context.db, self._program.path)
        unset = (command.ALL_ATTACHMENTS,) if claude_cli.knows_file_mentions(version) else ()
        return (*unset, command.NO_AUTO_MEMORY) if self._program.trusted else unset

    def _more(self) -> Mapping[str, str]:
        return {} if self._program.resumable.parked is None else command.RESUME_INTERRUPTED
