"""Registrations: identifying the machine that registers, and all SQL for it.

A machine is identified by its proof over a nonce of this hub; its key, its name and the hub's address may change.
While an instance of a machine runs, another one with the same secret is a copy of its home, and is refused.
"""

from __future__ import annotations

import itertools
import re
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from occ_app import errors
from occ_app.database.database import Database
from occ_app.home.notes import first_note
from occ_app.home.state import new_token
from occ_app.hub.agents import FROM, KEPT, Agent, Agents, agent_of, boottime
from occ_app.hub.keys import Key
from occ_app.system import proofs
from occ_app.system.compact_json import to_json
from occ_app.system.process_identity import boot_id
from occ_app.system.timestamps import iso_now

_NAMED_IN_A_REFUSAL = 3
_NONCE_SECONDS = 60.0
_NONCES = 10_000
_ATTEMPTS = 3

Said = Mapping[str, Any]  # the body of a registration, loaded by its schema


def hub_id(db: Database) -> str:
    """Return this hub's id, which lasts as long as its database.

    A copy of the database has the same id.
    """
    return str(first_note(db, "hub", {"id": f"hub-{secrets.token_hex(16)}"})["id"])


class Nonces:
    """Nonces for machines to sign.

    Each is valid for one registration within a minute.
    """

    def __init__(self) -> None:
        self._issued: dict[str, float] = {}
        self._lock = threading.Lock()

    def issue(self) -> str:
        nonce = proofs.new_nonce()
        with self._lock:
            if len(self._issued) >= _NONCES:
                del self._issued[next(iter(self._issued))]
            self._issued[nonce] = time.monotonic() + _NONCE_SECONDS
        return nonce

    def redeem(self, nonce: str) -> bool:
        """Return whether this nonce was issued, is fresh, and was not redeemed before."""
        with self._lock:
            return self._issued.pop(nonce, 0.0) > time.monotonic()


def register(
    agents: Agents, key: Key, address: str, said: Said, answers: Callable[[Agent], bool | None] = lambda _: False
) -> Agent:
    """Register an agent with a new token, under its id if it is known.

    The old token is refused from now on. `said` is the body of the registration, whose nonce is already redeemed.
    `answers` returns whether the instance that holds a registration still answers, None when that is not known; it may
    take seconds. Raises Forbidden when the proof is wrong or the key has as many machines as it may, Conflict for a
    machine that this hub does not know or of which another instance answers, and Unavailable when another instance may
    come back.
    """
    for _ in range(_ATTEMPTS):
        with agents.db.read() as connection:
            holder = _holder(connection, agents, key, said)
        if holder is not None and holder.online and _is_another(holder, address, said):
            answered = answers(holder)
            if answered is not False:
                _refuse_copy(agents.db, holder, said, answered)
                holder = None  # an agent without a proof, which becomes another agent
        agent = _write(agents, key, address, said, holder)
        if agent is not None:
            return agent
    raise errors.Unavailable("BUSY", "This machine sends several registrations at once; register again.")


def _refuse_copy(db: Database, holder: Agent, said: Said, answered: bool | None) -> None:
    """Raise an error when another instance of a machine answers or may come back.

    Returns for an answering machine whose copy sends no proof: that copy becomes another agent.
    """
    if answered is None:
        raise errors.Unavailable(
            "BUSY",
            f"This hub has just started, and another instance of agent {holder.name} may reconnect. Register again in a"
            " moment.",
        )
    _note_copy(db, holder)
    if said["machine"] is not None:
        raise errors.Conflict(
            "MACHINE_IN_USE",
            f"Agent {holder.name} ({holder.agent_id}) runs with the same machine.json, so this home is a copy of its"
            " home; register it with a new secret as another machine.",
            {"agentId": holder.agent_id},
        )


def _holder(connection: sqlite3.Connection, agents: Agents, key: Key, said: Said) -> Agent | None:
    """Return the agent that this machine is; None for a new one.

    Raises Forbidden, and Conflict (MACHINE_UNKNOWN).
    """
    machine, former = said["machine"], agents.known(connection, said["agent_id"])
    if machine is not None:
        row = connection.execute(
            f"{FROM} WHERE a.machine_id = :machine", agents.times(machine=machine["id"])
        ).fetchone()
        if row is not None:
            found = agent_of(row)
            _check_proof(machine, found.verifier or "")
            return found
        if machine["verifier"] is None:
            raise errors.Conflict("MACHINE_UNKNOWN", "This hub does not know this machine; send its verifier.")
        _check_proof(machine, machine["verifier"])
        if former is not None and former.verifier is None:
            right = proofs.of_former(former.token, machine["nonce"])
            if former.key_id == key.key_id or proofs.same(machine["former"] or "", right):
                return former
        return None
    if former is not None and former.verifier is None and former.key_id == key.key_id:
        return former
    return None


def _check_proof(machine: Said, verifier: str) -> None:
    right = proofs.of_machine(verifier, machine["nonce"], machine["instance"])
    if not proofs.same(machine["proof"], right) or machine["id"] != proofs.machine_id(verifier):
        raise errors.Forbidden("The proof of this machine is wrong; restore its machine.json, or move it away.")


def _is_another(holder: Agent, address: str, said: Said) -> bool:
    """Return whether a registration comes from another start of the daemon.

    It is compared with the start that holds the agent's id.
    """
    machine = said["machine"]
    if holder.instance is not None:
        return machine is None or machine["instance"] != holder.instance
    return (holder.address, holder.port) != (address, said["port"])


