"""occ mcp-servers add | list | remove: the operator's MCP servers for runs."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import click

from occ_app.claude import mcp_servers as servers
from occ_app.claude.mcp_servers import Server
from occ_app.cli import output
from occ_app.config import client_variables
from occ_app.config import config as configuration
from occ_app.config.config import Config
from occ_app.config.settings import http_url
from occ_app.database import schema
from occ_app.errors import NotFound, OCCError
from occ_app.home import notes
from occ_app.system.foreign_text import visible_line


@click.group("mcp-servers")
def mcp_servers() -> None:
    """Add, list and remove MCP servers that runs may use.

    Runs with the permission ask or full get all of them; with ask a person is asked about each call. Runs with edit
    get those that `occ start --allow mcp__NAME` names. Servers of an uploaded folder stay unread. The agent need not
    run.

    \b
    Examples:
      occ mcp-servers add tickets -- tickets-mcp --readonly
      occ mcp-servers list
    """


@mcp_servers.command()
@click.argument("name")
@click.argument("command", nargs=-1)
@click.option("--url", metavar="URL", help="Call the server at this address instead of starting a program.")
@click.option("--sse", is_flag=True, help="The server at the URL speaks the older transport, SSE.")
@click.option("--env", "env", multiple=True, metavar="NAME=@FILE", help="Variable of the program; see below.")
@click.option("--header", "headers", multiple=True, metavar="NAME=@FILE", help="Header for the URL; see below.")
def add(
    name: str, command: tuple[str, ...], url: str | None, sse: bool, env: tuple[str, ...], headers: tuple[str, ...]
) -> None:
    """Add the MCP server NAME: a program after --, or a --url.

    A value of --env and --header is the first line of a file, as in TOKEN=@token.txt, so that no secret is on a command
    line. Without a value, as in --env TOKEN, you are asked for it. Values are kept in mcp-servers.json in OCC's home,
    readable by you alone. The program starts in the folder /, not in a workspace.

    \b
    Examples:
      occ mcp-servers add tickets --env TOKEN=@token.txt -- tickets-mcp --readonly
      occ mcp-servers add docs --url https://example.com --header Authorization
    """
    if (url is None) == (not command):
        raise click.UsageError("Give a program after --, or --url, not both.")
    if (url is None and (headers or sse)) or (url is not None and env):
        raise click.UsageError("--env is for a program, --header and --sse are for a --url.")
    config = configuration.load()
    servers.checked_name(name)
    added = (
        Server(name, _absolute(command), _values(env))
        if url is None
        else Server(name, url=_address(url), transport="sse" if sse else "http", headers=_values(headers))
    )
    servers.save(config, [*(each for each in servers.load(config) if each.name != name), added])
    output.echo(f"{name}: {_shown(added)}")
    output.note(f"Its tools are called mcp__{name}__TOOL. `occ start --allow mcp__{name}` lets them run unasked.")


@mcp_servers.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def listing(as_json: bool) -> None:
    """List the MCP servers, without secrets.

    One that did not answer within 5 s is left out of runs for the next 10 minutes.

    \b
    Example:
      occ mcp-servers list
    """
    config = configuration.load()
    failures, now = _failures(config), time.time()
    records = [
        {
            "name": each.name,
            "command": list(each.command) or None,
            "url": each.url,
            "env": sorted(each.env),
            "headers": sorted(each.headers),
            "failed": servers.failed_lately(each, failures, now),
        }
        for each in servers.load(config)
    ]
    if as_json:
        output.echo(json.dumps({"mcpServers": records}))
        return
    if not records:
        output.echo("No MCP servers.")
        return
    rows = [
        (each.name, "did not answer" if record["failed"] else "", _shown(each))
        for each, record in zip(servers.load(config), records, strict=True)
    ]
    output.table([("NAME", "STATE", "SERVER"), *rows])


@mcp_servers.command()
@click.argument("name")
def remove(name: str) -> None:
    """Remove the MCP server NAME; runs that have begun keep it.

    \b
    Example:
      occ mcp-servers remove tickets
    """
    config = configuration.load()
    known = servers.load(config)
    if not any(each.name == name for each in known):
        raise NotFound("NOT_FOUND", f"There is no MCP server {name}; `occ mcp-servers list` lists them.")
    servers.save(config, [each for each in known if each.name != name])
    output.echo(f"{name} is removed")


def _absolute(command: tuple[str, ...]) -> tuple[str, ...]:
    """Return a command with absolute paths of its program and files.

    Raises UsageError.
    """
    program = shutil.which(command[0])
    if program is None:
        raise click.UsageError(f"There is no program {command[0]!r}; give its path, or install it.")
    files = [str(Path(each).absolute()) if _is_file(each) else each for each in command[1:]]
    return (str(Path(program).absolute()), *files)


def _is_file(argument: str) -> bool:
    try:
        return Path(argument).exists()
    except (OSError, ValueError):
        return False


def _address(url: str) -> str:
    try:
        return http_url(url) + ("/" if url.strip().endswith("/") else "")
    except ValueError as error:
        raise click.UsageError(f"--url cannot be used: {error}.") from None


def _values(pairs: tuple[str, ...]) -> dict[str, str]:
    """Return the values of --env or --header.

    They are from a file, typed now, or, unless they are secrets, from the option.
    """
    values = {}
    for pair in pairs:
        name, given, value = pair.partition("=")
        if not name or any(char in name for char in " \t\n:"):
            raise click.UsageError(f"{pair.partition('=')[0]!r} cannot be the name of a variable or header.")
        if not given:
            value = click.prompt(name, hide_input=True, err=True)
        elif value.startswith("@"):
            value = client_variables.read_line(value[1:], name)
        elif any(word in name.upper() for word in ("KEY", "TOKEN", "SECRET", "PASS", "AUTH")):
            raise click.UsageError(f"Other users can see an argument: give {name}=@FILE, or {name} alone to type it.")
        values[name] = value
    return values


def _shown(server: Server) -> str:
    return visible_line(server.url or " ".join(server.command))


def _failures(config: Config) -> dict[str, Any]:
    try:
        return (
            notes.noted(schema.opened(config.database, readonly=True), servers.NOTE) if config.database.exists() else {}
        )
    except OCCError:
        return {}
