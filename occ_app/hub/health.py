"""The health of a hub, and its preparation at the start."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from occ_app import __version__
from occ_app.config.config import Config, HubConfig
from occ_app.database.database import Database
from occ_app.executions import queries as executions
from occ_app.executions.records import Outcome
from occ_app.home import certificate, clock, daemon, notes, state
from occ_app.home.health import is_recent, log_problems, skipped, skipped_problems, uptime
from occ_app.hub import placement
from occ_app.hub.agents import Agent, Agents
from occ_app.slack import status as slack
from occ_app.system import versions
from occ_app.system.timestamps import iso

_COPIED = "This was waiting when the hub's home was copied, and may have run since. Send it again if you still need it."
_SETTLE_SECONDS = 10.0  # for links to connect after a registration or a start of the hub


def ensure_hub_token(config: Config) -> None:
    """Create the token with which commands on this machine call the hub, if missing."""
    state.ensure(config.state)


def end_copied(config: Config) -> list[str]:
    """End the unplaced executions in a copy of a hub's home, and return warnings.

    They may have run since the copy was made. A copy is detected by the inode of occ.db.
    """
    inode = config.database.stat().st_ino
    with contextlib.closing(Database(config.database)) as database:
        if notes.first_note(database, "file", {"inode": inode})["inode"] == inode:
            return []
        ended = placement.end_unplaced(database, Outcome.failure("AGENT_LOST", _COPIED))
        notes.note(database, "file", {"inode": inode})
    if not ended:
        return []
    return [f"This home is a copy: {ended} executions waiting in it were ended, because they may have run since."]


def _without_a_way(machines: list[Agent], via: Callable[[Agent], str | None]) -> list[str]:
    """Return a problem for each online machine that the hub cannot call.

    Machines that registered in the last _SETTLE_SECONDS do not count.
    """
    before = iso(datetime.now(UTC) - timedelta(seconds=_SETTLE_SECONDS))
    return [
        f"Agent {machine.name} ({machine.agent_id}) is online, but the hub cannot call it: its link is not connected."
        " Allow WebSockets in any proxy between them, or start the agent with --public-url."
        for machine in machines
        if machine.registered_at < before and via(machine) is None
    ]


def _apart(machines: list[Agent]) -> list[str]:
    """Return a problem for each machine whose version is too far from the hub's."""
    return [
        f"Agent {machine.name} ({machine.agent_id}) has OCC {machine.version} and this hub {__version__}: more than one"
        " minor version apart. Run `occ upgrade` on the older one."
        for machine in machines
        if not versions.compatible(machine.version, __version__)
    ]


def _copied(machines: list[Agent]) -> list[str]:
    """Return a problem for each machine of which a copy registered within a day."""
    return [
        f"A copy of agent {machine.name} ({machine.agent_id}) registered at {machine.copied_at} while it was"
        " running, and is now another machine. Stop the one that you do not need."
        for machine in machines
        if machine.copied_at is not None and is_recent(machine.copied_at)
    ]


def health(
    config: HubConfig, db: Database, agents: Agents, via: Callable[[Agent], str | None] = lambda _: "link"
) -> dict[str, Any]:
    """Return the body of `/health`, in an agent's form.

    Its workers are those of all online machines.
    """
    busy, waiting = executions.counts(db)
    machines = [machine for machine in agents.listing() if machine.online]
    problems = []
    problems += certificate.problems(config)
    if not daemon.takes_work(config):
        problems.append("The hub is stopping and accepts no new work.")
    if waiting and not machines:
        problems.append("Executions are waiting, but no agent is online. See `occ hub agents`.")
    problems += [sentence for sentence in (daemon.replaced(config), clock.problem(db)) if sentence]
    if uptime(config.run / "daemon.json") > _SETTLE_SECONDS:
        problems += _without_a_way(machines, via)
    problems += _copied(machines)
    problems += _apart(machines)
    problems += log_problems(db)
    problems += skipped_problems(db)
    problems += slack.problems(config, db)
    return {
        "status": "degraded" if problems else "healthy",
        "version": __version__,
        "uptime": uptime(config.run / "daemon.json"),
        "heartbeat": {"lastSuccessfulAt": None, "consecutiveFailures": 0, "seqNum": 0},
        "workers": {"total": sum(machine.workers for machine in machines), "busy": busy},
        "queue": {"depth": waiting},
        "claude": {"version": None, "path": None},
        "skipped": skipped(db),
        "snapshots": None,
        "problems": problems,
    }
