"""The agent or hub that a command calls; only this module decides it.

The options, OCC_URL or `occ login` name it; else it is that of this machine.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from occ_app import errors
from occ_app.cli import output, remotes
from occ_app.config import client_variables, homes
from occ_app.config import config as configuration
from occ_app.config.config import Config, HubConfig
from occ_app.config.settings import http_url
from occ_app.home import daemon, state

if TYPE_CHECKING:
    from occ_app.client.agent_client import AgentClient

_FINGERPRINT = r"([0-9A-Fa-f]{2}:?){32}"


def settings(kind: str = "agent") -> Config:
    """Return the settings of an existing agent or hub.

    The defaults, with a warning, where they are wrong.
    """
    kind_of_config = {each.program.kind: each for each in (Config, HubConfig)}[kind]
    home = homes.home_folder(program=kind_of_config.program)
    try:
        return configuration.load_daemon(kind)
    except errors.ConfigError as error:
        output.warn(f"{error} Its next start would refuse that.")
    return kind_of_config(home=home)


def options(what: str) -> Callable[[Any], Any]:
    """Return the options --url, --token and --pin; `what` describes the URL."""

    def add(command: Any) -> Any:
        for option in (
            click.option("--pin", metavar="FINGERPRINT", help="The TLS certificate to trust, and no other."),
            click.option(
                "--token",
                metavar="TOKEN",
                help="Its token or key. Pass @FILE or set OCC_TOKEN: other users can see an argument.",
            ),
            click.option(
                "--url",
                metavar="URL",
                help=f"{what} A name of `occ remotes`, too; `local` is the agent of this machine,"
                " `local-hub` its hub."
                "  [default: OCC_URL, else the default of `occ remotes`, else local]",
            ),
        ):
            command = option(command)
        return command

    return add


@dataclass(frozen=True)
class Place:
    """The agent or hub elsewhere that a command calls; `label` is for a person."""

    url: str
    token: str = field(repr=False)
    pin: str | None
    label: str

    @property
    def client(self) -> AgentClient:
        from occ_app.client.agent_client import AgentClient

        return AgentClient(self.url, self.token, self.pin)


def decide(url: str | None, token: str | None, pin: str | None, *, hub: bool = False) -> Place | None:
    """Return the agent or hub elsewhere that is meant.

    None for this machine's agent, or with `hub` its hub. The first of these decides: `url`, an address or the name of
    a remote; `hub`; OCC_URL; the default remote. Raises UsageError or ConfigError.
    """
    if url == remotes.LOCAL:
        return None
    if url == remotes.LOCAL_HUB:
        return _local_hub(pin)
    if url is not None:
        return _named(url, token, pin)
    if not hub and (url := client_variables.client_url()) is not None:
        return _addressed(url, token, pin, "OCC_URL")
    known = None if hub else remotes.default()
    if known is None:
        _check_pin(None, pin)
        return None
    _check_pin(known.url, pin)
    return _place(known, _secret(token) or known.token, pin)


def _local_hub(pin: str | None) -> Place:
    """Return this machine's hub, as its operator.

    Raises NotRunning, and UsageError for a pin.
    """
    _check_pin(None, pin)
    running, identity = running_hub(), state.load(settings("hub").state)
    return Place(running.url, identity.token if identity else "", running.fingerprint, "the hub of this machine")


def place_name(url: str | None, token: str | None, pin: str | None) -> str:
    """Return a lasting name for the agent or hub that `decide` finds.

    It is its address, or the home of this machine's.
    """
    place = decide(url, token, pin)
    return place.url if place is not None else str(homes.home_folder())


def elsewhere(url: str | None, token: str | None, pin: str | None, *, hub: bool = False) -> AgentClient | None:
    """Return a client of the agent or hub that `decide` finds; None for a local one.

    It is named on standard error.
    """
    place = decide(url, token, pin, hub=hub)
    if place is None:
        return None
    output.note(f"at {place.label}")
    return place.client


def chosen(url: str | None, token: str | None, pin: str | None, *, hub: bool = False) -> AgentClient:
    """Return a client of the agent or hub that `decide` finds.

    Raises NotRunning for a local one that is down.
    """
    return elsewhere(url, token, pin, hub=hub) or local(hub=hub)


def local(*, hub: bool = False) -> AgentClient:
    """Return a client of this machine's agent or hub. Raises NotRunning."""
    return hub_client() if hub else _local_client()


