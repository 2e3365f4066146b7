"""The process of one execution: a spare that gets its workspace, or a new one."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace

from occ_app.claude import program as claude_cli
from occ_app.claude import sandbox
from occ_app.errors import OCCError
from occ_app.executions import process_marks
from occ_app.executions.records import Execution, Outcome
from occ_app.system import strays
from occ_worker.execution import command, keeping, levels, versions
from occ_worker.execution.child import Child
from occ_worker.execution.claims import Spare, Waiting
from occ_worker.execution.context import ExecutionContext
from occ_worker.execution.lines import Lines
from occ_worker.execution.program import Program

log = logging.getLogger("occ.starting")


class Process:
    """A process of the CLI for one execution; it loads, or is claimed, from here on.

    `ready` comes before the prompt. After it, `lines` has the beginning of a line that was read of its output.
    `is_over` is set once the execution has ended without an error of OCC's: a kept process stays then.
    """

    def __init__(self, context: ExecutionContext, execution: Execution, program: Program) -> None:
        self._context = context
        self._execution = execution
        self._program = program
        self._terms = keeping.terms(context, execution, program)  # before it starts: it reads all that later
        self._former = context.spares.kept.take(execution, self._terms, program.workspace)
        self._begins = False  # whether it begins a conversation that a spare process can serve
        self._spare = self._claimed() if self._former is None else None
        self._kept = self.is_over = False
        self.lines = Lines()
        waiting = self._waiting
        self.mark = execution.execution_id if waiting is None else waiting.mark
        self.child = self._started() if waiting is None else waiting.child

    @property
    def is_claimed(self) -> bool:
        """Return whether an existing process serves the execution, as far as is known."""
        return self._waiting is not None

    @property
    def is_kept(self) -> bool:
        """Whether it served the turn before, as far as is known."""
        return self._former is not None

    @property
    def _waiting(self) -> Waiting | None:
        return self._former or self._spare

    def note(self) -> None:
        """Map the mark of a claimed process to the execution.

        It also notes the permissions of a new conversation. For the caller's next `db.sync()`.
        """
        if self._begins:
            with contextlib.suppress(OCCError):  # a held database: a later conversation is noted
                levels.note(self._context.db, self._execution.permissions)
        if self.is_claimed:
            try:
                process_marks.note(self._context.db, self.mark, self._execution.number)
            except OCCError as error:
                self._replace(f"the mark of its process could not be stored: {error}")

    def ready(self) -> None:
        """Wait until its process answers.

        One that does not is replaced by a process that starts now.
        """
        waiting = self._waiting
        if waiting is None:
            return
        if waiting.confirmed(self._context.wake):
            self.lines = waiting.lines
            if self.is_kept:
                log.info("execution %s has the kept process %d", self._execution.execution_id, self.child.pid)
            else:
                self._context.spares.served()
                log.info("execution %s has the spare process %d", self._execution.execution_id, self.child.pid)
        else:
            self._replace("its process did not answer")

    def keep(self, outcome: Outcome | None, tools: Set[str]) -> bool:
        """Keep the process for the next turn.

        False when it is to end with this one, which called these tools.
        """
        session_id = None if outcome is None else outcome.data.get("sessionId")
        succeeded = outcome is not None and outcome.state == "succeeded"
        if self._terms is None or not succeeded or session_id is None:
            return False
        if not tools <= keeping.STATELESS_TOOLS or self._left_something():
            return False
        process = self._waiting or Waiting(self.child, self.mark, self.lines)
        kept = self._context.spares.kept
        self._kept = kept.keep(process, self._terms, self._execution, session_id, self._program.workspace)
        return self._kept

    def close(self) -> None:
        """End it and all processes it started, unless it is kept."""
        if self._kept and self.is_over:
            return
        if self._kept:
            self._context.spares.kept.drop()
        else:
            self.child.close(self._context.spares.processes)

    def _left_something(self) -> bool:
        """Return whether a process of this turn is left.

        The CLI started it, or it became the worker's.
        """
        known = self._context.spares.processes | {self.child.pid}
        return bool(strays.children_of(self.child.pid)) or not known.issuperset(strays.children_of_this())

    def _replace(self, reason: str) -> None:
        former, spare = self._former, self._spare
        self._former = self._spare = None
        if former is not None:
            log.warning("execution %s starts a process: %s", self._execution.execution_id, reason)
            former.child.close_alone()
        elif spare is not None:
            self._context.spares.reject(spare, reason)
        self.mark = self._execution.execution_id
        self.child = self._started()

    def _claimed(self) -> Spare | None:
        """Return a spare that this execution may use, with its claim written.

        None when there is none. A spare can be given a model, and a memory. Everything else that an execution may
        request is in the arguments.
        """
        program, model = self._program, self._execution.requested_model
        if program.resumable.parked is not None:
            return None
        level = levels.of(self._execution.permissions)
        plain = command.command(
            program.path,
            replace(self._execution, requested_model=None),
            None,
            self._context.config,
            program.resumable,
            trusted=program.trusted,
            servers=program.servers,
        )
        self._begins = plain == command.plain_command(program.path, level, self._context.config)
        spare = self._context.spares.take(plain) if self._begins else None
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
