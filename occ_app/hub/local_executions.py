"""Executions that machines started themselves and share, and all SQL for them.

A received execution is a row like any other: placed on its machine, with its prompt already sent, so that a relay
reads its events. It belongs to the owner of the key with which its machine is registered.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import Any

from occ_app import errors
from occ_app.config.settings import SHARES_LOCAL
from occ_app.executions import acceptance
from occ_app.executions.queries import one
from occ_app.executions.records import Request
from occ_app.hub.agents import Agent, Agents
from occ_app.system.timestamps import iso_now

_MAX_OPEN = 100  # of one machine


def receive(agents: Agents, agent_id: str, said: Mapping[str, Any]) -> bool:
    """Store an execution that a machine announces, and return whether it is shared.

    A relay then reads its events. Returns False when the hub has another execution with its id. A repeated
    announcement changes nothing. Raises Forbidden for a machine that does not share its executions, Unavailable while
    too many of the machine's executions are not over, and NoSpace.
    """
    with agents.db.write() as connection:
        agent = agents.known(connection, agent_id)
        if agent is None or SHARES_LOCAL not in agent.capabilities:
            raise errors.Forbidden("This machine is registered without --share-local; start it again with that option.")
        existing = one(connection, "x.execution_id = ?", (said["execution_id"],))
        if existing is not None:
            return existing.is_local and existing.agent_id == agent_id
        if agents.db.disk_is_full():
            raise errors.NoSpace
        _check_room(connection, agent)
        _insert(connection, agent, said)
        return True


def _check_room(connection: sqlite3.Connection, agent: Agent) -> None:
    count = connection.execute(
        """
        SELECT count(*) FROM executions
        WHERE agent_id = :agent_id AND local_sharing = 'received' AND state IN ('running', 'parked')
        """,
        {"agent_id": agent.agent_id},
    ).fetchone()[0]
    if count >= _MAX_OPEN:
        raise errors.Unavailable(
            "BUSY", f"Agent {agent.name} has {count} unfinished local executions. Try again later."
        )


def _insert(connection: sqlite3.Connection, agent: Agent, said: Mapping[str, Any]) -> None:
    owner_id = connection.execute(
        "SELECT owner_id FROM keys WHERE key_id = :key_id", {"key_id": agent.key_id}
    ).fetchone()["owner_id"]
    workspace_id, generation = _workspace(connection, agent, owner_id, said)
    request = Request(
        execution_id=said["execution_id"],
        workspace_id=workspace_id,
        prompt=said["prompt"],
        timeout_seconds=said["timeout_seconds"],
        idle_timeout_seconds=said["idle_timeout_seconds"],
        model=said["model"],
        max_turns=None,
        max_budget_usd=None,
        session_id=None,
        hash=acceptance.request_hash({"local": said["execution_id"], "agent": agent.agent_id}),
        key_id=agent.key_id,
        owner_id=owner_id,
        permissions=said["permissions"],
        local_sharing="received",
    )
    execution = acceptance.insert(connection, request, generation, None, alone=True)
    now = iso_now()
    created_at = min(said["created_at"], now)
    connection.execute(
        """
        UPDATE executions SET state = 'running', created_at = :created_at, started_at = :started_at,
            agent_id = :agent_id, offered = 1, changes_reason = 'pending', conversation = :conversation
        WHERE number = :number
        """,
        {
            "created_at": created_at,
            "started_at": max(created_at, min(said["started_at"] or created_at, now)),
            "agent_id": agent.agent_id,
            "conversation": _conversation(connection, agent, owner_id, said),
            "number": execution.number,
        },
    )


def _workspace(connection: sqlite3.Connection, agent: Agent, owner_id: str, said: Mapping[str, Any]) -> tuple[str, int]:
    """Return the id and number of the hub's workspace that the machine names.

    It is a project on that machine, or an upload of the owner. For any other workspace they are the id on the machine
    and 0, which no workspace has: such a conversation cannot be continued from the hub.
    """
    row = connection.execute(
        """
        SELECT workspace_id, generation FROM workspaces
        WHERE agent_id = :agent_id AND agent_generation = :generation
            AND (source = 'folder' AND name = :name
                OR source = 'upload' AND workspace_id = :name AND owner_id = :owner_id)
        """,
        {
            "agent_id": agent.agent_id,
            "generation": said["workspace_generation"],
            "name": said["workspace_id"],
            "owner_id": owner_id,
        },
    ).fetchone()
    return (said["workspace_id"], 0) if row is None else (row["workspace_id"], row["generation"])


def _conversation(connection: sqlite3.Connection, agent: Agent, owner_id: str, said: Mapping[str, Any]) -> str:
    """Return the id of the conversation that the execution continues.

    It continues one only if all of its executions are this owner's and on this machine.
    """
    row = connection.execute(
        """
        SELECT count(*) AS turns, total(owner_id IS :owner_id AND agent_id IS :agent_id) AS own FROM executions
        WHERE conversation = :conversation AND execution_id <> :execution_id
        """,
        {
            "owner_id": owner_id,
            "agent_id": agent.agent_id,
            "conversation": said["conversation_id"],
            "execution_id": said["execution_id"],
        },
    ).fetchone()
    joins = row["turns"] > 0 and row["own"] == row["turns"]
    return str(said["conversation_id"] if joins else said["execution_id"])
