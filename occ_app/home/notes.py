"""Notes of the agent that other processes read.

They are its registration, its heartbeat and its CLI.
"""

from __future__ import annotations

from typing import Any

from occ_app.database.database import Database
from occ_app.system.compact_json import object_of, to_json
from occ_app.system.timestamps import iso_now

UNREADABLE = "unreadableEvents"  # stored events that cannot be read
REFUSED = "refusedEvents"  # events of machines that broke their schema and were not stored


def note(db: Database, key: str, value: dict[str, Any]) -> None:
    """Keep `value` under `key`."""
    with db.write(durable=False) as connection:
        connection.execute("INSERT OR REPLACE INTO agent (key, value) VALUES (?, ?)", (key, to_json(value)))


def first_note(db: Database, key: str, value: dict[str, Any]) -> dict[str, Any]:
    """Store `value` under `key`, on the disk, unless there is a note.

    Returns the stored one.
    """
    if not noted(db, key):
        with db.write() as connection:
            connection.execute(
                "INSERT OR IGNORE INTO agent (key, value) VALUES (:key, :value)", {"key": key, "value": to_json(value)}
            )
    return noted(db, key)


def count(db: Database, key: str, by: int) -> None:
    """Add `by` to the count that is kept under `key`, and note when."""
    with db.write(durable=False) as connection:
        connection.execute(
            """
            INSERT INTO agent (key, value) VALUES (:key, json_object('count', :by, 'lastAt', :now))
            ON CONFLICT (key) DO UPDATE SET
                value = json_object('count', coalesce(value ->> '$.count', 0) + :by, 'lastAt', :now)
            """,
            {"key": key, "by": by, "now": iso_now()},
        )


def noted(db: Database, key: str) -> dict[str, Any]:
    """Return the note under `key`; empty when there is none that can be read."""
    with db.read() as connection:
        row = connection.execute("SELECT value FROM agent WHERE key = ?", (key,)).fetchone()
    try:
        return {} if row is None else object_of(row["value"])
    except (ValueError, TypeError):
        return {}  # damaged; it is noted again
