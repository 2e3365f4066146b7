"""What Slack has sent, with all SQL on it: each payload is a row before Slack gets its acknowledgement."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from occ_app.database.database import Database
from occ_app.system.timestamps import iso_now

_SLOW = "slow "  # before the kind of a payload that takes long


@dataclass(frozen=True)
class Payload:
    """A row of `slack_inbox`. `slow`: it waits for a machine or a file, and is handled beside the others."""

    number: int
    kind: str
    content: Mapping[str, Any]
    slow: bool = False


def store(db: Database, key: str, kind: str, content: Mapping[str, Any]) -> bool:
    """Store a payload, on the disk. False for one that is stored already."""
    with db.write() as connection:
        return bool(
            connection.execute(
                """
                INSERT INTO slack_inbox (key, kind, content, received_at) VALUES (:key, :kind, :content, :now)
                ON CONFLICT (key) DO NOTHING
                """,
                {"key": key, "kind": kind, "content": json.dumps(content), "now": iso_now()},
            ).rowcount
        )


def unhandled(db: Database, limit: int = 20, *, slow: bool = False) -> list[Payload]:
    """The payloads that are to be handled, in the order in which they came; the slow ones, or the others."""
    with db.read() as connection:
        rows = connection.execute(
            """
            SELECT number, kind, content FROM slack_inbox
            WHERE handled_at IS NULL AND (kind LIKE :slow || '%') = :is_slow ORDER BY number LIMIT :limit
            """,
            {"slow": _SLOW, "is_slow": slow, "limit": limit},
        ).fetchall()
    return [Payload(row["number"], row["kind"].removeprefix(_SLOW), json.loads(row["content"]), slow) for row in rows]


def defer(db: Database, number: int) -> None:
    """Leave a payload to be handled beside the others, since it takes long."""
    with db.write() as connection:
        connection.execute(
            "UPDATE slack_inbox SET kind = :slow || kind WHERE number = :number AND kind NOT LIKE :slow || '%'",
            {"slow": _SLOW, "number": number},
        )


def handled(db: Database, number: int, problem: str | None = None) -> None:
    """Note that a payload was handled; its content is forgotten, its key stays to know it again."""
    with db.write(durable=False) as connection:
        connection.execute(
            "UPDATE slack_inbox SET handled_at = :now, content = '{}', problem = :problem WHERE number = :number",
            {"now": iso_now(), "problem": problem, "number": number},
        )


def begin(db: Database, number: int) -> bool:
    """Note, on the disk, that a payload has its effect from now on. False when that was noted before a kill."""
    with db.write() as connection:
        return bool(
            connection.execute(
                "UPDATE slack_inbox SET problem = 'begun' WHERE number = :number AND problem IS NULL",
                {"number": number},
            ).rowcount
        )


def summary(db: Database) -> tuple[int, str | None]:
    """The number of payloads that are to be handled, and when the newest came."""
    with db.read() as connection:
        row = connection.execute(
            """
            SELECT (SELECT count(*) FROM slack_inbox WHERE handled_at IS NULL) AS waiting,
                (SELECT received_at FROM slack_inbox ORDER BY number DESC LIMIT 1) AS newest
            """
        ).fetchone()
    return int(row["waiting"]), row["newest"]


def forget(db: Database, before: str) -> None:
    """Forget payloads that were handled before `before`, an ISO time; Slack repeats one for an hour at most."""
    with db.write(durable=False) as connection:
        connection.execute("DELETE FROM slack_inbox WHERE handled_at < :before", {"before": before})
