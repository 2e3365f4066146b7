"""The agent or hub that a command talks to: the agent of this machine, or what its options name."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from occ_app import errors
from occ_app.cli import output
from occ_app.config import config as configuration
from occ_app.config.config import Config, HubConfig
from occ_app.config.settings import http_url
from occ_app.home import daemon, state

if TYPE_CHECKING:
    from occ_app.client.agent_client import AgentClient

_FINGERPRINT = r"([0-9A-Fa-f]{2}:?){32}"


def settings(kind: str = "agent") -> Config:
    """The settings of an agent or a hub that is there already; the defaults, with a warning, where they are wrong."""
    made = {each.program.kind: each for each in (Config, HubConfig)}[kind]
    home = configuration.home_folder(program=made.program)
    try:
        return configuration.load_daemon(kind)
    except errors.ConfigError as error:
        output.warn(f"{error} Its next start would refuse that.")
    return made(home=home)


def options(what: str) -> Callable[[Any], Any]:
    """The options --url, --token and --pin; `what` describes the URL."""

    def add(command: Any) -> Any:
        for option in (
            click.option("--pin", metavar="FINGERPRINT", help="The TLS certificate to trust, and no other."),
            click.option(
                "--token",
                metavar="TOKEN",
                help="Its token or key. Pass @FILE or set OCC_TOKEN: other users can see an argument.",
            ),
            click.option("--url", metavar="URL", help=f"{what}  [default: the agent of this machine]"),
        ):
            command = option(command)
        return command

    return add


def chosen(url: str | None, token: str | None, pin: str | None, *, hub: bool = False) -> AgentClient:
    """Return a client of the agent or hub that the options name, else of this machine's agent, or hub with `hub`."""
    _check_pin(url, pin)
    if url is not None:
        return _client(url, token, pin)
    if not hub:
        return _local_client()
    return hub_client()


def _client(url: str, token: str | None, pin: str | None) -> AgentClient:
    """A client of the agent or hub that the options name."""
    from occ_app.client.agent_client import AgentClient

    try:
        url = http_url(url)
    except ValueError as error:
        raise click.UsageError(f"--url {url[:60]!r} cannot be used: {error}.") from None
    secret = configuration.read_secret(token, "--token") if token else configuration.client_token()
    if secret is None:
        raise click.UsageError("A URL needs its token or key: --token TOKEN, --token @FILE or OCC_TOKEN.")
    return AgentClient(url, secret, pin)


def _local_client() -> AgentClient:
    """A client of this machine's agent. Raises NotRunning."""
    from occ_app.client.agent_client import AgentClient

    config = settings()
    running = daemon.find(config)
    known = state.load(config.state)
    if running is None or known is None:
        raise errors.NotRunning(f"OCC is not running in {config.home}; `occ start` starts it.")
    return AgentClient(running.url, known.token, running.fingerprint)


def _check_pin(url: str | None, pin: str | None) -> None:
    """Raises UsageError for a pin that nothing can be held to."""
    if pin is not None and not (url or "").startswith("https://"):
        raise click.UsageError("--pin is for an address with TLS: give its --url https://… too.")
    if pin is not None and not re.fullmatch(_FINGERPRINT, pin):
        raise click.UsageError("--pin wants the 32 bytes of a SHA-256 fingerprint, as in 3A:9F:…")


def again(url: str | None, pin: str | None) -> str:
    """Return the options with which a printed command reaches the same place, without the token."""
    return (f" --url {url} --token …" if url else "") + (f" --pin {pin}" if pin else "")


def daemon_client(config: Config, running: daemon.Daemon) -> AgentClient:
    """A client of a daemon of this machine, with its own token."""
    from occ_app.client.agent_client import AgentClient

    known = state.load(config.state)
    return AgentClient(running.url, known.token if known else "", running.fingerprint)


def hub_client() -> AgentClient:
    """A client of this machine's hub, as its operator. Raises NotRunning."""
    return daemon_client(settings("hub"), running_hub())


def running_hub() -> daemon.Daemon:
    """This machine's hub. Raises NotRunning."""
    config = settings("hub")
    running = daemon.find(config)
    if running is None:
        raise errors.NotRunning(f"The hub is not running in {config.home}; `occ hub start` starts it.")
    return running
