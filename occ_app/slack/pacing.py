"""Which message is sent next, as far as Slack's rates allow, with all SQL on that."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Set
from dataclasses import dataclass, field

from occ_app.database.database import Database
from occ_app.slack import outbox
from occ_app.slack.outbox import Message, message_of
from occ_app.system.timestamps import iso_now


@dataclass(frozen=True)
class Pace:
    """What Slack takes now: no posts to the `busy` channels, and updates of messages, or those of ends alone, or none.

    `ended` are the numbers of messages whose runs are over, `updated` the times of the latest updates by number.
    """

    busy: frozenset[str] = frozenset()
    updates: bool = True
    progress: bool = True
    ended: Set[int] = frozenset()
    updated: Mapping[int, float] = field(default_factory=dict)


def due(db: Database, pace: Pace) -> Message | None:
    """The next message that shows something else than it is to, among those that Slack takes now.

    Approvals come first, then new messages and ends, then the message that was updated least recently.
    """
    with db.read() as connection:
        rows = connection.execute(
            """
            SELECT * FROM slack_messages
            WHERE gone = 0 AND shown IS NOT wanted AND (not_before IS NULL OR not_before <= :now)
                AND (kind = 'opening' OR thread NOT LIKE 'opening %')
            ORDER BY kind != 'approval', ts IS NOT NULL AND final = 0, number LIMIT 500
            """,
            {"now": iso_now()},
        ).fetchall()
    found = [(rank, row) for row in rows if (rank := _rank(row, pace)) is not None]
    return message_of(min(found, key=lambda each: each[0])[1]) if found else None


def _rank(row: sqlite3.Row, pace: Pace) -> tuple[int, float, int] | None:
    """Return the place of a message in the line; None for one that Slack does not take now."""
    number, posted = row["number"], row["ts"] is not None
    progress = posted and not row["final"] and number not in pace.ended
    group = 0 if row["kind"] == outbox.APPROVAL else 2 if progress else 1
    if not posted:
        return None if row["channel"] in pace.busy else (group, 0.0, number)
    allowed = pace.progress if group == 2 else pace.updates
    return (group, pace.updated.get(number, 0.0), number) if allowed else None
