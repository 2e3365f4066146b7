"""Payloads received from Slack, with all SQL on them.

Each payload is stored as a row before it is acknowledged.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from occ_app.database.database import Database
from occ_app.system.timestamps import iso_now

_SLOW = "slow "  # prefix of the kind of a slow payload


@dataclass(frozen=True)
class Payload:
    """A row of `slack_inbox`.

    A `slow` payload waits for a machine or a file, and is handled in parallel to the others.
    """

    number: int
    kind: str
    content: Mapping[str, Any]
    slow: bool = False


def store(db: Database, key: str, kind: str, content: Mapping[str, Any]) -> bool:
    """Store a payload on disk; return False when it is already stored."""
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
    """Return unhandled payloads in order of arrival: either the slow ones or the rest."""
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
    """Mark a payload as slow, so that it is handled in parallel to the others."""
    with db.write() as connection:
        connection.execute(
            "UPDATE slack_inbox SET kind = :slow || kind WHERE number = :number AND kind NOT LIKE :slow || '%'",
            {"slow": _SLOW, "number": number},
        )


def handled(db: Database, number: int, problem: str | None = None) -> None:
    """Record that a payload was handled.

    Its content is deleted; its key is kept so that a repetition is recognized.
    """
    with db.write(durable=False) as connection:
        connection.execute(
            "UPDATE slack_inbox SET handled_at = :now, content = '{}', problem = :problem WHERE number = :number",
            {"now": iso_now(), "problem": problem, "number": number},
        )


def begin(db: Database, number: int) -> bool:
    """Record on disk that a payload's effect begins.

    Returns False when that was already recorded, before the process was killed.
    """
    with db.write() as connection:
        return bool(
            connection.execute(
                "UPDATE slack_inbox SET problem = 'begun' WHERE number = :number AND problem IS NULL",
                {"number": number},
            ).rowcount
        )


def summary(db: Database) -> tuple[int, str | None]:
    """Return the number of unhandled payloads, and when the newest arrived.

    The time is that of the newest payload, handled or not.
    """
    with db.read() as connection:
        row = connection.execute(
            """
            SELECT (SELECT count(*) FROM slack_inbox WHERE handled_at IS NULL) AS waiting,
                (SELECT received_at FROM slack_inbox ORDER BY number DESC LIMIT 1) AS newest
            """
        ).fetchone()
    return int(row["waiting"]), row["newest"]


def forget(db: Database, before: str) -> None:
    """Delete payloads that were handled before `before`, an ISO time.

    Slack repeats a payload for at most an hour.
    """
    with db.write(durable=False) as connection:
        connection.execute("DELETE FROM slack_inbox WHERE handled_at < :before", {"before": before})
