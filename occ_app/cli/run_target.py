"""The workspace and the conversation of `occ run`.

The workspace is a folder to send, one that was sent, or an existing one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from occ_app import errors
from occ_app.cli import folders, ids
from occ_app.cli.folders import Sent
from occ_app.cli.upload import send, send_changes
from occ_app.client.agent_client import AgentClient


@dataclass(frozen=True)
class Target:
    """The workspace and conversation of a run.

    `sent` is the folder in it, `new`: made for this run.
    """

    workspace: str
    session: str | None
    sent: Sent | None
    new: bool = False


def check(
    folder: Path | None, workspace: str | None, project: str | None, session: str | None, *, continued: bool, git: bool
) -> None:
    """Raise UsageError for options that name more than one place to run in."""
    if continued and (workspace or project or session):
        raise click.UsageError("-c continues in the workspace that the folder was sent to; leave out the others.")
    if git and (continued or workspace or project):
        raise click.UsageError("--git goes with a folder that is sent as a new workspace; others keep their own.")
    if workspace is not None and project is not None:
        raise click.UsageError("--workspace and --project both name the place to run in: give one of them.")
    workspace = workspace or project
    if workspace is not None and folder is not None:
        raise click.UsageError(
            "--workspace and --project run in an existing workspace, and --dir sends a new one: give one of them."
        )
    if workspace is None and session is not None:
        raise click.UsageError("A session belongs to a workspace: pass its --workspace or --project too.")


def check_hub(client: AgentClient) -> None:
    """Raise UsageError, before anything is sent, for options of a hub alone."""
    try:
        client.call("GET", "/agents")
    except errors.Refused as refusal:
        if refusal.code == "NOT_FOUND":
            raise click.UsageError("--agent and --label are for a hub, and this is an agent; leave them out.") from None


def existing(client: AgentClient, workspace: str | None, project: str | None) -> str:
    """Return the whole id of the named workspace, or of the project. Raises NotFound."""
    return _project(client, project) if project is not None else ids.workspace_id(client, workspace or "")


def sent(client: AgentClient, place: str, folder: Path | None, *, continued: bool, with_history: bool) -> Target:
    """Return the workspace of a folder, the current one by default.

    It is a new one, or the one it was last sent to. Raises UsageError for a folder that was never sent there,
    NotWritten when both sides changed.
    """
    folder = (folder or _here()).resolve()
    if continued:
        return _continued(client, folder, place)
    made = send(client, folder, place, with_history=with_history)
    return Target(made.workspace, None, made, new=True)


def _continued(client: AgentClient, folder: Path, place: str) -> Target:
    known = folders.load(folder, place)
    above = folders.parent(folder, place) if known is None else None
    if above is not None:
        raise click.UsageError(folders.below(folder, above))
    if known is None:
        raise click.UsageError(f"{folder} was never sent there; run without -c first.")
    try:
        updated = send_changes(client, folder, known)
    except errors.Refused as refusal:
        if refusal.code != "WORKSPACE_NOT_FOUND":
            raise
        raise errors.NotWritten(f"{refusal} Run without -c to send the folder again.") from None
    if updated != known:
        folders.save(updated)
    newest = client.executions(workspaceId=known.workspace, limit=10)["executions"]
    session = next((each["sessionId"] for each in newest if each.get("sessionId")), known.session)
    return Target(known.workspace, session, updated)


def _project(client: AgentClient, name: str) -> str:
    """Return the name by which an agent or hub knows a project. Raises NotFound."""
    found = [each for each in client.workspaces() if each.get("source") == "folder"]
    known = [each.get("alias") or each["workspaceId"] for each in found]
    meant = [
        known[place] for place, each in enumerate(found) if name in (each["name"], each["workspaceId"], known[place])
    ]
    if len(meant) == 1:
        return str(meant[0])
    which = f"Several machines have a project {name}" if meant else f"There is no project {name}"
    listed = f": {', '.join(meant or known)}" if known else "; `occ projects add PATH` on a machine adds one"
    raise errors.NotFound("WORKSPACE_NOT_FOUND", f"{which}{listed}.")


def _here() -> Path:
    """Return the folder to send when none is named.

    A person's whole home is refused as a mistake.
    """
    folder = Path.cwd()
    try:
        home = Path.home().resolve()
    except RuntimeError:  # a user without one
        return folder
    if home.is_relative_to(folder):
        raise click.UsageError(
            f"All of {folder} would be sent, including your home folder; change to a project, or choose a folder"
            " with --dir."
        )
    return folder
