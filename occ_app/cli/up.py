"""occ up | down: a joined hub and agent on this machine, with a link to the page."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import click

from occ_app import errors
from occ_app.cli import output, service_unit
from occ_app.cli.hub_address import address, is_local
from occ_app.cli.pairing import print_link
from occ_app.cli.remote import daemon_client, settings
from occ_app.cli.start import start_daemon
from occ_app.client.agent_client import AgentClient
from occ_app.config import config as configuration
from occ_app.config.config import Config, HubConfig
from occ_app.config.options import HUB_OPTIONS, values
from occ_app.config.settings import PERMISSIONS, is_loopback
from occ_app.database.database import Database
from occ_app.home import daemon, notes, state

F = TypeVar("F", bound=Callable[..., Any])

_KEY = "occ-up"
_JOIN_SECONDS = 20.0
_OPTIONS = {option.setting: option for option in HUB_OPTIONS}


def _hub_option(setting: str) -> Callable[[F], F]:
    option = _OPTIONS[setting]
    return click.option(option.name, setting, metavar=option.metavar, help=option.help, multiple=option.repeated)


@click.command()
@click.option("--lan", is_flag=True, help="Let devices on your network reach the page. Needs TLS and --permissions.")
@click.option(
    "--public-url",
    metavar="URL",
    help="The https address under which devices reach the page. Needs TLS or --trusted-proxy, and --permissions.",
)
@click.option(
    "--permissions",
    type=click.Choice(PERMISSIONS),
    help="The most that runs on this machine may do.  [default on loopback: ask]",
)
@_hub_option("http_port")
@_hub_option("tls")
@_hub_option("tls_cert")
@_hub_option("tls_key")
@_hub_option("trusted_proxies")
def up(lan: bool, public_url: str | None, permissions: str | None, **flags: Any) -> None:
    """Start a hub and an agent, and print a link to the page.

    The link logs one browser in, once, within 10 minutes. While both run, it prints another link. The files are those
    of `occ start` and `occ hub start`, and so are the settings.

    \b
    Examples:
      occ up
      occ up --lan --tls self-signed --permissions edit
    """
    hub = _hub_settings(lan, public_url, flags)
    agent = configuration.load(flags={"permissions": permissions})
    _check_exposure(hub, agent)
    asked = lan or public_url is not None or any(flags.values())
    show(start(hub, agent, reconfigured=asked))


@dataclass(frozen=True)
class Up:
    """A hub and an agent that run and are joined."""

    running: daemon.Daemon
    client: AgentClient  # of the hub, as its operator
    pairing: Mapping[str, Any]  # a one-time code for a first session
    warnings: tuple[str, ...]


def start(hub: HubConfig, agent: Config, *, die_with: int | None = None, reconfigured: bool = False) -> Up:
    """Start a hub and an agent unless they run, and join them.

    `die_with` is the pid of this process when they shall not outlive it. Raises AlreadyRunning for an agent that
    belongs to no hub or to another one, and, when the hub is to be `reconfigured`, for a hub that runs.
    """
    running, joined = daemon.find(hub), _is_joined(hub, agent)
    if running is not None and reconfigured:
        raise errors.AlreadyRunning(
            f"The hub runs at {address(running)} already; `occ down` stops it, then start it with these options."
        )
    if daemon.find(agent) is not None and not joined:
        raise errors.AlreadyRunning(
            f"An agent runs in {agent.home} already and has not joined this hub; `occ stop` stops it, then try again."
        )
    exposed = _is_exposed(hub.bind_address, hub.public_url)
    if running is not None:
        exposed = _is_exposed(running.host, running.public_url)  # as it was started
    if daemon.find(agent) is None and exposed:
        _check_ceiling(agent)
    warnings = list[str]()
    if running is None:
        warnings += start_daemon(hub, die_with=die_with)["warnings"]
        running = daemon.find(hub)
        if running is None:
            raise errors.StartFailed(f"The hub ended right after its start; {hub.logs / 'daemon.log'} says why.")
    client = daemon_client(hub, running)
    role = "admin" if is_local(address(running)) else "owner"
    pairing = client.call("POST", "/pairings", {"role": role})
    if daemon.find(agent) is None:
        key = _agent_key(client, pairing["ownerId"])
        warnings += start_daemon(_joining(agent, running, key), die_with=die_with)["warnings"]
    warnings += _await_joined(agent, client)
    return Up(running, client, pairing, tuple(warnings))


def show(both: Up) -> None:
    """Print the address of the page, and a link or QR code for one login."""
    for warning in both.warnings:
        output.warn(warning)
    output.echo(f"OCC is up at {address(both.running)}", err=True)
    role = both.pairing["role"]
    print_link(both.running, both.pairing)
    if role != "admin":
        output.note("`occ hub pair --role admin` makes a link for a device that manages the hub.")
    output.note("`occ down` stops both.")


@click.command()
def down() -> None:
    """Stop this machine's hub and agent.

    Waiting runs start at the next `occ up`. An agent that belongs to another hub keeps running.

    \b
    Example:
      occ down
    """
    hub, agent = settings("hub"), settings()
    assert isinstance(hub, HubConfig)  # noqa: S101 - by its kind
    stopped = False
    for config, wanted in ((agent, _is_joined(hub, agent)), (hub, True)):
        running = daemon.find(config)
        if running is None:
            continue
        if not wanted:
            output.note(f"The agent in {agent.home} has not joined this hub and keeps running; `occ stop` stops it.")
            continue
        stopped = True
        if not daemon.stop(config, running):
            output.warn(f"{config.program.name} did not stop in time and was killed.")
        service_unit.note_stopped(config)
    output.echo("OCC is down." if stopped else "OCC is not running.")


def _hub_settings(lan: bool, public_url: str | None, flags: dict[str, Any]) -> HubConfig:
    given = dict.fromkeys(_OPTIONS) | flags | {"public_url": public_url}
    given = values(HUB_OPTIONS, given | {"bind_address": "0.0.0.0" if lan else None, "allowed_hosts": ()})  # noqa: S104 - asked for
    return configuration.load_hub(flags=given)


def _check_exposure(hub: HubConfig, agent: Config) -> None:
    """Raise UsageError for a hub that others reach without TLS.

    Raise it also for one without a limit for runs.
    """
    if not _is_exposed(hub.bind_address, hub.public_url):
        return
    secure = bool(hub.tls or hub.tls_cert)
    if hub.public_url is not None and not hub.public_url.startswith("https://"):
        raise click.UsageError(
            "--public-url must begin with https://: without TLS, others can read the link that logs in."
        )
    if not secure and not (hub.trusted_proxies and hub.public_url):
        raise click.UsageError(
            "Others can read what is sent without TLS: add --tls self-signed, or --tls-cert and --tls-key. For a proxy"
            " that speaks TLS, pass its address as --trusted-proxy and its https address as --public-url."
        )
    _check_ceiling(agent)


def _check_ceiling(agent: Config) -> None:
    if agent.permissions is None:
        raise click.UsageError(
            "Others reach this page: limit the runs on this machine with --permissions, one of"
            f" {', '.join(PERMISSIONS)}. `occ up --help` has an example."
        )


def _is_exposed(host: str, public_url: str | None) -> bool:
    """Whether others than this machine reach a hub that listens on this host."""
    return public_url is not None or not is_loopback(host)


def _is_joined(hub: HubConfig, agent: Config) -> bool:
    """Return whether this home's agent is registered with this home's hub.

    It registered there last, and does not run standalone now.
    """
    used = daemon.environment(agent)
    if used is not None and not used.get("OCC_REMOTE_URL"):
        return False
    known = state.load(agent.state)
    if known is None or known.hub_id is None or not hub.database.exists():
        return False
    return notes.noted(Database(hub.database, readonly=True), "hub").get("id") == known.hub_id


def _joining(agent: Config, running: daemon.Daemon, key: str) -> Config:
    """Return the settings of an agent that joins the hub.

    It joins over its link only, with a key that is not stored.
    """
    secure = running.fingerprint is not None
    # A certificate of an authority may be renewed while the agent runs, so that it is verified and not pinned.
    by_name = secure and not running.self_signed and running.public_url is not None
    return replace(
        agent,
        remote_url=running.public_url if by_name else running.url,
        remote_pin=running.fingerprint if secure and not by_name else None,
        api_key=key,
        permissions=agent.permissions or "ask",
        bind_address="127.0.0.1",
        public_url=None,
    )


def _agent_key(client: AgentClient, owner: str) -> str:
    """Return a new secret for the key with which this machine joins its hub.

    A new key belongs to this owner.
    """
    known = client.call("GET", "/keys")["keys"]
    if any(key["name"] == _KEY and key["for"] == "agent" and key["revokedAt"] is None for key in known):
        return str(client.call("POST", f"/keys/{_KEY}/rotate", {})["key"])
    return str(client.call("POST", "/keys", {"name": _KEY, "for": "agent", "owner": owner})["key"])


def _await_joined(agent: Config, client: AgentClient) -> list[str]:
    """Wait until the hub reaches the agent; returns a warning if that takes long."""
    deadline = time.monotonic() + _JOIN_SECONDS
    while time.monotonic() < deadline:
        known = state.load(agent.state)
        try:
            if known and known.agent_id and client.call("GET", f"/agents/{known.agent_id}")["via"]:
                return []
        except errors.Refused as refusal:
            if refusal.status != 404:
                raise
        time.sleep(0.05)
    return [f"The agent has not joined the hub yet; it keeps trying, and {agent.logs / 'control.log'} says why."]