def _note_copy(db: Database, holder: Agent) -> None:
    with db.write() as connection:
        connection.execute(
            "UPDATE agents SET copied_at = :now WHERE agent_id = :agent_id",
            {"now": iso_now(), "agent_id": holder.agent_id},
        )


def _write(agents: Agents, key: Key, address: str, said: Said, holder: Agent | None) -> Agent | None:
    """Store a registration as `holder` or as a new agent.

    Returns None when another registration of the machine was stored meanwhile.
    """
    machine = said["machine"] or {"id": None, "instance": None}
    with agents.db.write() as connection:
        if holder is None or holder.key_id != key.key_id:
            _check_room(connection, agents, key)
        agent_id = f"agent-{secrets.token_hex(6)}" if holder is None else holder.agent_id
        name = _free_name(connection, agents.times(), agent_id, said["name"])
        row = {
            **{field: said[field] for field in ("url", "port", "direct", "tls_fingerprint", "workers")},
            **{field: said[field] for field in ("version", "platform", "claude_version")},
            "labels": to_json(said["labels"]),
            "capabilities": to_json(said["capabilities"]),
            "permissions": said["permissions"],
            "name": name,
            "agent_id": agent_id,
            "key_id": key.key_id,
            "token": new_token(),
            "address": address,
            "machine_id": machine["id"],
            "verifier": _verifier(said, holder),
            "instance": machine["instance"],
            "now": iso_now(),
            "boot": boot_id(),
            "heard": boottime(),
            "former_token": None if holder is None else holder.token,
        }
        written = _insert(connection, row) if holder is None else _update(connection, row)
        return agents.known(connection, agent_id) if written else None


def _verifier(said: Said, holder: Agent | None) -> str | None:
    if said["machine"] is None:
        return None
    return holder.verifier if holder is not None and holder.verifier else str(said["machine"]["verifier"])


def _insert(connection: sqlite3.Connection, row: Mapping[str, Any]) -> bool:
    """Add an agent; return False when its machine was added meanwhile."""
    return bool(
        connection.execute(
            """
            INSERT OR IGNORE INTO agents (agent_id, key_id, name, token, url, address, port, direct, tls_fingerprint,
                workers, labels, version, platform, claude_version, registered_at, status, last_seen_at,
                heard_boot_id, heard, machine_id, verifier, instance, capabilities, permissions)
            VALUES (:agent_id, :key_id, :name, :token, :url, :address, :port, :direct, :tls_fingerprint,
                :workers, :labels, :version, :platform, :claude_version, :now, 'healthy', :now,
                :boot, :heard, :machine_id, :verifier, :instance, :capabilities, :permissions)
            """,
            row,
        ).rowcount
    )


def _update(connection: sqlite3.Connection, row: Mapping[str, Any]) -> bool:
    """Replace the registration of an agent; return False when it has changed."""
    return bool(
        connection.execute(
            """
            UPDATE agents SET key_id = :key_id, name = :name, token = :token, url = :url, address = :address,
                port = :port, direct = :direct, tls_fingerprint = :tls_fingerprint, workers = :workers,
                labels = :labels, version = :version, platform = :platform, claude_version = :claude_version,
                registered_at = :now, status = 'healthy', busy = 0, waiting = 0, running = '[]', problems = '[]',
                last_seen_at = :now, heard_boot_id = :boot, heard = :heard, reachable = NULL, machine_id = :machine_id,
                verifier = :verifier, instance = :instance, capabilities = :capabilities, permissions = :permissions
            WHERE agent_id = :agent_id AND token = :former_token
            """,
            row,
        ).rowcount
    )


def _check_room(connection: sqlite3.Connection, agents: Agents, key: Key) -> None:
    """Raise Forbidden when the key has as many machines as it may.

    Forgotten machines do not count.
    """
    rows = connection.execute(
        f"SELECT name, online FROM ({FROM} WHERE a.key_id = :key AND {KEPT}) ORDER BY last_seen_at",  # noqa: S608 - literals
        agents.times(key=key.key_id),
    ).fetchall()
    if key.most is None or len(rows) < key.most:
        return
    gone = [row["name"] for row in rows if not row["online"]][:_NAMED_IN_A_REFUSAL]
    which = f" (offline: {', '.join(gone)})" if gone else ""
    raise errors.Forbidden(
        f"The key {key.name} is for {key.most} machines, and that many are registered{which}; remove one with"
        " `occ hub agents remove NAME`, or register with another key."
    )


def _free_name(connection: sqlite3.Connection, times: dict[str, Any], agent_id: str, wanted: str) -> str:
    """Return a free name for an agent: `wanted`, with a number if necessary.

    A number is added when another agent has the name or it looks like an id. A machine that is hidden because it has
    been gone for long does not keep its name.
    """
    rows = connection.execute(f"{FROM} WHERE {KEPT} OR a.agent_id = :id", times | {"id": agent_id}).fetchall()
    taken = {row["name"] for row in rows if row["agent_id"] != agent_id}
    own = next((row["name"] for row in rows if row["agent_id"] == agent_id), wanted)
    if own not in taken and re.fullmatch(re.escape(wanted) + r"-\d+", own):
        return str(own)
    if wanted not in taken and not re.fullmatch(r"agent-[0-9a-f]{12}", wanted):
        return wanted
    return next(name for number in itertools.count(2) if (name := f"{wanted[:190]}-{number}") not in taken)
