"""The snapshots around an execution: before its prompt is sent, and after its end."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from occ_app.database.database import Database
from occ_app.executions import changes as rows
from occ_app.executions import queries as executions
from occ_app.executions.records import Execution
from occ_app.snapshots import changes as differences
from occ_app.snapshots.git import TooSlow
from occ_app.snapshots.objects import MissingObject
from occ_app.snapshots.scan import Skipped
from occ_app.snapshots.store import TOO_SLOW, Snapshots
from occ_app.workspaces import folders
from occ_app.workspaces import workspace as workspaces

log = logging.getLogger("occ.changes")

START_SECONDS = 60.0
END_SECONDS = 120.0
_LOOK_SECONDS = 0.5


class Interrupted(Exception):
    """A snapshot was given up: its execution is to end or the daemon stops."""


def record_start(
    db: Database, snapshots: Snapshots, execution: Execution, workspace: Path, stopping: Callable[[], bool]
) -> str | None:
    """Take the snapshot before an execution, and return its tree.

    None when its changes will not be known. It ends early when the execution is cancelled. Raises OCCError when the
    row cannot be written.
    """
    looked = time.monotonic()

    def interrupt() -> None:
        nonlocal looked
        if time.monotonic() < looked + _LOOK_SECONDS:
            return
        looked = time.monotonic()
        if stopping() or executions.cancel_code(db, execution.number) is not None:
            raise Interrupted

    try:
        taken = snapshots.take(execution.workspace_generation, workspace, START_SECONDS, interrupt=interrupt)
        return taken.tree if rows.begin(db, execution.number, taken.tree) else None
    except (Skipped, OSError, Interrupted) as error:
        rows.skip(db, execution.number, _reason(error, execution))
        return None


def record_end(
    db: Database,
    snapshots: Snapshots,
    execution: Execution,
    start: str,
    *,
    late: bool = False,
    interrupt: Callable[[], None] = lambda: None,
) -> None:
    """Take the snapshot after an execution, store its changes, free its workspace.

    Its processes have ended. `late`: not by the worker that ran it, so that in a project somebody may have changed
    files since. Raises Interrupted when `interrupt` does, OCCError when the row cannot be written.
    """
    row = workspaces.numbered(db, execution.workspace_generation)
    try:
        if row is None or (row.is_project and folders.was_replaced(Path(row.path))):
            raise Skipped("gone")
        taken = snapshots.take(row.generation, Path(row.path), END_SECONDS, of_run=True, interrupt=interrupt)
        found = snapshots.changes(row.generation, start, taken.tree)
        summary = differences.summary(found, complete=taken.complete, exact=not (late and row.is_project))
        rows.store(db, execution.number, taken.tree, summary.as_json())
    except (Skipped, OSError, TooSlow, MissingObject) as error:
        rows.give_up(db, execution.number, _reason(error, execution))


def record_lost(db: Database, snapshots: Snapshots, ring: Callable[[Execution], None]) -> None:
    """Store the changes of executions whose worker ended before it could."""
    for execution in rows.holding(db):
        if execution.start_tree is None or (execution.claimed_by is not None and execution.claimed_by.alive()):
            continue
        record_end(db, snapshots, execution, execution.start_tree, late=True)
        log.info("execution %s: its changes are recorded", execution.execution_id)
        ring(execution)


def interrupts_when(stopping: Callable[[], bool]) -> Callable[[], None]:
    """Return a function that raises Interrupted once the daemon stops."""

    def interrupt() -> None:
        if stopping():
            raise Interrupted

    return interrupt


def _reason(error: Exception, execution: Execution) -> str:
    """Return the reason for records, and log one that an operator can act on."""
    if isinstance(error, Skipped):
        return str(error)
    if isinstance(error, TooSlow):
        return TOO_SLOW
    if isinstance(error, Interrupted):
        return "interrupted"
    log.warning("execution %s: no snapshot: %s", execution.execution_id, error)
    return "lost" if isinstance(error, MissingObject) else "not written"
