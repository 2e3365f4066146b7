"""occ diff: an execution's changes as a patch or a list, and their sums."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable

import click

from occ_app import errors
from occ_app.cli import ids, output, remote
from occ_app.client import results
from occ_app.client.agent_client import AgentClient
from occ_app.client.results import Changes, Entry
from occ_app.system.foreign_text import visible


@click.command()
@ids.choosing
@click.option("--stat", is_flag=True, help="List the files with their added and deleted lines.")
@remote.options("Agent or hub to ask.")
def diff(execution_id: str | None, last: bool, stat: bool, url: str | None, token: str | None, pin: str | None) -> None:
    """Show the changes of an execution as a patch.

    Without an ID they are those of the newest execution. On a terminal the patch is coloured and
    shown by your pager. Elsewhere `git apply --binary` takes it.

    Example: occ diff --stat
    """
    client = remote.chosen(url, token, pin)
    execution_id = meant(client, execution_id, last=last)
    if stat:
        _print_stat(results.changes(client, execution_id))
        return
    show_patch(client, execution_id)


def show_patch(client: AgentClient, execution_id: str) -> None:
    """Print the changes of an execution as a patch.

    On a terminal it is coloured and shown by the pager.
    """
    patch = io.BytesIO()
    results.diff(client, execution_id, patch)
    if not patch.getvalue():
        output.note(output.changes_text({"files": 0}))
        return
    if not sys.stdout.isatty():
        sys.stdout.buffer.write(patch.getvalue())
        sys.stdout.flush()
        return
    output.page(_coloured(patch.getvalue().decode(errors="replace").split("\n")))


def meant(client: AgentClient, given: str | None, *, last: bool) -> str:
    """Return the whole id of the execution that a person names.

    Without an id it is the newest one, whose id is printed.
    """
    whole = ids.execution_id(ids.ServedExecutions(client), given, last=last or given is None)
    if whole != given:
        output.note(f"changes of {whole}")
    refuse_running(client, whole)
    return whole


def refuse_running(client: AgentClient, execution_id: str) -> None:
    """Raise NotFound for an active execution: its changes are known at its end."""
    if not client.execution(execution_id).get("finishedAt"):
        raise errors.NotFound("CHANGES_NOT_FOUND", results.goes_on(execution_id))


def changes_of(client: AgentClient, execution_id: str, *, succeeded: bool) -> Changes | None:
    """Return the changes of an execution, once they are stored, or None.

    The reason for None is printed if the execution `succeeded`; another one has an error to print.
    """
    try:
        return results.changes(client, execution_id)
    except errors.Refused as refusal:
        if refusal.code == "CHANGES_NOT_FOUND" and succeeded:
            output.note(str(refusal))
    except errors.Unreachable:
        pass
    return None


def show_changes(changes: Changes, execution_id: str, again: str, folder: str, *, project: bool) -> None:
    """Print the sums of an execution's changes, and the commands for them.

    The commands show them and write them into the folder. `again` and `folder` are the options by which those commands
    reach the same place and the same folder.
    """
    show_sums(changes)
    if changes.entries:
        output.note(f"see them with: occ diff {execution_id}{again}")
    if changes.entries and not project:
        output.note(f"bring them here with: occ pull {execution_id}{again}{folder}")


def show_sums(changes: Changes) -> None:
    """Print the sums of an execution's changes."""
    output.note(output.changes_text(_sums(changes)))


def _sums(changes: Changes) -> dict[str, int]:
    return {"files": len(changes.entries), "additions": changes.additions, "deletions": changes.deletions}


def _coloured(lines: Iterable[str]) -> Iterable[str]:
    plain = output.plain()
    for line in lines:
        shown = visible(line)
        if plain:
            yield shown + "\n"
        elif line.startswith(("+++", "---", "diff ", "index ")):
            yield click.style(shown, bold=True) + "\n"
        elif line.startswith("@@"):
            yield click.style(shown, fg="cyan") + "\n"
        elif line.startswith(("+", "-")):
            yield click.style(shown, fg="green" if line[0] == "+" else "red") + "\n"
        else:
            yield shown + "\n"


def _print_stat(changes: Changes) -> None:
    rows = [(_counts(entry), _named(entry)) for entry in changes.entries]
    if rows:
        output.table([("LINES", "FILE"), *rows])
    output.echo(output.changes_text(_sums(changes)))
    if changes.truncated:
        output.note("The list is incomplete: there are too many files, or files that are too large.")


def _counts(entry: Entry) -> str:
    return "binary" if entry.binary else f"+{entry.additions} \N{MINUS SIGN}{entry.deletions}"


def _named(entry: Entry) -> str:
    if entry.status == "renamed" and entry.old_path is not None:
        return f"{entry.old_path} → {entry.path}"
    marks = {"added": " (new)", "deleted": " (deleted)"}
    return entry.path + marks.get(entry.status, "")
