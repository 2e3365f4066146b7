"""The objects that only a hub's views use."""

from __future__ import annotations

from dataclasses import dataclass, field

from flask import current_app

from occ_app.config.config import HubConfig
from occ_app.hub import registrations
from occ_app.hub.agent_clients import Calls
from occ_app.hub.agents import Agents
from occ_app.hub.links import Links


@dataclass(frozen=True)
class HubServices:
    """The objects that the hub's views use besides the services of every API."""

    config: HubConfig
    agents: Agents
    calls: Calls
    links: Links
    nonces: registrations.Nonces = field(default_factory=registrations.Nonces)
    room: dict[str, tuple[str, int | None]] = field(
        default_factory=dict
    )  # status and busy workers from each agent's last heartbeat


def hub_services() -> HubServices:
    """Return the hub's services of the current application."""
    existing: HubServices = current_app.extensions["occ_hub"]
    return existing
