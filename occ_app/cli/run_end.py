"""The end of `occ run`: summary, changes, and the conversation to continue."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from occ_app import errors
from occ_app.cli import folders, output
from occ_app.cli.diff import changes_of, show_changes, show_sums
from occ_app.cli.folders import Sent
from occ_app.cli.pull import Choices, bring
from occ_app.cli.run_target import Target
from occ_app.client.agent_client import AgentClient
from occ_app.client.results import Changes
from occ_app.client.sse import StreamEvent


@dataclass(frozen=True)
class SentRun:
    """A run that was sent, with the options for its end.

    `again` are those by which commands reach its place. `folder` is the one that was named, None for the current one.
    `project`: the run was in a project.
    """

    client: AgentClient
    execution_id: str
    target: Target
    again: str
    place: str
    folder: Path | None
    project: bool
    apply: bool
    as_json: bool


def report(run: SentRun, final: StreamEvent | None) -> int:
    """Print the end of a run, and apply its changes where it succeeded.

    Returns the exit code. Raises NotWritten.
    """
    succeeded = final is not None and final.name == "complete"
    applies, named = run.apply and succeeded, folders.option(run.folder)
    changes = changes_of(run.client, run.execution_id, succeeded=succeeded)
    remember_end(run.target, final, changes)
    if not run.as_json:
        output.summary(final, _record(run.client, run.execution_id))
        if changes is not None and applies:
            show_sums(changes)
        elif changes is not None:
            show_changes(changes, run.execution_id, run.again, named, project=run.project)
    code = _applied(run) if applies else 0
    if not run.as_json:
        _tell_session(final, run.target, run.again + named)
    return output.outcome(final) or code


def remember_end(target: Target, final: StreamEvent | None, changes: Changes | None) -> None:
    """Store the conversation of a folder.

    Where only the run knows the snapshot that it was sent as, store that, too.
    """
    if target.sent is None:
        return
    session = None if final is None else final.data.get("sessionId")
    snapshot = target.sent.snapshot
    if snapshot is None and target.new and changes is not None:
        snapshot = changes.base
    keep(replace(target.sent, session=session or target.session, snapshot=snapshot))


def keep(sent: Sent) -> None:
    """Store where a folder was sent.

    A run does not fail because that cannot be stored.
    """
    try:
        folders.save(sent)
        folders.remember(Path(sent.folder))
    except errors.ConfigError as error:
        output.warn(f"{error} `occ run -c` does not continue from this run.")


def _applied(run: SentRun) -> int:
    """Write the changes of a successful run into the folder.

    Raises NotWritten for conflicts.
    """
    folder = (run.folder or Path()).resolve()
    return bring(run.client, run.execution_id, folder, run.place, Choices(report=output.note))


def _record(client: AgentClient, execution_id: str) -> dict[str, Any] | None:
    with contextlib.suppress(errors.OCCError):
        return client.execution(execution_id)
    return None


def _tell_session(final: StreamEvent | None, target: Target, again: str) -> None:
    session: Any = final.data.get("sessionId") if final else None
    if not session or final is None or final.data.get("code") == "SESSION_NOT_FOUND":
        return
    if target.sent is not None:
        output.note(f'go on with: occ run{again} -c "…"')
    else:
        output.note(f'go on with: occ run{again} --workspace {target.workspace} --session {session} "…"')
