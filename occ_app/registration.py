"""Registering this agent with its hub and keeping what the hub answers."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

from occ_app import __version__, state
from occ_app.claude_cli import Cli
from occ_app.config import Config

if TYPE_CHECKING:  # a standalone agent does without the memory of the HTTP client
    from occ_app.client import HubClient

PROTOCOL = 1


def register(config: Config, hub: HubClient, port: int, cli: Cli) -> state.State:
    """Register, as the agent that state.json names or a new one, and swap state.json for the answer.

    Raises Refused or Unreachable; state.json is then as it was.
    """
    assert config.api_key is not None  # noqa: S101 - a remote URL without a key is refused before anything starts
    known = state.load(config.state)
    mine = known.agent_id if known and known.remote_url == config.remote_url else None
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
            "tlsFingerprint": None,
            "workers": config.workers,
            "labels": list(config.labels),
            "claudeVersion": cli.version,
        },
    )
    registered = state.State(answer.token, answer.agent_id, answer.heartbeat_interval_seconds, config.remote_url)
    state.save(config.state, registered)
    return registered
