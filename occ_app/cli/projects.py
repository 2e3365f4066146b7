"""occ projects add | list | remove: folders of this machine that runs may work in."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import click

from occ_app.cli import output, remote
from occ_app.config import config as configuration
from occ_app.config.config import Config
from occ_app.config.settings import PERMISSIONS
from occ_app.database import schema
from occ_app.database.database import Database
from occ_app.executions import lifecycle
from occ_app.home import daemon
from occ_app.streams import tail
from occ_app.streams.doorbell import Ringer
from occ_app.workspaces import projects as rows

_NAME = r"[A-Za-z0-9]([A-Za-z0-9._-]{0,126}[A-Za-z0-9_-])?"
_CONFIGURATION = (".claude/settings.json", ".claude/settings.local.json", ".mcp.json")


@click.group()
def projects() -> None:
    """Add, list and remove folders that runs may work in.

    A run in a project works in the folder itself. OCC never copies, moves or deletes a project. The agent need not run.

    \b
    Examples:
      occ projects add ~/code/app
      occ run --project app "Run the tests and fix the failures."
    """


@projects.command()
@click.argument("folder", metavar="PATH", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--name", metavar="NAME", help="Name of the project.  [default: the folder's]")
@click.option(
    "--trust", is_flag=True, help="Let the folder's settings, hooks and MCP servers apply, as in a terminal there."
)
@click.option(
    "--key",
    "keys",
    metavar="NAME",
    multiple=True,
    help="Key of the hub that may run in it besides admin keys; may be repeated.",
)
@click.option(
    "--permissions",
    type=click.Choice(PERMISSIONS),
    help="The most that runs in it may do.  [default: OCC_PERMISSIONS]",
)
def add(folder: Path, name: str | None, trust: bool, keys: tuple[str, ...], permissions: str | None) -> None:
    """Let runs work in the folder PATH.

    To change --trust, --key and --permissions, repeat the command with the same name and folder and all of them. A hub
    learns a change, such as a removed key, with the next heartbeat, within 30 seconds.

    \b
    Examples:
      occ projects add ~/code/app
      occ projects add ~/code/app --name api --key laptop --permissions edit
    """
    chosen = name if name is not None else _plain(folder)
    if not re.fullmatch(_NAME, chosen):
        raise click.UsageError(
            f"{chosen!r} cannot be a project name: use letters, digits, dots, underscores and hyphens in --name."
        )
    for key in keys:
        if not 0 < len(key) <= 100 or not key.isprintable():
            raise click.UsageError(f"{key!r} is not the name of a key; list them with `occ hub keys list` on the hub.")
    config = configuration.load()  # a wrong setting is refused: it may name another home
    project = rows.add(_rows(config), config, chosen, folder, trusted=trust, keys=keys, permissions=permissions)
    output.echo(f'{project.name} is {project.path}; `occ run --project {project.name} "…"` runs in it.')
    unread = [file for file in _CONFIGURATION if Path(project.path, file).exists()]
    if unread and not trust:
        output.note(f"Not read by runs there: {', '.join(unread)}. With --trust they apply.")


def _plain(folder: Path) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", folder.resolve().name).strip("-._")[:100] or "project"


@projects.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def listing(as_json: bool) -> None:
    """List the projects of this machine.

    ALLOWS is the most that runs in a project may do; "-" is all that the machine's OCC_PERMISSIONS allows.

    \b
    Example:
      occ projects list
    """
    config = remote.settings()
    found = rows.listing(_rows(config)) if config.database.exists() else []
    if as_json:
        output.echo(json.dumps({"projects": [_record(project) for project in found]}))
        return
    if not found:
        output.echo("No projects. `occ projects add PATH` adds a folder.")
        return
    lines = [
        (
            *(project.name, "yes" if project.trusted else "no", project.permissions or "-"),
            *(",".join(project.keys) or "-", project.path),
        )
        for project in found
    ]
    output.table([("NAME", "TRUSTED", "ALLOWS", "KEYS", "PATH"), *lines])


def _record(project: rows.Project) -> dict[str, Any]:
    return {
        "name": project.name,
        "path": project.path,
        "trusted": project.trusted,
        "keys": list(project.keys),
        "permissions": project.permissions,
        "createdAt": project.created_at,
    }


@projects.command()
@click.argument("name")
def remove(name: str) -> None:
    """Remove a project from the list.

    Its folder and its runs stay. Runs that wait for it end.

    \b
    Example:
      occ projects remove app
    """
    config = remote.settings()
    ended = rows.remove(_rows(config), name, lifecycle.end_waiting)
    readers = Ringer(config.run / "tail")
    for number in ended:
        readers.ring(tail.execution_key(number))
    output.echo(f"{name} is removed from the list. Its folder stays as it is.")


def _rows(config: Config) -> Database:
    return schema.opened_to_write(config, running=daemon.find(config) is not None)
