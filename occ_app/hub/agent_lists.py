"""Lists of a hub's machines with a limited length, and all SQL for them."""

from __future__ import annotations

from collections.abc import Iterable

from occ_app.database.database import Database
from occ_app.hub import projects
from occ_app.hub.agents import FROM, KEPT, ONLINE, Agent, Agents, agent_of
from occ_app.system.compact_json import to_json
from occ_app.system.timestamps import iso_now


def page(agents: Agents, limit: int, after: str | None = None) -> tuple[list[Agent], str | None]:
    """Return a page of at most `limit` agents by name, and the next page's `after`.

    `after` is the id of the agent before the page.
    """
    with agents.db.read() as connection:
        rows = connection.execute(
            f"""
            {FROM} WHERE {KEPT}
            AND (:after IS NULL OR (a.name, a.agent_id) > (SELECT name, agent_id FROM agents WHERE agent_id = :after))
            ORDER BY a.name, a.agent_id LIMIT :limit + 1
            """,  # noqa: S608 - literals
            agents.times(limit=limit, after=after),
        ).fetchall()
    listed = [agent_of(row) for row in rows[:limit]]
    return listed, listed[-1].agent_id if len(rows) > limit else None


def of_interest(agents: Agents, online: int, offline: int) -> tuple[list[Agent], int]:
    """Return online and recently seen offline machines, and the number of all.

    At most `online` and `offline` machines are returned, those with the latest heartbeats.
    """
    with agents.db.read() as connection:
        rows = connection.execute(
            f"""
            WITH ranked AS MATERIALIZED (
                SELECT *, row_number() OVER (PARTITION BY online ORDER BY last_seen_at DESC, agent_id) AS place,
                    count(*) OVER () AS total
                FROM (SELECT a.agent_id, a.last_seen_at, {ONLINE} AS online
                      FROM agents a JOIN keys k ON k.key_id = a.key_id WHERE {KEPT})
            )
            SELECT whole.*, ranked.total FROM ranked JOIN ({FROM}) whole ON whole.agent_id = ranked.agent_id
            WHERE ranked.place <= CASE WHEN ranked.online THEN :online ELSE :offline END
            ORDER BY whole.name, whole.agent_id
            """,  # noqa: S608 - literals
            agents.times(online=online, offline=offline),
        ).fetchall()
    return [agent_of(row) for row in rows], rows[0]["total"] if rows else 0


def names(agents: Agents, agent_ids: Iterable[str | None]) -> dict[str, str]:
    """Return the names of these agents, including forgotten ones, by id."""
    return names_in(agents.db, agent_ids)


def names_in(db: Database, agent_ids: Iterable[str | None]) -> dict[str, str]:
    """Return the same as `names`, from a hub's database."""
    with db.read() as connection:
        rows = connection.execute(
            "SELECT agent_id, name FROM agents WHERE agent_id IN (SELECT value FROM json_each(:ids))",
            {"ids": to_json(sorted({agent_id for agent_id in agent_ids if agent_id}))},
        ).fetchall()
    return {row["agent_id"]: row["name"] for row in rows}


def refused(agents: Agents, agent_ids: Iterable[str]) -> set[str]:
    """Return those of these agents that may not connect any more.

    They were removed, or their key has expired or is revoked.
    """
    asked = set(agent_ids)
    with agents.db.read() as connection:
        rows = connection.execute(
            """
            SELECT a.agent_id FROM agents a JOIN keys k ON k.key_id = a.key_id
            WHERE a.agent_id IN (SELECT value FROM json_each(:ids))
              AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > :now)
            """,
            {"ids": to_json(sorted(asked)), "now": iso_now()},
        ).fetchall()
    return asked - {row["agent_id"] for row in rows}


def of_key(agents: Agents, key_id: str) -> list[str]:
    """Return the ids of all machines registered with a key."""
    with agents.db.read() as connection:
        rows = connection.execute("SELECT agent_id FROM agents WHERE key_id = :key", {"key": key_id}).fetchall()
    return [row["agent_id"] for row in rows]


def remove_forgotten_projects(agents: Agents) -> list[int]:
    """Remove the projects of forgotten machines.

    Returns the numbers of the executions that were waiting for one of the projects and have ended.
    """
    with agents.db.read() as connection:
        rows = connection.execute(
            f"SELECT a.agent_id FROM agents a WHERE coalesce(a.projects, '[]') != '[]' AND NOT {KEPT}",  # noqa: S608 - literals
            agents.times(),
        ).fetchall()
    if not rows:
        return []
    with agents.db.write() as connection:
        return [number for row in rows for number in projects.remove_of(connection, row["agent_id"])]
