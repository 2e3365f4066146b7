"""One execution from claim to final event: whether it can start, and its end."""

from __future__ import annotations

import contextlib
import logging
import select
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from occ_app.claude import program as claude_cli
from occ_app.claude import projects
from occ_app.config.config import Config
from occ_app.errors import OCCError
from occ_app.executions import lifecycle, parking
from occ_app.executions import queries as executions
from occ_app.executions.records import Execution, Outcome
from occ_app.home import daemon
from occ_app.streams import tail
from occ_app.system import logs
from occ_app.workspaces import folders, memory
from occ_app.workspaces import workspace as workspaces
from occ_app.workspaces.workspace import Workspace
from occ_worker import changes, rewinding
from occ_worker.execution import servers, verdicts, versions
from occ_worker.execution.context import ExecutionContext
from occ_worker.execution.deferral import Suspension
from occ_worker.execution.driver import Driver
from occ_worker.execution.program import Program
from occ_worker.execution.resumable import Resumable
from occ_worker.execution.starting import Process
from occ_worker.recorder import RETRY_SECONDS

log = logging.getLogger("occ.runner")


def run_next(context: ExecutionContext) -> bool:
    """Claim the oldest execution that can run and run it; False when there was none."""
    if context.stopping() or not daemon.takes_work(context.config):
        return False
    kept = context.spares.kept
    with contextlib.suppress(OCCError):  # a held database: the claim ends the process of its conversation
        kept.let_owner_claim(context.wake)
        context.spares.let_other_claim(context.wake, context.ring_queue)
    execution = lifecycle.claim(context.db, context.identity, lambda: daemon.takes_work(context.config))
    if execution is None:
        return False
    with logs.execution(execution.execution_id):
        try:
            _run_to_end(context, execution)
        finally:
            kept.release()
    return True


def run_called(context: ExecutionContext) -> None:
    """Run the turn that waits for this idle worker's process, when its bell rang."""
    context.bell.hush()
    if context.spares.kept.waits:
        run_next(context)


def _run_to_end(context: ExecutionContext, execution: Execution) -> None:
    """Run a claimed execution and write its outcome down."""
    snapshot = _StartSnapshot(execution.start_tree)
    try:
        outcome = _settled(context, execution) or _run(context, execution, snapshot)
        if isinstance(outcome, Suspension):
            parked = _park(context, execution, outcome)
            if parked is None:
                context.launcher.prepare()
                return
            outcome = parked
    except BaseException:
        log.exception("internal error while running execution %s", execution.execution_id)
        _finish(context, execution, Outcome.failure("INTERNAL", "OCC failed to run this; the worker's log says why."))
        _record_changes(context, execution, snapshot)
        raise
    try:
        _finish(context, execution, outcome)
    except (sqlite3.Error, ValueError):
        log.exception("execution %s: its outcome could not be stored as it is", execution.execution_id)
        _finish(
            context, execution, Outcome.failure("INTERNAL", "OCC could not store how this ended; the log says why.")
        )
    context.launcher.prepare()
    _record_changes(context, execution, snapshot)


def _park(context: ExecutionContext, execution: Execution, suspension: Suspension) -> Outcome | None:
    """Record that an execution is parked; returns its outcome if it cannot be.

    However long the database is held; a stop leaves it to the next start, which finds the call in its rows.
    """
    while True:
        try:
            seq = parking.park(context.db, execution.number, suspension.spent, context.config.approval_seconds)
            break
        except OCCError as error:
            log.error("execution %s cannot be parked yet: %s", execution.execution_id, error)
        if context.stopping():
            return None
        select.select([context.wake], [], [], RETRY_SECONDS)
    if seq:
        context.readers.ring(tail.execution_key(execution.number))
        log.info("execution %s is parked", execution.execution_id)
        _wake_next(context)
        return None
    code = executions.cancel_code(context.db, execution.number)
    outcome = Outcome.failure(code or "INTERNAL", "The execution was cancelled while it waited for a person.")
    return outcome if suspension.spent is None else suspension.spent.with_outcome(outcome)


def _finish(context: ExecutionContext, execution: Execution, outcome: Outcome) -> None:
    """Record the end, however long it takes; a stop leaves it to the next start."""
    while True:
        try:
            seq = lifecycle.finish(context.db, execution.number, outcome)
            break
        except OCCError as error:
            log.error("execution %s: its end cannot be stored yet: %s", execution.execution_id, error)
        if context.stopping():
            return
        select.select([context.wake], [], [], RETRY_SECONDS)
    context.readers.ring(tail.execution_key(execution.number), outcome.news(seq))
    log.info("execution %s %s", execution.execution_id, outcome.data.get("code", outcome.state))
    _wake_next(context)


def _wake_next(context: ExecutionContext) -> None:
    with contextlib.suppress(OCCError):  # control also looks for queued executions
        if executions.claimable(context.db):
            context.ring_queue()


@dataclass
class _StartSnapshot:
    """The tree of the snapshot before an execution, once there is one."""

    tree: str | None = None


def _record_changes(context: ExecutionContext, execution: Execution, snapshot: _StartSnapshot) -> None:
    """Store an ended execution's changes; a stop leaves that to the next start."""
    if snapshot.tree is None:
        return
    interrupt = changes.interrupts_when(context.stopping)
    while True:
        try:
            changes.record_end(context.db, context.snapshots, execution, snapshot.tree, interrupt=interrupt)
            break
        except changes.Interrupted:
            return
        except OCCError as error:
            log.error("execution %s: its changes cannot be stored yet: %s", execution.execution_id, error)
        if context.stopping():
            return
        select.select([context.wake], [], [], RETRY_SECONDS)
    context.readers.ring(tail.execution_key(execution.number))
    _wake_next(context)


