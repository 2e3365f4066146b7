"""The machines of a hub: registrations, leases and capacity, and all SQL on them.

An agent is online while its lease lasts, which allows for two missed heartbeats. The state is computed on each read,
on the clock that counts from the boot of the hub's machine, and is never stored: a silent machine cannot appear to be
online.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from typing import Any

from occ_app import errors
from occ_app.database import rows
from occ_app.database.database import Database
from occ_app.hub import projects
from occ_app.system.compact_json import to_json
from occ_app.system.process_identity import boot_id
from occ_app.system.timestamps import iso, iso_now

PROTOCOL = 1
_SLACK_SECONDS = 2.0  # beyond two intervals, for a heartbeat in transit

ONLINE = """
    (a.heard_boot_id = :boot AND :now - a.heard <= :lease AND a.status != 'stopping'
     AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > :today))
"""
_COLUMNS = f"""
    a.*, {ONLINE} AS online,
    (SELECT count(*) FROM executions x WHERE x.agent_id = a.agent_id AND x.state = 'running') AS placed
"""  # noqa: S608 - literals
FROM = f"SELECT {_COLUMNS} FROM agents a JOIN keys k ON k.key_id = a.key_id"  # noqa: S608 - literals
# A machine without a heartbeat for the set days and with nothing placed on it is forgotten: no list or count has it.
KEPT = """(
    a.last_seen_at > :forgotten
    OR a.agent_id IN (SELECT w.agent_id FROM workspaces w WHERE w.agent_id IS NOT NULL AND w.source = 'upload')
    OR a.agent_id IN (
        SELECT x.agent_id FROM executions x WHERE x.state IN ('running', 'parked') AND x.local_sharing IS NULL)
)"""


@dataclass(frozen=True)
class Agent:
    """A row of `agents`.

    `placed` counts the hub's executions on it; `busy` is from its last heartbeat. `machine_id` and `verifier` identify
    the machine, and `instance` the daemon start that registered; they are None for an agent that sends no proof, such
    as version 0.1.0. `copied_at` is when a copy of its home was last refused. `capabilities` and `permissions` (the
    most that it allows) are from its registration, `problems` are the sentences of its last heartbeat.
    """

    agent_id: str
    key_id: str
    name: str
    token: str = field(repr=False)
    url: str | None
    address: str
    port: int
    tls_fingerprint: str | None
    workers: int
    labels: tuple[str, ...]
    version: str
    platform: str
    claude_version: str | None
    registered_at: str
    draining: bool
    reachable: str | None
    status: str
    busy: int
    waiting: int
    running: tuple[str, ...]
    direct: bool
    last_seen_at: str
    heard_boot_id: str
    heard: float
    machine_id: str | None
    verifier: str | None = field(repr=False)
    instance: str | None
    copied_at: str | None
    capabilities: tuple[str, ...]
    permissions: str | None
    problems: tuple[str, ...]
    online: bool
    placed: int

    @property
    def state(self) -> str:
        """Return `offline`, `draining` or `online`; the first that applies."""
        if not self.online:
            return "offline"
        return "draining" if self.draining else "online"

    @property
    def silent_seconds(self) -> float:
        """Return the seconds since its last heartbeat.

        Returns infinity when that was before the boot of the hub's machine.
        """
        return boottime() - self.heard if self.heard_boot_id == boot_id() else float("inf")


_NAMES = tuple(column.name for column in fields(Agent))


def unknown_agent(name: str, count: int = 0) -> errors.NotFound:
    why = f"There are {count} agents" if count else "There is no agent"
    message = f"{why} named {name}. List agents and their ids with `occ hub agents` or GET /agents."
    return errors.NotFound("AGENT_NOT_FOUND", message, {"agent": name})


def boottime() -> float:
    """Return the seconds since this machine's boot, including time asleep."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Agents:
    """The machines of one hub.

    `interval` is the number of seconds between heartbeats that the hub asks of its agents. A machine that has been
    silent for `forget_days` and has nothing placed on it is forgotten: its row stays, and its next heartbeat lists it
    again.
    """

    def __init__(self, db: Database, interval: float, forget_days: float = 30) -> None:
        self.db = db
        self.interval = interval
        self._forget_days = forget_days

    @property
    def lease_seconds(self) -> float:
        """Return how long an agent counts as online after a heartbeat."""
        return 2 * self.interval + _SLACK_SECONDS

    def beat(self, agent_id: str, token: str, said: Mapping[str, Any]) -> bool:
        """Record a heartbeat, and return whether it was accepted.

        Returns False when the agent is not registered with this token or its key is not valid. Returns False also for
        a copy of the agent's home, which has the token but is another instance.
        """
        with self.db.write(durable=False) as connection:
            return bool(
                connection.execute(
                    """
                    UPDATE agents SET status = :status, busy = :busy, waiting = :waiting, running = :running,
                        problems = :problems, version = :version, last_seen_at = :now,
                        heard_boot_id = :boot, heard = :heard
                    WHERE agent_id = :agent_id AND token = :token AND (:instance IS NULL OR instance IS :instance)
                    AND key_id IN
                        (SELECT key_id FROM keys WHERE revoked_at IS NULL AND (expires_at IS NULL OR expires_at > :now))
                    """,
                    {
                        "agent_id": agent_id,
                        "token": token,
                        "status": said["status"],
                        "busy": said["workers"].get("busy", 0),
                        "waiting": said["queue"].get("depth", 0),
                        "running": to_json(said["executions"]),
                        "problems": to_json(said["problems"]),
                        "version": said["version"],
                        "instance": said["instance"],
                        "now": iso_now(),
                        "boot": boot_id(),
                        "heard": boottime(),
                    },
                ).rowcount
            )

    def holds(self, agent_id: str, token: str) -> bool:
        """Return whether this token is the agent's and its key is valid."""
        with self.db.read() as connection:
            return (
                connection.execute(
                    "SELECT 1 FROM agents a JOIN keys k ON k.key_id = a.key_id WHERE a.agent_id = ? AND a.token = ?"
                    " AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > ?)",
                    (agent_id, token, iso_now()),
                ).fetchone()
                is not None
            )

    def find(self, agent_id: str) -> Agent | None:
        with self.db.read() as connection:
            return self.known(connection, agent_id)

    def known(self, connection: sqlite3.Connection, agent_id: str | None) -> Agent | None:
        """Return the agent with this id, inside the caller's transaction."""
        row = connection.execute(f"{FROM} WHERE a.agent_id = :id", self.times(id=agent_id)).fetchone()
        return None if row is None else agent_of(row)

    def named(self, name: str) -> Agent:
        """Return the agent with this id or name.

        Raises NotFound when there is none, or several have the name.
        """
        with self.db.read() as connection:
            return self.meant(connection, name)

    def meant(self, connection: sqlite3.Connection, name: str) -> Agent:
        """Return the same as `named`, inside the caller's transaction.

        A forgotten machine is found only when no other has the name.
        """
        rows = connection.execute(
            f"""
            SELECT *, a.agent_id = :name AS exact, {KEPT} AS kept FROM ({FROM}) a
            WHERE a.agent_id = :name OR a.name = :name
            """,  # noqa: S608 - literals
            self.times(name=name),
        ).fetchall()
        found = [row for row in rows if row["exact"]] or [row for row in rows if row["kept"]] or rows
        if len(found) != 1:
            raise unknown_agent(name, len(found))
        return agent_of(found[0])

    def newest(self) -> str | None:
        """Return the time of the newest registration.

        A caller that compares it with an earlier value learns whether an agent registered in between.
        """
        with self.db.read() as connection:
            newest: str | None = connection.execute("SELECT max(registered_at) FROM agents").fetchone()[0]
        return newest

    def listing(self) -> list[Agent]:
        """Return all agents that are not forgotten, by name."""
        with self.db.read() as connection:
            return self.listed(connection)

    def listed(self, connection: sqlite3.Connection) -> list[Agent]:
        """Return the same as `listing`, inside the caller's transaction."""
        rows = connection.execute(f"{FROM} WHERE {KEPT} ORDER BY a.name, a.agent_id", self.times()).fetchall()
        return [agent_of(row) for row in rows]

    def set_draining(self, agent_id: str, *, draining: bool) -> None:
        """Stop or resume placing executions on an agent."""
        with self.db.write() as connection:
            connection.execute("UPDATE agents SET draining = ? WHERE agent_id = ?", (draining, agent_id))

    def set_reachable(self, agent: Agent, how: str | None) -> None:
        """Record whether the address of this registration answers.

        A later registration is not changed.
        """
        with self.db.write(durable=False) as connection:
            connection.execute(
                "UPDATE agents SET reachable = ? WHERE agent_id = ? AND token = ? AND reachable IS NOT ?",
                (how, agent.agent_id, agent.token, how),
            )

    def remove(self, agent_id: str) -> list[int]:
        """Remove an agent and its projects.

        Its token is refused from now on, and its workspaces are placed again from their zips. Returns the numbers of
        the executions that were waiting for one of its projects and have ended.
        """
        with self.db.write() as connection:
            ended = projects.remove_of(connection, agent_id)
            connection.execute("DELETE FROM agents WHERE agent_id = ?", (agent_id,))
            connection.execute("DELETE FROM errands WHERE agent_id = ?", (agent_id,))
            connection.execute("UPDATE workspaces SET agent_id = NULL, placed = NULL WHERE agent_id = ?", (agent_id,))
            return ended

    def times(self, **more: Any) -> dict[str, Any]:
        """Return the parameters of FROM, ONLINE and KEPT, and those in `more`."""
        lease = self.lease_seconds
        forgotten = iso(datetime.now(UTC) - timedelta(days=self._forget_days))
        times = {"boot": boot_id(), "now": boottime(), "lease": lease, "today": iso_now(), "forgotten": forgotten}
        return {**times, **more}


def agent_of(row: sqlite3.Row) -> Agent:
    """Return a row of FROM as an Agent."""
    values = {name: row[name] for name in _NAMES}
    for name in ("labels", "running", "capabilities", "problems"):
        values[name] = rows.texts(values[name])
    for name in ("draining", "online", "direct"):
        values[name] = bool(values[name])
    return Agent(**rows.sound(Agent, values, values["agent_id"]))
