"""The group of all commands."""

from __future__ import annotations

import importlib
from typing import Any

import click

from occ_app import __version__
from occ_app.cli import output
from occ_app.config import config as configuration

EXIT_CODES = """\b
Exit codes:
  0    done, or the execution succeeded
  1    it failed
  2    the command was used wrongly
  3    not running, or already running
  4    refused by the agent or the hub
  5    unreachable
  124  the execution timed out
  130  the execution was cancelled, or the command interrupted
"""

# In the order of the help. A command's module is loaded when it is called: no command loads the modules of others.
_MODULES = {
    "up": "up",
    "down": "up",
    "start": "start",
    "stop": "agent",
    "status": "agent",
    "token": "agent",
    "jobs": "jobs",
    "run": "run",
    "chat": "chat",
    "approvals": "approvals",
    "approve": "approvals",
    "deny": "approvals",
    "answer": "approvals",
    "rules": "rules",
    "projects": "projects",
    "mcp-servers": "mcp_servers",
    "diff": "diff",
    "pull": "pull",
    "restore": "restore",
    "workspaces": "workspaces",
    "login": "login",
    "logout": "login",
    "remotes": "login",
    "demo": "demo",
    "backup": "agent",
    "service": "service",
    "upgrade": "upgrade",
    "doctor": "doctor",
    "logs": "logs",
    "hub": "hub",
    "completion": "completion",
    "man": "man",
}

# Where a function cannot have the name of its command.
_FUNCTIONS = {"remotes": "remotes_group", "mcp-servers": "mcp_servers"}


class _Commands(click.Group):
    completing = False  # True while a shell asks for the values of a word

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's shape
        return list(_MODULES)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            import difflib  # only to tell of a mistake

            like = difflib.get_close_matches(args[0], _MODULES, 1)
            more = f" Did you mean {like[0]!r}?" if like else ""
            raise click.UsageError(error.message + more, ctx) from None

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's shape
        if cmd_name not in _MODULES:
            return None
        module = importlib.import_module(f"occ_app.cli.{_MODULES[cmd_name]}")
        command: click.Command = getattr(module, _FUNCTIONS.get(cmd_name, cmd_name))
        if self.completing:
            from occ_app.cli.completion import offer_values

            offer_values(command, cmd_name)
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]}, epilog=EXIT_CODES)
@click.version_option(__version__, prog_name="occ")
def occ() -> None:
    """Turn this machine into a Claude Code agent that can be driven from anywhere.

    \b
    occ demo     see it work, with nothing set up
    occ up       a page on this machine: start everything, print a link
    occ start    start the agent: an HTTP API that runs Claude Code on prompts
    occ run      send a folder and a prompt, watch the answer come
    occ chat     the same as a conversation, with approvals and undo
    occ jobs     list, show, tail and cancel runs
    occ login    use an agent or hub elsewhere from here on
    occ hub      one address for many agents
    """
    for sentence in configuration.unknown_variables():
        output.warn(sentence)
