"""The operator's MCP servers.

They are stored in mcp-servers.json in the home, and passed to the CLI in a file for each run. The file holds secrets:
only its owner can read it, and none of them reaches the API or a command line.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from occ_app.config.config import Config
from occ_app.config.permission_rules import Rule
from occ_app.errors import ConfigError
from occ_app.system.files import write_file

FILE = "mcp-servers.json"
CONNECT_SECONDS = 5  # for the CLI to wait for a server before the first prompt
RETRY_SECONDS = 600.0  # for which a server that did not answer is left out
NOTE = "mcpServers"  # where the time of its last failure is noted

_NAME = r"[A-Za-z0-9][A-Za-z0-9-]{0,62}"  # without underscores: tools are called mcp__NAME__TOOL
# A server does not start in the workspace: there it would find other programs and modules of the same names.
_ELSEWHERE = ("/bin/sh", "-c", 'cd / && exec "$@"', "occ")


@dataclass(frozen=True)
class Server:
    """A program with its arguments and variables, or the URL of a server with headers."""

    name: str
    command: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    url: str | None = None
    transport: str = "http"
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def fingerprint(self) -> str:
        """A hash of all of it: a changed server is another one."""
        return hashlib.sha256(json.dumps(_stored(self), sort_keys=True).encode()).hexdigest()[:16]


def load(config: Config) -> list[Server]:
    """Return the servers. Raises ConfigError when their file cannot be read."""
    path = config.home / FILE
    try:
        content = json.loads(path.read_bytes())
        return [_server(name, value) for name, value in content["mcpServers"].items()]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} cannot be read ({type(error).__name__}); mend it or move it away.") from None


def save(config: Config, servers: Collection[Server]) -> None:
    """Replace the servers."""
    config.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = config.home / FILE
    descriptor = os.open(path.with_name(f".{FILE}.{os.getpid()}"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.close(descriptor)  # made with its mode before there is a secret in it
    write_file(path, json.dumps({"mcpServers": {server.name: _stored(server) for server in servers}}, indent=2))


def checked_name(name: str) -> str:
    """Return a name that can be a server's. Raises ConfigError."""
    if not re.fullmatch(_NAME, name):
        raise ConfigError(f"{name!r} cannot be a server's name: use letters, digits and hyphens.")
    return name


def chosen(servers: Collection[Server], permissions: str, rules: Collection[Rule]) -> list[Server]:
    """Return the servers for a run.

    All where people are asked, else those with a tool that a rule allows.
    """
    if permissions in ("ask", "full"):
        return list(servers)
    if permissions == "plan":
        return []
    allowed = [f"{rule.tool}__" for rule in rules if rule.decision == "allow" and rule.tool.startswith("mcp__")]
    return [server for server in servers if any(tool.startswith(f"mcp__{server.name}__") for tool in allowed)]


def answering(servers: Collection[Server], failures: Mapping[str, Any], now: float) -> list[Server]:
    """Return the servers that did not fail lately.

    `failures` has the fingerprint and time of each server's last failure.
    """
    return [server for server in servers if not failed_lately(server, failures, now)]


def failed_lately(server: Server, failures: Mapping[str, Any], now: float) -> bool:
    """Return whether a server failed to answer within the last RETRY_SECONDS.

    A server that was changed since counts as new.
    """
    failure = failures.get(server.name)
    if not isinstance(failure, Mapping) or failure.get("fingerprint") != server.fingerprint:
        return False
    at = failure.get("at")
    return isinstance(at, (int, float)) and 0 <= now - at < RETRY_SECONDS


def failures_after(
    servers: Collection[Server], init: Mapping[str, Any] | None, before: Mapping[str, Any], now: float
) -> dict[str, Any]:
    """Return the failures after a run.

    Its CLI began with these servers and printed `init`.
    """
    listed = init.get("mcp_servers") if init is not None else None
    states = {each.get("name"): each.get("status") for each in listed or () if isinstance(each, dict)}
    after = dict(before)
    for server in servers:
        if states.get(server.name) == "connected":
            after.pop(server.name, None)
        elif server.name in states:
            after[server.name] = {"fingerprint": server.fingerprint, "at": now}
    return after


@contextlib.contextmanager
def given(config: Config, number: int, servers: Collection[Server]) -> Iterator[Path | None]:
    """Write the file for the CLI of an execution, for as long as it runs.

    None without servers. Raises OSError.
    """
    if not servers:
        yield None
        return
    path = config.run / "mcp" / f"{number}.json"
    content = json.dumps({"mcpServers": {server.name: _for_cli(server) for server in servers}})
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(content)
        yield path
    finally:
        path.unlink(missing_ok=True)


def secrets(config: Config) -> dict[str, str]:
    """Return the values of variables and headers, named as secrets.

    Empty for a file that cannot be read.
    """
    with contextlib.suppress(ConfigError):
        values = [value for server in load(config) for value in (*server.env.values(), *server.headers.values())]
        return {f"MCP_SECRET_{number}": value for number, value in enumerate(values)}
    return {}


def _for_cli(server: Server) -> dict[str, Any]:
    if server.url is not None:
        return {"type": server.transport, "url": server.url, "headers": dict(server.headers)}
    program, *arguments = (*_ELSEWHERE, *server.command)
    return {"type": "stdio", "command": program, "args": arguments, "env": dict(server.env)}


def _stored(server: Server) -> dict[str, Any]:
    if server.url is not None:
        return {"type": server.transport, "url": server.url, "headers": dict(server.headers)}
    return {"command": server.command[0], "args": list(server.command[1:]), "env": dict(server.env)}


def _server(name: str, value: Mapping[str, Any]) -> Server:
    if not re.fullmatch(_NAME, name):
        raise ValueError("a name with other characters")
    if "url" in value:
        return Server(
            name, url=str(value["url"]), transport=str(value.get("type", "http")), headers=_texts(value.get("headers"))
        )
    return Server(name, (str(value["command"]), *map(str, value.get("args", ()))), _texts(value.get("env")))


def _texts(value: Any) -> dict[str, str]:
    return {str(name): str(text) for name, text in (value or {}).items()}
