"""The choice of the next message within Slack's rate limits, with all SQL on it."""

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
    """The calls that Slack accepts now.

    Channels in `busy` accept no posts. `updates` is whether messages may be updated, `progress` whether that includes
    runs in progress. `ended` are the numbers of messages whose runs are over; `updated` are the times of the latest
    updates, by number.
    """

    busy: frozenset[str] = frozenset()
    updates: bool = True
    progress: bool = True
    ended: Set[int] = frozenset()
    updated: Mapping[int, float] = field(default_factory=dict)


def due(db: Database, pace: Pace) -> Message | None:
    """Return the next message whose shown content is out of date.

    Only messages that Slack accepts now are considered. Approvals come first, then new messages and finished runs,
    then the message that was updated least recently.
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
    """Return the rank of a message; None for one that Slack does not accept now."""
    number, posted = row["number"], row["ts"] is not None
    progress = posted and not row["final"] and number not in pace.ended
    group = 0 if row["kind"] == outbox.APPROVAL else 2 if progress else 1
    if not posted:
        return None if row["channel"] in pace.busy else (group, 0.0, number)
    allowed = pace.progress if group == 2 else pace.updates
    return (group, pace.updated.get(number, 0.0), number) if allowed else None
