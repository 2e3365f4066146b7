"""The objects shared by the relays of one process."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass

from occ_app.config.config import HubConfig
from occ_app.database.database import Database
from occ_app.hub.agent_clients import Calls
from occ_app.hub.agents import Agents
from occ_app.streams.doorbell import Ringer


@dataclass(frozen=True)
class RelayContext:
    """The objects shared by the relays of one process.

    `rest` waits for at most so many seconds, or until an event that may concern the relays. `removed` holds the ids of
    removed agents. `stopping` returns whether the process is stopping.
    """

    config: HubConfig
    hub_id: str
    db: Database
    agents: Agents
    calls: Calls
    readers: Ringer
    rest: Callable[[float], None]
    removed: Container[str]
    stopping: Callable[[], bool]
