"""Registration of an agent with its hub at the start."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from occ_app import __version__
from occ_app.claude import program as claude_cli
from occ_app.claude.program import Cli
from occ_app.config.config import Config
from occ_app.config.settings import is_loopback
from occ_app.database.database import Database
from occ_app.errors import Refused, Unreachable
from occ_app.home import certificate as tls
from occ_app.home import notes as agent
from occ_app.home import state

if TYPE_CHECKING:  # a standalone agent does without the memory of the HTTP client
    from occ_app.client.hub_client import HubClient

PROTOCOL = 1


def register_or_warn(config: Config, port: int) -> list[str]:
    """Register with the hub, or make sure of a token where there is none; returns warnings for a person.

    A hub that cannot be reached is a warning: the control process keeps trying. Raises Refused when the hub refuses
    this agent: a wrong key, or a version it cannot speak to.
    """
    warnings = []
    cli = claude_cli.probe(config) if config.remote_url else claude_cli.Cli(claude_cli.find(config), None)
    if cli.path is None:
        warnings.append(claude_cli.missing(config))
    registration: dict[str, Any] = {"registered": False, "standalone": not config.remote_url}
    if config.remote_url:
        from occ_app.client.hub_client import HubClient

        hub = HubClient(config.remote_url, pin=config.remote_pin)
        try:
            known = register(config, hub, port, cli)
            registration = {"registered": True}
            if known.name not in (None, config.name):
                warnings.append(f"The hub has a machine {config.name} already, so it calls this one {known.name}.")
            warnings += without_a_way(config, hub, known)
        except Refused as refusal:
            if refusal.status in (401, 403, 426):
                raise
            registration["problem"] = str(refusal)
        except Unreachable as error:
            registration["problem"] = str(error)
        if not registration["registered"]:
            warnings.append(f"{registration['problem']} Serving without it and registering in the background.")
    elif config.api_key:
        warnings.append("The API key is not used: without --remote-url (OCC_REMOTE_URL) this agent is standalone.")
    known = state.ensure(config.state)
    if known.remote_url and not config.remote_url:
        warnings.append(
            f"This agent was registered with {known.remote_url} and is standalone now; with --remote-url and --api-key,"
            " or with both in config.toml, it registers again."
        )
    agent.note(Database(config.database), "registration", registration)
    return warnings


def without_a_way(config: Config, hub: HubClient, known: state.State) -> list[str]:
    """Return a warning when the hub offers no link and cannot call an agent that listens on loopback."""
    same_machine = is_loopback(urlsplit(hub.url).hostname or "")
    if config.called_directly or same_machine or hub.offers_link(known.agent_id or "", known.token) is not False:
        return []
    return [
        f"The server at {hub.url} offers no link and cannot reach this agent on {config.bind_address}. Start it with"
        " --bind-address ADDRESS and --tls self-signed, or with --public-url URL of a proxy in front of it."
    ]


def register(config: Config, hub: HubClient, port: int, cli: Cli) -> state.State:
    """Register, as the agent that state.json names or a new one, and swap state.json for the answer.

    Raises Refused or Unreachable; state.json is then as it was.
    """
    assert config.api_key is not None  # noqa: S101 - a remote URL without a key is refused before anything starts
    known = state.load(config.state)
    mine = known.agent_id if known and known.remote_url == config.remote_url else None
    certificate = tls.certificate(config)
    answer = hub.register(
        config.api_key,
        {
            "protocol": PROTOCOL,
            "agentId": mine,
            "name": config.name,
            "version": __version__,
            "platform": f"{platform.system().lower()}-{platform.machine()}",
            "url": config.public_url,
            "port": port,
            "direct": config.called_directly,
            "tlsFingerprint": certificate.fingerprint if certificate else None,
            "workers": config.workers,
            "labels": list(config.labels),
            "claudeVersion": cli.version,
        },
    )
    registered = state.State(
        answer.token, answer.agent_id, answer.heartbeat_interval_seconds, config.remote_url, answer.name
    )
    state.save(config.state, registered)
    return registered
