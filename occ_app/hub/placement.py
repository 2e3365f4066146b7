"""The placement of executions on agents, and all SQL for claiming them.

A workspace stays on one agent from its first execution; a first execution goes to the online agent with the most free
workers. An execution that no machine can run waits, with the reason. Among many relays one wins: each change is an
UPDATE that names the state it starts from.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import replace

from occ_app import errors
from occ_app.database.database import Database
from occ_app.executions import lifecycle
from occ_app.executions import queries as executions
from occ_app.executions.lifecycle import Admission
from occ_app.executions.records import Execution, Outcome, Request
from occ_app.hub import ceilings, projects
from occ_app.hub.agents import Agent, Agents
from occ_app.hub.choice import choose, free, suits
from occ_app.system.process_identity import ProcessIdentity
from occ_app.system.timestamps import iso_now
from occ_app.workspaces.workspace import VISIBLE

_UPLOAD_AGAIN = ", or upload it again under another id."


def resolve(agents: Agents, connection: sqlite3.Connection, name: str) -> str:
    """Return the id of the workspace that a request names.

    Runs in the transaction that accepts the request. `app@box` is the project app on the machine box. Raises NotFound.
    """
    project, at, machine = name.partition("@")
    if not at:
        return name
    found = projects.named(connection, project, agents.meant(connection, machine).agent_id)
    if found is None:
        raise errors.workspace_not_found(name)
    return found


def admit(agents: Agents, connection: sqlite3.Connection, request: Request, visible_to: str | None) -> Admission:
    """Check whether an execution can be accepted, in the accepting transaction.

    Raises NotFound for a workspace of another owner than `visible_to` and for an unknown agent, Conflict when the
    workspace is on another agent than the request names, QueueFull when the key has as many waiting and running
    executions as it may, and RequestError when no machine allows the permissions.
    """
    row = connection.execute(
        f"SELECT w.agent_id, w.source FROM workspaces w WHERE w.workspace_id = :workspace_id AND {VISIBLE}",  # noqa: S608 - literals
        {"workspace_id": request.workspace_id, "visible_to": visible_to},
    ).fetchone()
    if row is None:
        raise errors.workspace_not_found(request.workspace_id)
    wanted = agents.meant(connection, request.agent).agent_id if request.agent else None
    home = agents.known(connection, row["agent_id"])
    if home is not None and not suits(home, wanted, request.labels):
        raise errors.Conflict(
            "WORKSPACE_ELSEWHERE",
            f"Workspace {request.workspace_id} is on agent {home.name}; leave out `agent` and `labels`"
            + (", because a project runs only on its machine." if row["source"] == "folder" else _UPLOAD_AGAIN),
            {"workspaceId": request.workspace_id, "agentId": home.agent_id},
        )
    limit = connection.execute("SELECT most FROM keys WHERE key_id = ?", (request.key_id,)).fetchone()
    if limit is not None and limit["most"] is not None:
        under_way = connection.execute(
            "SELECT count(*) FROM executions WHERE key_id = ? AND state IN ('queued', 'running')", (request.key_id,)
        ).fetchone()[0]
        if under_way >= limit["most"]:
            raise errors.RequestError(
                "QUEUE_FULL",
                f"This key has reached its limit of {limit['most']} waiting and running executions. Wait for one to"
                " end, or cancel one.",
                {"most": limit["most"]},
            )
    machines = agents.listed(connection)
    foreign = _foreign(connection, machines)
    suitable = [
        agent
        for agent in machines
        if (agent.agent_id == home.agent_id if home is not None else suits(agent, wanted, request.labels))
    ]
    permissions = ceilings.level(suitable, request.permissions, named=request.permissions_named)
    ceilings.check(suitable, permissions)
    ready = (agent for agent in suitable if agent.state == "online" and ceilings.allows(agent, permissions))
    return Admission(wanted, sum(max(0, free(agent, foreign)) for agent in ready))


def claim(
    db: Database,
    agents: Agents,
    owner: ProcessIdentity,
    reached: Callable[[Agent], bool] = lambda _: True,
    *,
    relays: int = 1000,
) -> Execution | None:
    """Claim the oldest queued execution that an agent can run now.

    It is claimed for a relay of the process `owner`. Executions that cannot run get the reason why they wait. Only one
    thread of one process may call this at a time, or two could fill the same worker. The claim is not synced to disk:
    the caller must call `db.sync()` before it calls the agent, because a placement lost in a power failure would run
    twice.
    """
    waiting: list[tuple[str, int]] = []
    choice: tuple[Execution, Agent] | None = None
    with db.read() as connection:
        machines = agents.listed(connection)
        foreign = _foreign(connection, machines)
        machines = _shared(machines, relays)
        for number, home in _first_of_each_workspace(connection):
            execution = executions.numbered(connection, number)
            chosen = choose(execution, home, machines, foreign, reached)
            if not isinstance(chosen, str):
                choice = execution, chosen
                break
            if execution.waits_for != chosen:
                waiting.append((chosen, number))
    if waiting:
        _note_waits(db, waiting)
    return None if choice is None else _take(db, *choice, owner)


def _first_of_each_workspace(connection: sqlite3.Connection) -> list[tuple[int, str | None]]:
    """Return executions that only need an agent to start, oldest first.

    Each is its number and the agent that has its workspace.
    """
    rows = connection.execute(
        """
        SELECT q.number, min(coalesce(q.place, q.number)) AS place, w.agent_id AS home FROM executions q
        LEFT JOIN workspaces w ON w.generation = q.workspace_generation
        WHERE q.state = 'queued' AND q.paused IS NULL AND NOT EXISTS (
            SELECT 1 FROM executions r
            WHERE r.state IN ('running', 'parked') AND r.workspace_generation = q.workspace_generation)
        AND NOT EXISTS (
            SELECT 1 FROM errands e
            JOIN executions r ON e.agent_id = r.agent_id
                AND substr(e.path, 1, instr(e.path || '?', '?') - 1) = '/executions/' || r.execution_id || '/cancel'
            WHERE r.workspace_generation = q.workspace_generation)
        GROUP BY q.workspace_generation ORDER BY place
        """
    ).fetchall()
    return [(row["number"], row["home"]) for row in rows]


def _take(db: Database, execution: Execution, agent: Agent, owner: ProcessIdentity) -> Execution | None:
    """Claim and place an execution; return None when the UPDATE loses a race.

    It can lose to a cancellation, or to the removal or drain of the agent.
    """
    with db.write(durable=False) as connection:
        won = connection.execute(
            f"UPDATE executions AS x SET state = 'running', resume_session_id = {executions.SESSION}, started_at = ?,"  # noqa: S608 - a literal
            " agent_id = ?, waits_for = NULL,"
            " owner_boot_id = ?, owner_pid = ?, owner_start = ? WHERE x.number = ? AND state = 'queued'"
            " AND paused IS NULL AND EXISTS (SELECT 1 FROM agents WHERE agent_id = ? AND NOT draining)",
            (iso_now(), agent.agent_id, owner.boot_id, owner.pid, owner.start, execution.number, agent.agent_id),
        ).rowcount
        if not won:
            return None
        connection.execute(
            "UPDATE workspaces SET agent_id = ? WHERE generation = ? AND agent_id IS NULL AND source = 'upload'",
            (agent.agent_id, execution.workspace_generation),
        )
        return executions.numbered(connection, execution.number)


def take_up(db: Database, owner: ProcessIdentity) -> Execution | None:
    """Take over an execution whose relay died with its process.

    Returns None when there is none.
    """
    for execution in executions.relayed(db):
        former = execution.claimed_by
        if former is not None and former.alive():
            continue
        with db.write(durable=False) as connection:
            won = connection.execute(
                "UPDATE executions SET owner_boot_id = ?, owner_pid = ?, owner_start = ? WHERE number = ?"
                " AND state IN ('running', 'parked') AND owner_boot_id IS ? AND owner_pid IS ? AND owner_start IS ?",
                (*_columns(owner), execution.number, *_columns(former)),
            ).rowcount
        if won:
            return execution
    return None


def _columns(owner: ProcessIdentity | None) -> tuple[str | None, int | None, int | None]:
    return (None, None, None) if owner is None else (owner.boot_id, owner.pid, owner.start)


def mark_prompt_sent(db: Database, execution: Execution, permissions: str) -> None:
    """Record that the agent may have the prompt, with these permissions.

    The record is on disk when this returns.
    """
    with db.write() as connection:
        connection.execute(
            """
            UPDATE executions SET offered = 1, changes_reason = 'pending', permissions = :permissions
            WHERE number = :number
            """,
            {"permissions": permissions, "number": execution.number},
        )


def put_back(db: Database, execution: Execution) -> bool:
    """Return an execution whose prompt was never sent to the queue.

    Another agent may then run it. A workspace with nothing on the first agent is free to move. Returns False when the
    execution was cancelled meanwhile.
    """
    names = {"number": execution.number, "agent": execution.agent_id, "workspace": execution.workspace_id}
    with db.write() as connection:
        won = connection.execute(
            """
            UPDATE executions SET state = 'queued', started_at = NULL, agent_id = NULL,
                owner_boot_id = NULL, owner_pid = NULL, owner_start = NULL
            WHERE number = :number AND state = 'running' AND offered IS NULL AND stop_requested IS NULL
            """,
            names,
        ).rowcount
        if won:
            connection.execute(
                """
                UPDATE workspaces SET agent_id = NULL
                WHERE workspace_id = :workspace AND agent_id = :agent AND placed IS NULL AND source = 'upload'
                AND NOT EXISTS (
                    SELECT 1 FROM executions x
                    WHERE x.workspace_id = :workspace AND x.agent_id = :agent AND x.offered = 1)
                """,
                names,
            )
    return bool(won)


def end_unplaced(db: Database, outcome: Outcome) -> int:
    """End waiting executions whose workspace is on no machine; return how many."""
    with db.read() as connection:
        rows = connection.execute(
            """
            SELECT x.number FROM executions x LEFT JOIN workspaces w ON w.generation = x.workspace_generation
            WHERE x.state = 'queued' AND w.agent_id IS NULL
            """
        ).fetchall()
    return sum(lifecycle.give_up(db, row["number"], outcome) for row in rows)


def orphans(db: Database) -> int:
    """Return how many running executions have lost their relay."""
    return sum(execution.claimed_by is None or not execution.claimed_by.alive() for execution in executions.relayed(db))


def _shared(machines: Sequence[Agent], relays: int) -> list[Agent]:
    """Return the machines with their workers limited to a share of the relays.

    A machine may use all relays while at most one machine is online, otherwise three quarters.
    """
    share = relays if sum(agent.online for agent in machines) <= 1 else max(1, relays * 3 // 4)
    return [replace(agent, workers=min(agent.workers, share)) for agent in machines]


def _foreign(connection: sqlite3.Connection, machines: Sequence[Agent]) -> dict[str, int]:
    """Return the number of executions on each agent that this hub did not place."""
    counts = {}
    for agent in machines:
        if not (agent.online and agent.running):
            continue
        ids = ",".join("?" * len(agent.running))
        placed_here = connection.execute(
            f"SELECT count(*) FROM executions WHERE execution_id IN ({ids})",  # noqa: S608 - question marks
            agent.running,
        ).fetchone()[0]
        counts[agent.agent_id] = len(agent.running) - placed_here
    return counts


def _note_waits(db: Database, waiting: Sequence[tuple[str, int]]) -> None:
    """Record the reasons why executions wait, each with the execution's number."""
    with db.write(durable=False) as connection:
        connection.executemany("UPDATE executions SET waits_for = ? WHERE number = ? AND state = 'queued'", waiting)
