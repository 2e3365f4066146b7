"""occ pull: the changes of an execution, brought into a folder."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import click

from occ_app import errors
from occ_app.cli import catch_up, folders, ids, merging, output, remote, tree_update
from occ_app.cli.diff import meant
from occ_app.cli.folders import Sent
from occ_app.client import results
from occ_app.client.agent_client import AgentClient
from occ_app.client.results import Changes, Entry
from occ_app.system.foreign_text import visible_line

_NAMED = 20


@click.command()
@ids.choosing
@click.option(
    "--dir",
    "folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Path(),
    help="Folder to write the changes into.  [default: .]",
)
@click.option("--force", is_flag=True, help="Replace files that were edited here, too.")
@click.option("--reject", is_flag=True, help="Write all other files; patches of those in conflict go to a new folder.")
@click.option("--trust", is_flag=True, help="Write settings of Claude Code and MCP servers, too, which run as you.")
@remote.options("Agent or hub to ask.")
def pull(
    execution_id: str | None,
    last: bool,
    folder: Path,
    force: bool,
    reject: bool,
    trust: bool,
    url: str | None,
    token: str | None,
    pin: str | None,
) -> int:
    """Write the changes of an execution into a folder.

    Without an ID, in a folder that was sent, they are all that it does not have. A file that was
    edited here meanwhile is merged. If one cannot be merged, nothing is written and the files are named.

    Example: occ pull run-k3v9q2x7ab --dir my-project
    """
    client, place = remote.chosen(url, token, pin), remote.place_name(url, token, pin)
    folder, choices = folder.resolve(), Choices(force=force, reject=reject, trust=trust)
    if execution_id is None and not last:
        return _catch_up(client, _sent(folder, place), choices)
    return bring(client, meant(client, execution_id, last=last), folder, place, choices)


@dataclass(frozen=True)
class Choices:
    """The options of a pull, and the function that prints its result."""

    force: bool = False
    reject: bool = False
    trust: bool = False
    report: Callable[[str], object] = output.echo


def _sent(folder: Path, place: str) -> Sent:
    """Return where a folder was sent.

    Raises UsageError for one without a known workspace or snapshot.
    """
    sent = folders.load(folder, place)
    if sent is not None and sent.snapshot is not None:
        return sent
    above = folders.parent(folder, place) if sent is None else None
    if above is not None:
        raise click.UsageError(folders.below(folder, above))
    why = "was never sent there" if sent is None else "was sent, but no snapshot of it is known"
    raise click.UsageError(
        f"{folder} {why}. Give the ID of a run, or --last for the newest one, and with --dir the folder to write into."
    )


def _check_place(client: AgentClient, workspace: str, folder: Path, place: str) -> None:
    """Raise UsageError for a folder that the run's changes cannot be written into.

    It is inside the folder that was sent as the workspace, or the run was in a project.
    """
    above = folders.parent(folder, place)
    sent = folders.load(folder, place)
    if above is not None and above.workspace == workspace and (sent is None or sent.workspace != workspace):
        raise click.UsageError(folders.below(folder, above))
    with contextlib.suppress(errors.Refused):  # the workspace is removed, and its changes may be kept
        if client.workspace(workspace).get("source") == "folder":
            raise click.UsageError(
                "The run worked in a project, and its changes are in place there. `occ diff` shows them as a patch."
            )


def _catch_up(client: AgentClient, sent: Sent, choices: Choices) -> int:
    """Write all changes of the workspace that a folder lacks into it.

    Returns 1 when files were left as they were.
    """
    lacking = catch_up.missing(client, sent)
    folder = Path(sent.folder)
    if lacking.snapshot is not None:
        return _bring_snapshot(client, sent, lacking.snapshot, lacking.touched, choices)
    if not lacking.runs and lacking.only_runs:
        choices.report("Nothing to write: no run changed the workspace since.")
        output.note(f"a hub does not know of restores; `occ workspaces fetch {sent.workspace}` gets all files")
    elif not lacking.runs:
        choices.report("Nothing to write: the folder has all changes of the workspace.")
    return max([bring(client, run, folder, sent.place, choices) for run in lacking.runs], default=0)


def _bring_snapshot(client: AgentClient, sent: Sent, snapshot: str, touched: frozenset[str], choices: Choices) -> int:
    """Write the files of a workspace that were changed by something else than a run.

    They are written as they are now.
    """
    output.note(f"workspace {sent.workspace} was restored or changed apart from its runs; its files are compared")
    with catch_up.Comparison(client, sent, touched) as compared:
        if catch_up.missing(client, sent).snapshot != snapshot:  # a run may have begun, too
            raise errors.NotWritten(f"Workspace {sent.workspace} changed meanwhile; pull again.")
        outcome = _write(Path(sent.folder), compared.entries, compared.content, choices)
        folders.save(folders.compared(sent, snapshot, outcome.results))
        _report(outcome, choices.report)
        if outcome.conflicts:

            def version(path: str, file: IO[bytes]) -> None:
                if outcome.results[path] is not None:
                    file.write(compared.content(path, "end"))

            _reject(outcome.conflicts, version, "workspace")
    return 1 if outcome.conflicts else 0


def bring(client: AgentClient, execution_id: str, folder: Path, place: str, choices: Choices) -> int:
    """Write the changes of an execution into a folder.

    Returns 1 when files in conflict were left as they are. Raises NotWritten when nothing was written, and UsageError
    for a folder that is not the place for it.
    """
    workspace = str(client.execution(execution_id)["workspaceId"])
    _check_place(client, workspace, folder, place)
    changes = results.changes(client, execution_id)
    if changes.truncated:
        raise errors.NotWritten(
            "The list of changes is incomplete, so no file was written: there are too many files, or files that are"
            " too large."
            " `occ workspaces fetch` gets all files of the workspace."
        )
    if not changes.exact:
        output.warn("Others may have changed files there meanwhile; their changes are among these.")

    def content(path: str, at: str) -> bytes:
        return results.file(client, execution_id, path, at)

    outcome = _write(folder, changes.entries, content, choices)
    _remember(workspace, folder, place, changes, outcome)
    _report(outcome, choices.report)
    if outcome.conflicts:

        def patch(path: str, file: IO[bytes]) -> None:
            results.diff(client, execution_id, file, path)

        _reject(outcome.conflicts, patch, "patch")
    return 1 if outcome.conflicts else 0


def _write(folder: Path, entries: Sequence[Entry], content: merging.Content, choices: Choices) -> merging.Plan:
    """Write changes into a folder in one step.

    Raises NotWritten for conflicts, unless they are to be rejected.
    """
    with tree_update.TreeUpdate(folder) as update:
        if update.recovered is not None:
            output.note(update.recovered)
        outcome = merging.plan(update, entries, content, trust=choices.trust, force=choices.force)
        for path, reason in outcome.left_out.items():
            output.note(f"left out, since {reason}: {visible_line(path)}")
        if outcome.conflicts and not choices.reject:
            raise errors.NotWritten(_conflict_text(outcome.conflicts, force=choices.force))
        update.commit()
    return outcome


def _remember(workspace: str, folder: Path, place: str, changes: Changes, outcome: merging.Plan) -> None:
    """Record the files of the workspace that the folder has now.

    Later edits of it can then be sent.
    """
    sent = folders.load(folder, place)
    if sent is None or workspace != sent.workspace:
        return
    now = folders.pulled(sent, changes.base, changes.result, outcome.results)
    if now != sent:
        folders.save(now)


def _conflict_text(conflicts: Mapping[str, str], *, force: bool) -> str:
    named = list(conflicts.items())[:_NAMED]
    lines = [f"  {visible_line(path)}: {reason}" for path, reason in named]
    lines += [f"  and {len(conflicts) - _NAMED} more"] if len(conflicts) > _NAMED else []
    ways = "" if force else "--force takes the run's version of edited files, "
    ways = f"`occ pull` writes them: {ways}--reject writes all other files."
    return "\n".join(["nothing was written, since these files are in conflict:", *lines, ways])


def _report(outcome: merging.Plan, report: Callable[[str], object]) -> None:
    for path in outcome.merged:
        output.note(f"merged with your edits: {visible_line(path)}")
    written, removed = len(outcome.written), len(outcome.removed)
    kept = len(outcome.conflicts) + len(outcome.left_out)
    if not written and not removed and kept:
        report(
            f"Nothing was written: {kept} {'file was left as it is' if kept == 1 else 'files were left as they are'}."
        )
        return
    if not written and not removed:
        report("Nothing to write: the folder has these changes already.")
        return
    parts = [f"{count} {name}" for count, name in ((written, "written"), (removed, "removed")) if count]
    report(f"Files: {', '.join(parts)}.")


def _reject(conflicts: Mapping[str, str], store: Callable[[str, IO[bytes]], None], kind: str) -> None:
    """Store the patches of files in conflict, or the workspace's versions.

    They are outside of the folder, so that no later run sends them.
    """
    folder = Path(tempfile.mkdtemp(prefix="occ-rejected-"))
    for number, (path, reason) in enumerate(conflicts.items(), 1):
        output.warn(f"not written, since {reason}: {path}")
        with (folder / f"{number:04}-{path.rpartition('/')[2][:100]}.{kind}").open("wb") as file:
            try:
                store(path, file)
            except errors.Refused as refusal:  # the former name of a renamed file
                file.write(f"{refusal}\n".encode())
    output.note(f"{'their patches are' if kind == 'patch' else 'the versions of the workspace are'} in {folder}")
