"""Returning to an earlier turn of a conversation.

The files that later turns changed are restored.
"""

from __future__ import annotations

from dataclasses import replace

from occ_app.errors import OCCError
from occ_app.executions import branches
from occ_app.executions.records import Execution, Outcome
from occ_app.workspaces import restores
from occ_app.workspaces.restores import Source
from occ_app.workspaces.workspace import Workspace
from occ_worker.execution.context import ExecutionContext

_GONE = "There is no way back to that turn: it began no message, or a later prompt left it behind; choose another turn."
_UNKNOWN = "The changes of turn {} are not recorded ({}), so they cannot be undone; choose a later turn."


def rewound(context: ExecutionContext, execution: Execution, workspace: Workspace) -> Execution | Outcome:
    """Return an execution as it continues after an earlier turn, or its failure.

    The files that later turns changed are restored. The execution holds the workspace.
    """
    found = branches.turn(context.db, execution)
    if found is None or found.last_message is None or found.session_id != execution.resume_session_id:
        return Outcome.failure("SESSION_NOT_FOUND", _GONE)
    failure = _restore_files(context, execution, workspace, found)
    return failure or replace(execution, resume_at=found.last_message)


def _restore_files(
    context: ExecutionContext, execution: Execution, workspace: Workspace, found: Execution
) -> Outcome | None:
    """Undo the changes of the turns after one, all or none.

    Returns how the execution fails, if so.
    """
    done = list[Source]()
    for turn in branches.turns_after(context.db, found, execution):
        if turn.changes is not None and not turn.changes.get("files"):
            continue
        if turn.changes is None or turn.start_tree is None or turn.end_tree is None:
            _take_back(context, execution, workspace, done)
            return Outcome.failure(
                "RESTORE_CONFLICT", _UNKNOWN.format(turn.execution_id, turn.why_no_changes or "pruned")
            )
        exact = turn.changes.get("exact") is True
        source = Source(turn.execution_id, turn.end_tree, turn.start_tree, exact=exact)
        try:
            done.append(_restore(context, execution, workspace, source))
        except OCCError as error:
            _take_back(context, execution, workspace, done)
            return Outcome.failure("RESTORE_CONFLICT", f"Turn {turn.execution_id}: {error}")
    return None


def _restore(context: ExecutionContext, execution: Execution, workspace: Workspace, source: Source) -> Source:
    """Restore, and return the changes that take it back."""
    reply = restores.restore(
        context.db,
        context.snapshots,
        workspace,
        source,
        context.identity,
        force=False,
        held_by=execution.execution_id,
    )
    return Source(str(reply["restore_id"]), str(reply["result"]), str(reply["base"]))


def _take_back(context: ExecutionContext, execution: Execution, workspace: Workspace, done: list[Source]) -> None:
    for source in reversed(done):
        _restore(context, execution, workspace, source)