def again(url: str | None, token: str | None, pin: str | None) -> str:
    """Return the options with which a printed command reaches the same place.

    They hold no token: it comes from the file that was given, the remote that was stored, or OCC_TOKEN.
    """
    trust = f" --token {shlex.quote(token)}" if token and token.startswith("@") else ""
    trust += f" --pin {pin}" if pin else ""
    if url is None:
        return trust
    known = remotes.at(url.rstrip("/")) if "://" in url else None
    if known is not None:
        return f" --url {known.name}{trust}"
    return f" --url {url}{trust}"


def _named(url: str, token: str | None, pin: str | None) -> Place:
    if "://" in url:
        return _addressed(url, token, pin, "--url")
    known = remotes.find(url)
    if known is None:
        raise click.UsageError(
            f"There is no remote {url[:60]!r}; `occ remotes` lists them, `occ login URL` adds one. An address begins"
            " with https:// or http://."
        )
    return _place(known, _secret(token) or known.token, pin)


def _addressed(url: str, token: str | None, pin: str | None, source: str) -> Place:
    """Return the agent or hub at an address.

    The key and the pin are those of a remote with this address, if any.
    """
    _check_pin(url, pin)
    try:
        address = http_url(url)
    except ValueError as error:
        raise click.UsageError(f"{source} {url[:60]!r} cannot be used: {error}.") from None
    known = remotes.at(address)
    secret = _secret(token) or client_variables.client_token() or (known.token if known else None)
    if secret is None:
        raise click.UsageError("A URL needs its token or key: OCC_TOKEN or --token @FILE. `occ login URL` keeps it.")
    pin = pin or _variable_pin(address)
    if known is not None:
        return _place(known, secret, pin)
    return Place(address, secret, pin, address)


def _place(known: remotes.Remote, secret: str, pin: str | None) -> Place:
    return Place(known.url, secret, pin or known.pin, f"{known.kind} {known.name} ({known.url})")


def _secret(token: str | None) -> str | None:
    return client_variables.read_secret(token, "--token") if token else None


def _variable_pin(url: str) -> str | None:
    """Return the pin in OCC_PIN for an address with TLS. Raises ConfigError."""
    pin = client_variables.client_pin()
    if pin is None or not url.startswith("https://"):
        return None
    if not is_fingerprint(pin):
        raise errors.ConfigError("OCC_PIN must be the 32 bytes of a SHA-256 fingerprint, as in 3A:9F:…")
    return pin


def _local_client() -> AgentClient:
    """Return a client of this machine's agent. Raises NotRunning."""
    from occ_app.client.agent_client import AgentClient

    config = settings()
    running = daemon.find(config)
    identity = state.load(config.state)
    if running is None or identity is None:
        from occ_app.cli.service_unit import start_line

        raise errors.NotRunning(
            f"OCC is not running in {config.home}; `{start_line(config)}` starts it, and `occ login URL` uses one"
            " elsewhere."
        )
    return AgentClient(running.url, identity.token, running.fingerprint)


def is_fingerprint(text: str) -> bool:
    """Whether a text is the SHA-256 of a certificate."""
    return re.fullmatch(_FINGERPRINT, text) is not None


def _check_pin(url: str | None, pin: str | None) -> None:
    """Raise UsageError for a pin without a certificate to compare."""
    if pin is None:
        return
    if url is None or url.startswith("http://"):
        raise click.UsageError("--pin is for an address with TLS: give its --url https://… too.")
    if not is_fingerprint(pin):
        raise click.UsageError("--pin must be the 32 bytes of a SHA-256 fingerprint, as in 3A:9F:…")


def is_hub(client: AgentClient) -> bool:
    """Return whether the client talks to a hub: only a hub lists agents."""
    try:
        client.call("GET", "/agents?limit=1")
    except errors.Refused as refusal:
        return refusal.code != "NOT_FOUND"
    return True


def daemon_client(config: Config, running: daemon.Daemon) -> AgentClient:
    """Return a client of a daemon of this machine, with its token."""
    from occ_app.client.agent_client import AgentClient

    identity = state.load(config.state)
    return AgentClient(running.url, identity.token if identity else "", running.fingerprint)


def hub_client() -> AgentClient:
    """Return a client of this machine's hub, as its operator. Raises NotRunning."""
    return daemon_client(settings("hub"), running_hub())


def running_hub() -> daemon.Daemon:
    """Return this machine's hub. Raises NotRunning."""
    config = settings("hub")
    running = daemon.find(config)
    if running is None:
        from occ_app.cli.service_unit import start_line

        raise errors.NotRunning(f"The hub is not running in {config.home}; `{start_line(config)}` starts it.")
    return running


def quoted(name: str) -> str:
    from urllib.parse import quote

    return quote(name, safe="")
