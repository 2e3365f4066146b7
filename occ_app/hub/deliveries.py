"""The outbox of a hub's webhooks and notification channels, and all SQL on it.

A trigger creates a delivery in the same transaction that starts or ends an execution, or opens or answers an approval,
so none is lost. One UPDATE claims a delivery for as long as the attempt may take; if the claiming process dies, it
becomes due again. Each delivery is therefore made at least once, always under the same id.
"""

from __future__ import annotations

import secrets
import sqlite3
from dataclasses import dataclass, field

from occ_app.database.database import Database
from occ_app.executions import approvals
from occ_app.executions import queries as executions
from occ_app.executions.answers import Approval
from occ_app.executions.records import Execution
from occ_app.hub import channels
from occ_app.hub.channels import Channel
from occ_app.system.timestamps import iso_now

TEST = "notify.test"
_AGAIN = " again"  # suffix of `once` that marks a repetition


@dataclass(frozen=True)
class SignedUrl:
    """The receiver of a webhook's deliveries."""

    url: str
    secret: str = field(repr=False)


@dataclass(frozen=True)
class Claimed:
    """A claimed delivery; `attempts` includes the current attempt.

    `execution` is None for a test. `approval` is the row that the event is about, None if it has been deleted. `place`
    is the name of the execution's workspace.
    """

    number: int
    attempts: int
    receiver_id: str
    receiver: SignedUrl | Channel
    event: str
    execution: Execution | None
    approval: Approval | None
    place: str | None
    repeats: bool  # whether this is the repetition of an earlier notification
    delivery_id: str  # the same for all attempts, so that a receiver can drop duplicates


@dataclass(frozen=True)
class Delivery:
    """A row of `deliveries` for people to read.

    `status` and `problem` are those of the last attempt.
    """

    number: int
    delivery_id: str
    webhook_id: str
    event: str
    execution_id: str | None
    state: str
    attempts: int
    status: int | None
    problem: str | None
    next_at: str | None
    created_at: str
    finished_at: str | None


def log(db: Database, limit: int, *, of_channels: bool = False) -> list[Delivery]:
    """Return the latest deliveries to webhooks or to channels, newest first."""
    with db.read() as connection:
        rows = connection.execute(
            """
            SELECT d.number, d.delivery_id, d.webhook_id, d.event, x.execution_id, d.state, d.attempts, d.status,
                d.problem, d.next_at, d.created_at, d.finished_at
            FROM deliveries d LEFT JOIN executions x ON x.number = d.execution
            WHERE (d.event LIKE 'notify.%') = :of_channels ORDER BY d.number DESC LIMIT :limit
            """,
            {"of_channels": of_channels, "limit": limit},
        ).fetchall()
    return [Delivery(*row) for row in rows]


def find(db: Database, delivery_id: str) -> Delivery | None:
    """Return one delivery to a channel; None once it is deleted."""
    return next((one for one in log(db, 1000, of_channels=True) if one.delivery_id == delivery_id), None)


def add_test(db: Database, channel_id: str, owner_id: str | None = None) -> str:
    """Add a test notification for a channel, and return its delivery's id.

    With `owner_id` the channel must be that owner's. Raises NotFound.
    """
    delivery_id = f"delivery-{secrets.token_hex(12)}"
    with db.write() as connection:
        channels.require(connection, channel_id, owner_id)
        connection.execute(
            """
            INSERT INTO deliveries (delivery_id, webhook_id, event, state, next_at, created_at)
            VALUES (:delivery_id, :channel_id, :event, 'waiting', :now, :now)
            """,
            {"delivery_id": delivery_id, "channel_id": channel_id, "event": TEST, "now": iso_now()},
        )
    return delivery_id


def due(db: Database, now: str, latest: str) -> list[tuple[str, int]]:
    """Return each receiver with a due delivery, and that delivery's number.

    A receiver's first due delivery is returned. `now` and `latest` are ISO times. A delivery planned for after
    `latest` was planned before the clock was set back, so it is due, too.
    """
    with db.read() as connection:
        rows = connection.execute(
            "SELECT webhook_id, number, min(next_at) FROM deliveries WHERE state = 'waiting'"
            " AND (next_at <= :now OR next_at > :latest) GROUP BY webhook_id",
            {"now": now, "latest": latest},
        ).fetchall()
    return [(row["webhook_id"], row["number"]) for row in rows]


