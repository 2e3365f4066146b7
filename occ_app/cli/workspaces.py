"""occ workspaces list | fetch | limit | remove: folders of an agent or a hub."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from occ_app.cli import ids, output, remote
from occ_app.config.settings import PERMISSIONS
from occ_app.database import schema
from occ_app.executions import ceilings
from occ_app.home import daemon
from occ_app.system.files import new_file

if TYPE_CHECKING:
    from occ_app.client.agent_client import AgentClient


@click.group()
def workspaces() -> None:
    """List, fetch, limit and remove workspaces.

    A workspace is a folder that an agent or a hub keeps, and that runs work in.

    The agent must run, except for `limit`.

    \b
    Examples:
      occ workspaces list
      occ workspaces fetch my-project-3f9a
    """


def _with_client(command: Any) -> Any:
    """Give the command a client of the agent or hub that its options name."""

    @click.option("--hub", is_flag=True, help="Ask this machine's hub instead of its agent.")
    @remote.options("Agent or hub to ask.")
    @wraps(command)
    def asking(*, url: str | None, token: str | None, pin: str | None, hub: bool, **others: Any) -> None:
        command(remote.chosen(url, token, pin, hub=hub), **others)

    return asking


@workspaces.command("list")
@_with_client
@click.option("--json", "as_json", is_flag=True, help="Print what GET /workspaces answers.")
def listing(client: AgentClient, as_json: bool) -> None:
    """List all workspaces by id.

    ALLOWS is the most that runs may do; it is shown once a workspace or project has a limit.

    \b
    Example:
      occ workspaces list
    """
    records = client.workspaces()
    if as_json:
        output.echo(json.dumps({"workspaces": records}))
        return
    if not records:
        output.echo("No workspaces.")
        return
    head = ["ID", "FILES SENT", "SIZE", "AGE", "NAME"]
    rows = [_row(workspace) for workspace in records]
    if any(workspace.get("permissions") for workspace in records):
        head.insert(3, "ALLOWS")
        for row, workspace in zip(rows, records, strict=True):
            row.insert(3, output.printable(workspace.get("permissions") or "-"))
    placed = {workspace["agentId"] for workspace in records if workspace.get("agentId")}
    if placed:
        names = client.machine_names(placed)
        head.insert(1, "MACHINE")
        for row, workspace in zip(rows, records, strict=True):
            agent_id = workspace.get("agentId")
            row.insert(1, names.get(agent_id, agent_id) if agent_id else "-")
    output.table([head, *rows])


def _row(workspace: Mapping[str, Any]) -> list[str]:
    """Return the row of a workspace; a project has its folder instead of sizes."""
    age, name = output.since(workspace["updatedAt"]), output.printable(workspace["name"])
    if workspace.get("source") == "folder":
        path = output.printable(workspace["path"])
        return [workspace.get("alias") or workspace["workspaceId"], "project", "", age, path]
    return [workspace["workspaceId"], str(workspace["files"]), output.size(workspace["bytes"]), age, name]


@workspaces.command()
@_with_client
@click.argument("workspace_id", metavar="ID")
@click.argument("file", required=False, type=click.Path(path_type=Path, dir_okay=False))
def fetch(client: AgentClient, workspace_id: str, file: Path | None) -> None:
    """Download the current files of a workspace as a zip.

    Without FILE the zip is named after the workspace, and lies beside the project if you are in one: the next run
    would send it.

    \b
    Example:
      occ workspaces fetch my-project-3f9a ../result.zip
    """
    workspace_id = ids.workspace(client, workspace_id)["workspaceId"]  # refused before anything is written
    target = _outside(f"{workspace_id}.zip") if file is None else _checked(file)
    with new_file(target) as archive:
        client.archive(workspace_id, archive)
    output.echo(f"Wrote {target} ({output.size(target.stat().st_size)}).")


def _outside(name: str) -> Path:
    """Return a path for a file that no run sends.

    It is in the current folder, or beside the project that this belongs to.
    """
    folder = Path.cwd()
    while (project := _project(folder)) is not None and project.parent != project:
        folder = project.parent
    return Path(name) if folder == Path.cwd() else folder / name


def _checked(file: Path) -> Path:
    """Return the file that a person names.

    Raises UsageError for one that the next run of a project would send.
    """
    from occ_app.cli.gitignore import names_as_ignored

    path = file.absolute()
    project = _project(path.parent)
    if project is not None and not names_as_ignored(project, path):
        raise click.UsageError(
            f"{file} is inside the project {project}, whose next run would send it; name one outside."
        )
    return file


def _project(folder: Path) -> Path | None:
    """Return the nearest folder above that is a git work tree or was sent."""
    from occ_app.cli import folders

    resolved = folder.resolve()
    above = (resolved, *resolved.parents)
    return next((each for each in above if (each / ".git").exists() or folders.is_remembered(each)), None)


@workspaces.command()
@_with_client
@click.argument("workspace_id", metavar="ID")
def remove(client: AgentClient, workspace_id: str) -> None:
    """Remove a workspace and its files.

    Its executions stay in the list.

    \b
    Example:
      occ workspaces remove my-project-3f9a
    """
    workspace_id = ids.workspace(client, workspace_id)["workspaceId"]
    client.delete_workspace(workspace_id)
    output.echo(f"{workspace_id} is removed.")


@workspaces.command()
@click.option("--hub", is_flag=True, help="Limit a workspace of this machine's hub instead of its agent.")
@click.argument("workspace_id", metavar="ID")
@click.argument("permissions", metavar="LEVEL", type=click.Choice(PERMISSIONS))
def limit(hub: bool, workspace_id: str, permissions: str) -> None:
    """Limit the permissions of runs in a workspace.

    LEVEL is plan, edit, ask or full; OCC_PERMISSIONS of the machine may allow less. The limit holds until the workspace
    is removed, also for runs that wait. To limit a project, use `occ projects add --permissions`.

    \b
    Examples:
      occ workspaces limit my-project-3f9a edit
      occ workspaces limit my-project-3f9a full --hub
    """
    config = remote.settings("hub" if hub else "agent")
    database = schema.opened_to_write(config, running=daemon.find(config) is not None)
    ceilings.limit(database, workspace_id, permissions)
    output.echo(f"Runs in {workspace_id} may do no more than {permissions}.")
