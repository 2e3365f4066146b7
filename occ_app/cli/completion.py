"""occ completion: a script for the shell, and the ids, workspaces and machines that it offers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable

import click
from click.shell_completion import CompletionItem, get_completion_class

from occ_app.cli import output
from occ_app.config.homes import AGENT, HUB, home_folder
from occ_app.database.database import Database
from occ_app.errors import OCCError
from occ_app.executions import queries as executions
from occ_app.workspaces import projects, workspace

VARIABLE = "_OCC_COMPLETE"
_OFFERED = 50  # the newest


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a shell.

    It completes commands, options, ids of runs, workspaces, projects and machines.

    \b
    Examples:
      occ completion bash > ~/.local/share/bash-completion/completions/occ
      occ completion fish > ~/.config/fish/completions/occ.fish
    """
    output.raw(script(shell))


def script(shell: str) -> str:
    """Return the completion script of a shell."""
    kind = get_completion_class(shell)
    assert kind is not None  # noqa: S101 - click has these three
    return kind(click.get_current_context().find_root().command, {}, "occ", VARIABLE).source() + "\n"


class Offered(click.ParamType[str]):
    """A text for which a function lists the values that there are."""

    name = "text"

    def __init__(self, values: Callable[[], Iterable[str]]) -> None:
        self._values = values

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002 - click's shape
        """Return the values that begin as the word does; none when they cannot be read."""
        with contextlib.suppress(OCCError, OSError):
            return [CompletionItem(value) for value in self._values() if value.startswith(incomplete)]
        return []


def offer_values(command: click.Command) -> None:
    """Have the parameters of a command, and of those below it, offer the values that there are, by their names."""
    if isinstance(command, click.Group):
        for child in command.commands.values():
            offer_values(child)
    for parameter in command.params:
        values = _VALUES.get(parameter.name or "")
        if values is not None and parameter.type is click.STRING:
            parameter.type = Offered(values)


def _runs() -> Iterable[str]:
    listing, _ = executions.listing(_database(), limit=_OFFERED)
    return [execution.execution_id for execution in listing]


def _workspaces() -> Iterable[str]:
    return [each.workspace_id for each in workspace.listing(_database())]


def _projects() -> Iterable[str]:
    return [str(project["name"]) for project in projects.report(_database())]


def _machines() -> Iterable[str]:
    from occ_app.hub.agents import Agents

    database = Database(home_folder(program=HUB) / "occ.db", readonly=True)
    return [agent.name for agent in Agents(database, 30, 30).listing()]


def _database() -> Database:
    return Database(home_folder(program=AGENT) / "occ.db", readonly=True)


_VALUES: dict[str, Callable[[], Iterable[str]]] = {
    "execution_id": _runs,
    "execution": _runs,
    "workspace": _workspaces,
    "workspace_id": _workspaces,
    "project": _projects,
    "agent": _machines,
}