def claim(db: Database, number: int, now: str, until: str, latest: str, repeat_at: str | None = None) -> Claimed | None:
    """Claim a due delivery for an attempt that ends by `until`, an ISO time.

    `now` and `latest` are those of `due`. Returns None when another process has claimed it, it was already made, its
    receiver was removed, or the notification is no longer needed. A notification that an open page makes unnecessary
    now is repeated at `repeat_at`.
    """
    with db.write(durable=False) as connection:
        row = connection.execute(
            "UPDATE deliveries SET attempts = attempts + 1, next_at = :until WHERE number = :number"
            " AND state = 'waiting' AND (next_at <= :now OR next_at > :latest) RETURNING *",
            {"until": until, "number": number, "now": now, "latest": latest},
        ).fetchone()
        if row is None:
            return None
        receiver = _receiver(connection, row["webhook_id"])
        if receiver is None:  # removed without its deliveries, or a damaged row
            _end_unsent(connection, row, "failed", "its webhook was removed")
            return None
        if isinstance(receiver, Channel):
            needless = channels.needless(connection, receiver, row["event"], row["execution"], row["approval_id"])
            if needless is not None:
                _end_unsent(connection, row, "dropped", needless)
                if needless == channels.SEEN and repeat_at is not None:
                    _repeat(connection, row, repeat_at)
                return None
        execution = None if row["execution"] is None else executions.numbered(connection, row["execution"])
        place = None if execution is None else channels.name_of_place(connection, execution.workspace_generation)
    return Claimed(
        number=number,
        attempts=row["attempts"],
        receiver_id=row["webhook_id"],
        receiver=receiver,
        event=row["event"],
        execution=execution,
        approval=approvals.find(db, row["approval_id"]) if row["approval_id"] else None,
        place=place,
        repeats=str(row["once"]).endswith(_AGAIN),
        delivery_id=row["delivery_id"],
    )


def delivered(db: Database, claimed: Claimed, status: int | None, repeat_at: str | None = None) -> bool:
    """Record that a delivery arrived, and return whether this attempt counts.

    A notification that needs a person is repeated at `repeat_at`, an ISO time. Returns False when another attempt has
    claimed the delivery since.
    """
    return _finish_attempt(db, claimed, "delivered", status, None, None, repeat_at)


def failed(db: Database, claimed: Claimed, status: int | None, problem: str, next_at: str | None) -> bool:
    """Record that a delivery failed, and return whether this attempt counts.

    It is tried again at `next_at`, an ISO time, or never (None).
    """
    return _finish_attempt(db, claimed, "failed" if next_at is None else "waiting", status, problem, next_at)


def forget(db: Database, before: str) -> int:
    """Delete deliveries that ended before `before`, an ISO time; return how many."""
    with db.write(durable=False) as connection:
        return connection.execute(
            "DELETE FROM deliveries WHERE state != 'waiting' AND finished_at < ?", (before,)
        ).rowcount


def _receiver(connection: sqlite3.Connection, receiver_id: str) -> SignedUrl | Channel | None:
    row = connection.execute("SELECT url, secret FROM webhooks WHERE webhook_id = :id", {"id": receiver_id}).fetchone()
    return channels.find(connection, receiver_id) if row is None else SignedUrl(row["url"], row["secret"])


def _end_unsent(connection: sqlite3.Connection, row: sqlite3.Row, state: str, problem: str) -> None:
    """End a claimed delivery without sending it."""
    connection.execute(
        """
        UPDATE deliveries SET state = :state, problem = :problem, next_at = NULL, finished_at = :now
        WHERE number = :number
        """,
        {"state": state, "problem": problem, "now": iso_now(), "number": row["number"]},
    )


def _repeat(connection: sqlite3.Connection, row: sqlite3.Row, at: str) -> None:
    """Add a repetition of a notification that needs a person.

    A repetition is not repeated.
    """
    if row["event"] != channels.NEEDS_YOU or row["approval_id"] is None or str(row["once"]).endswith(_AGAIN):
        return
    connection.execute(
        """
        INSERT INTO deliveries (delivery_id, webhook_id, event, execution, approval_id, once, state, next_at,
            created_at)
        VALUES (:delivery_id, :webhook_id, :event, :execution, :approval_id, :once, 'waiting', :at, :now)
        ON CONFLICT (once) DO NOTHING
        """,
        {
            "delivery_id": f"delivery-{secrets.token_hex(12)}",
            "webhook_id": row["webhook_id"],
            "event": row["event"],
            "execution": row["execution"],
            "approval_id": row["approval_id"],
            "once": f"{row['once']}{_AGAIN}",
            "at": at,
            "now": iso_now(),
        },
    )


def _finish_attempt(
    db: Database,
    claimed: Claimed,
    state: str,
    status: int | None,
    problem: str | None,
    next_at: str | None,
    repeat_at: str | None = None,
) -> bool:
    with db.write() as connection:
        row = connection.execute(
            """
            UPDATE deliveries SET state = :state, status = :status, problem = :problem, next_at = :next_at,
                finished_at = :finished_at
            WHERE number = :number AND state = 'waiting' AND attempts = :attempts RETURNING *
            """,
            {
                "state": state,
                "status": status,
                "problem": problem,
                "next_at": next_at,
                "finished_at": None if state == "waiting" else iso_now(),
                "number": claimed.number,
                "attempts": claimed.attempts,
            },
        ).fetchone()
        if row is not None and repeat_at is not None:
            _repeat(connection, row, repeat_at)
    return row is not None
