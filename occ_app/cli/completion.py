"""occ completion: a shell's script, and the ids and names that it offers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable

import click
from click.shell_completion import CompletionItem, get_completion_class

from occ_app.cli import output, remotes
from occ_app.config.homes import AGENT, HUB, Program, home_folder
from occ_app.database.database import Database
from occ_app.errors import OCCError
from occ_app.executions import queries as executions
from occ_app.workspaces import projects, workspace

VARIABLE = "_OCC_COMPLETE"
_OFFERED = 50  # the newest
# click's script for zsh works once, while zsh loads it: afterwards zsh calls the same lines as the function `_occ`.
_CLICKS_TEST, _TEST = "$zsh_eval_context[-1] == loadautofunc", "$funcstack[1] == _occ"


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
    return (
        kind(click.get_current_context().find_root().command, {}, "occ", VARIABLE).source().replace(_CLICKS_TEST, _TEST)
        + "\n"
    )


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


def offer_values(command: click.Command, name: str) -> None:
    """Have a command and its subcommands offer values for their parameters.

    `name` is the command's full name without `occ`.
    """
    if isinstance(command, click.Group):
        for child_name, child in command.commands.items():
            offer_values(child, f"{name} {child_name}")
    names = {parameter.name for parameter in command.params}
    for parameter in command.params:
        values = _VALUES.get(f"{name} {parameter.name}") or _VALUES.get(parameter.name or "")
        if parameter.name == "url" and "pin" in names and isinstance(parameter, click.Option):
            values = _servers
        if values is not None and parameter.type is click.STRING:
            parameter.type = Offered(values)


def _runs() -> Iterable[str]:
    listing, _ = executions.listing(_database(), limit=_OFFERED)
    return [execution.execution_id for execution in listing]


def _workspaces() -> Iterable[str]:
    return [each.workspace_id for each in workspace.listing(_database())]


def _projects() -> Iterable[str]:
    return [str(project["name"]) for project in projects.report(_database())]


def _approvals() -> Iterable[str]:
    from occ_app.executions import approvals

    return [each.approval_id for each in approvals.listing(_database(), "open", limit=_OFFERED)]


def _remotes() -> Iterable[str]:
    return [remote.name for remote in remotes.listing()]


def _servers() -> Iterable[str]:
    return [*_remotes(), remotes.LOCAL, remotes.LOCAL_HUB]


def _machines() -> Iterable[str]:
    from occ_app.hub.agents import Agents

    return [agent.name for agent in Agents(_database(HUB), 30, 30).listing()]


def _keys() -> Iterable[str]:
    from occ_app.hub import keys

    return [key.name for key in keys.listing(_database(HUB)) if key.revoked_at is None and key.device is None]


def _database(program: Program = AGENT) -> Database:
    return Database(home_folder(program=program) / "occ.db", readonly=True)


_VALUES: dict[str, Callable[[], Iterable[str]]] = {
    "execution_id": _runs,
    "execution": _runs,
    "workspace": _workspaces,
    "workspace_id": _workspaces,
    "project": _projects,
    "agent": _machines,
    "approval_id": _approvals,
    "projects remove name": _projects,
    "logout name": _remotes,
    "remotes use name": _remotes,
    "hub agents drain name": _machines,
    "hub agents remove name": _machines,
    "hub agents resume name": _machines,
    "hub keys revoke name": _keys,
    "hub keys rotate name": _keys,
    "hub webhooks add key": _keys,
}
