"""Measures that only a hub has."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from occ_app.api.measures import Histogram, Measure, Metric, gauge
from occ_app.database.database import Database
from occ_app.home import notes as agent
from occ_app.hub.agent_clients import Calls
from occ_app.hub.agents import Agent, Agents


def of_hub(db: Database, agents: Agents, calls: Calls) -> Measure:
    """Return the measure of a hub: its machines, and the lag of its relays."""

    def measure() -> Iterable[Metric | Histogram]:
        machines = agents.listing()

        def each(name: str, meaning: str, value: Callable[[Agent], float]) -> Metric:
            values: dict[tuple[str, ...], float] = {(m.agent_id, m.name): value(m) for m in machines}
            return Metric(name, meaning, values, ("agent", "name"))

        yield each("occ_agent_online", "Whether an agent's lease is valid.", lambda m: m.online)
        # Infinite when the last heartbeat was before the boot of the hub's machine; Prometheus can show that.
        yield each(
            "occ_agent_lease_age_seconds", "Seconds since an agent's last heartbeat.", lambda m: m.silent_seconds
        )
        yield each("occ_agent_workers", "Executions an agent can run at once.", lambda m: m.workers)
        yield each("occ_agent_workers_busy", "Executions an agent is running.", lambda m: max(m.busy, m.placed))
        ways = [calls.via(machine) or "none" for machine in machines if machine.online]
        reached: dict[tuple[str, ...], float] = {(way,): ways.count(way) for way in ("direct", "link", "none")}
        yield Metric("occ_agents_reached", "Agents that are online, by how the hub reaches them.", reached, ("via",))
        relays = agent.noted(db, "relays")
        yield gauge("occ_relays", "Executions that are being relayed.", relays.get("relays", 0))
        yield gauge("occ_relays_away", "Relayed executions whose agent does not answer.", relays.get("away", 0))
        yield gauge(
            "occ_relay_lag_seconds",
            "Longest recent time from an agent's event to its row on the hub, by both clocks.",
            relays.get("lagSeconds", 0),
        )

    return measure
