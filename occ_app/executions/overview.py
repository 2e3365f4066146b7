"""Conversations as a list shows them, and failures that nobody has seen yet.

A conversation is shown by its newest execution.
"""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from occ_app.database.database import Database
from occ_app.executions import waiting
from occ_app.executions.queries import from_row
from occ_app.executions.records import Execution
from occ_app.system.timestamps import iso, iso_now

_TITLE_CHARACTERS = 400
_UNSEEN_DAYS = 7
_LAST_EVENTS = 40

_NEWEST = (
    "NOT EXISTS (SELECT 1 FROM executions l WHERE l.conversation = x.conversation AND l.number > x.number"
    " AND l.conversation IS NOT NULL)"
)


@dataclass(frozen=True)
class Row:
    """A conversation: its newest execution, first prompt and number of executions.

    The prompt is cut.
    """

    newest: Execution
    title: str | None
    turns: int


def listing(
    db: Database,
    *,
    visible_to: str | None,
    states: tuple[str, ...] = (),
    workspace_id: str | None = None,
    unseen: bool = False,
    paused: bool | None = None,
    before: int | None = None,
    limit: int = 30,
) -> tuple[list[Row], int | None]:
    """Return conversations, the newest first, and `before` for the next page.

    `before` is None after the last page. `states` are those of the newest execution; `unseen` are those that failed
    lately and nobody has looked at.
    """
    conditions, values = [_NEWEST], dict[str, Any]()
    for condition, name, value in (
        ("x.owner_id = :owner", "owner", visible_to),
        ("x.workspace_id = :workspace", "workspace", workspace_id),
        ("x.number < :before", "before", before),
    ):
        if value is not None:
            conditions.append(condition)
            values[name] = value
    if states:
        conditions.append(f"x.state IN ({', '.join(f':state{number}' for number in range(len(states)))})")
        values |= {f"state{number}": state for number, state in enumerate(states)}
    if paused is not None:
        conditions.append(f"x.paused IS {'NOT ' if paused else ''}NULL")
    if unseen:
        conditions.append("x.state = 'failed' AND x.seen_at IS NULL AND x.finished_at > :since")
        values["since"] = iso(datetime.now(UTC) - timedelta(days=_UNSEEN_DAYS))
    with db.read() as connection:
        rows = connection.execute(
            f"""
            SELECT x.*, coalesce(x.last_seq, 0) AS newest_seq FROM executions x
            WHERE {" AND ".join(conditions)} ORDER BY x.number DESC LIMIT :limit
            """,  # noqa: S608 - literals
            values | {"limit": limit + 1},
        ).fetchall()
        found = waiting.described(connection, [from_row(row) for row in rows[:limit]])
        listed = [_row(connection, one) for one in found]
    return listed, rows[limit - 1]["number"] if len(rows) > limit else None


def counts(db: Database, visible_to: str | None, workspace_id: str | None = None) -> dict[str, int]:
    """Return how many conversations there are by the state of their newest execution."""
    with db.read() as connection:
        rows = connection.execute(
            f"""
            SELECT x.state, count(*) AS count FROM executions x
            WHERE (:owner IS NULL OR x.owner_id = :owner) AND (:workspace IS NULL OR x.workspace_id = :workspace)
              AND {_NEWEST}
            GROUP BY x.state
            """,  # noqa: S608 - literals
            {"owner": visible_to, "workspace": workspace_id},
        ).fetchall()
    return {row["state"]: row["count"] for row in rows}


def see(db: Database, conversation: str | None, owner_id: str | None) -> None:
    """Note that the owner has seen a conversation and its failures."""
    with db.read() as connection:
        unseen = connection.execute(
            """
            SELECT 1 FROM executions
            WHERE conversation = :conversation AND owner_id IS :owner AND state = 'failed' AND seen_at IS NULL LIMIT 1
            """,
            {"conversation": conversation, "owner": owner_id},
        ).fetchone()
    if unseen is None:
        return
    with db.write(durable=False) as connection:
        connection.execute(
            """
            UPDATE executions SET seen_at = :now
            WHERE conversation = :conversation AND owner_id IS :owner AND state = 'failed' AND seen_at IS NULL
            """,
            {"now": iso_now(), "conversation": conversation, "owner": owner_id},
        )


def last_words(db: Database, number: int) -> tuple[str, Any]:
    """Return the last output or tool call of a running execution.

    It is `output` and a line, `tool` and its data, or empty.
    """
    with db.read() as connection:
        rows = connection.execute(
            """
            SELECT event, data FROM events WHERE execution = :number AND event IN ('output', 'tool')
            ORDER BY seq DESC LIMIT :limit
            """,
            {"number": number, "limit": _LAST_EVENTS},
        ).fetchall()
    text = ""
    for row in rows:
        data = json.loads(row["data"])
        if row["event"] == "tool" and not text.strip():
            if "name" in data:
                return "tool", data
        elif row["event"] == "tool":
            break
        else:
            text = str(data.get("chunk", "")) + text
    return "output", next((line for line in reversed(text.split("\n")) if line.strip()), "")


def _row(connection: sqlite3.Connection, newest: Execution) -> Row:
    row = connection.execute(
        """
        SELECT count(*) AS turns,
            (SELECT substr(prompt, 1, :title) FROM executions f
             WHERE f.conversation = :conversation ORDER BY f.number LIMIT 1) AS title
        FROM executions WHERE conversation = :conversation
        """,
        {"conversation": newest.conversation, "title": _TITLE_CHARACTERS},
    ).fetchone()
    if newest.conversation is None:
        return Row(newest, newest.prompt, 1)
    return Row(newest, row["title"], row["turns"])