def _settled(context: ExecutionContext, execution: Execution) -> Outcome | None:
    """End the process of the turn before, or prepare it; returns a failure, if any."""
    try:
        context.spares.kept.settle(execution)
    except OCCError as error:
        return Outcome.failure("INTERNAL", f"The process of the last turn could not be ended: {error}")
    return None


def _run(context: ExecutionContext, execution: Execution, snapshot: _StartSnapshot) -> Outcome | Suspension:
    row = workspaces.numbered(context.db, execution.workspace_generation)
    if row is None or (not row.is_project and not Path(row.path).is_dir()):
        return Outcome.failure("WORKSPACE_MISSING", lifecycle.WORKSPACE_REMOVED)
    # From here on it has the permissions that it may have now.
    execution = replace(execution, permissions=verdicts.level(context.config, execution, row.permissions))
    workspace, trusted = Path(row.path), row.trusted if row.is_project else context.config.trust_workspaces
    reason = folders.problem(workspace, context.config) if row.is_project else None
    if reason is not None:
        return Outcome.failure(
            "WORKSPACE_MISSING", f"{reason}; `occ projects` on that machine adds and removes projects."
        )
    parked = parking.of(context.db, execution.number)
    if parked is None and not (
        executions.may_resume(context.db, execution) or _began_in_project(context.config, execution, row)
    ):
        return Outcome.failure("SESSION_NOT_FOUND", lifecycle.SESSION_UNKNOWN)
    path = claude_cli.find(context.config)
    if path is None:
        return Outcome.failure("CLAUDE_NOT_FOUND", claude_cli.missing(context.config))
    resumable = Resumable(not _is_old(context, path), parking.spent(context.db, execution.number), parked)
    too_old = _too_old(context, execution, path, resumable)
    if too_old is not None:
        return too_old
    if execution.rewind_to is not None and parked is None:
        rewound = rewinding.rewound(context, execution, row)
        if isinstance(rewound, Outcome):
            return rewound
        execution = rewound
    try:
        with (
            _memory(context.config, execution, workspace, trusted=trusted) as memory_file,
            servers.given(context, execution) as mcp,
        ):
            return _drive(context, execution, workspace, path, memory_file, mcp, snapshot, resumable, trusted=trusted)
    except _MemoryUnwritable as error:
        return Outcome.failure("INTERNAL", f"The project's memory could not be passed on ({error}); see the disk.")


def _too_old(context: ExecutionContext, execution: Execution, path: str, resumable: Resumable) -> Outcome | None:
    """Return how an execution ends that this CLI cannot run; None when it can."""
    if resumable.parked is not None and not (
        resumable.knows_defer or claude_cli.defers_calls(claude_cli.probe(context.config).version)
    ):
        message = "Only Claude Code 2.1.330 or newer can resume a parked run; update it on the agent's machine."
        return resumable.spent.with_outcome(Outcome.failure("CLAUDE_ERROR", message))
    if execution.permissions == "plan" and _is_old(context, path):
        return Outcome.failure(
            "CLAUDE_ERROR", "Plans need Claude Code 2.1.330 or newer; update it on the agent's machine."
        )
    return None


def _began_in_project(config: Config, execution: Execution, row: Workspace) -> bool:
    """Return whether the session began in a project's folder, such as in a terminal."""
    if execution.resume_session_id is None or not row.is_project:
        return False
    claude_folder = projects.claude_folder(config.cli_environment)
    return projects.has_session(claude_folder, Path(row.path), execution.resume_session_id)


class _MemoryUnwritable(Exception):
    """The file for the project's memory could not be written, with the reason."""


@contextlib.contextmanager
def _memory(config: Config, execution: Execution, workspace: Path, *, trusted: bool) -> Iterator[Path | None]:
    """Write the project's memory to a file while it runs; None without one to write."""
    text = "" if trusted else memory.read(workspace)
    if not text:
        yield None
        return
    path = config.run / "memory" / f"{execution.number}.md"
    try:
        path.write_text(text)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise _MemoryUnwritable(error.strerror) from error
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def _drive(
    context: ExecutionContext,
    execution: Execution,
    workspace: Path,
    path: str,
    memory_file: Path | None,
    mcp: servers.Servers,
    snapshot: _StartSnapshot,
    resumable: Resumable,
    *,
    trusted: bool,
) -> Outcome | Suspension:
    program = Program(path, workspace, trusted, memory_file, mcp.file, resumable)
    process = Process(context, execution, program)
    try:
        # A CLI that loads is watched from here on, a spare once it has its workspace.
        driver = None if process.is_claimed else Driver(context, execution, process, resumable)
        log.info("execution %s started", execution.execution_id)
        if resumable.parked is None:
            # While the CLI loads: its prompt waits for this snapshot, it does not.
            snapshot.tree = changes.record_start(context.db, context.snapshots, execution, workspace, context.stopping)
        # The claim reaches the disk while the CLI loads, and before it has its prompt: no power cut makes it run twice.
        process.note()
        context.db.sync()
        process.ready()
        driver = driver or Driver(context, execution, process, resumable)
        outcome = driver.run()
        mcp.note(driver.init)
        process.is_over = True
        return outcome
    except OCCError as error:
        return Outcome.failure("INTERNAL", f"The claim could not be written, so the prompt was not sent: {error}")
    finally:
        process.close()


def _is_old(context: ExecutionContext, path: str) -> bool:
    """Return whether the CLI is old, or not the file whose version was noted."""
    return not claude_cli.knows_file_mentions(versions.noted(context.db, path))
