"""The webhooks of a hub and their deliveries, with all SQL on them.

A trigger makes a delivery in the very transaction that starts or ends an execution, or that opens or answers an
approval, so none is forgotten. A delivery is claimed by one UPDATE for as long as the attempt may take; if the
claiming process dies it becomes due again. So it is made at least once, each time under the same id.
"""

from __future__ import annotations

import base64
import ipaddress
import secrets
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from occ_app.database.database import Database
from occ_app.errors import ConfigError, NotFound
from occ_app.executions import approvals
from occ_app.executions import queries as executions
from occ_app.executions.approvals import Approval
from occ_app.executions.records import Execution
from occ_app.hub import forbidden_addresses as addresses
from occ_app.system.timestamps import iso_now

STARTED, NEEDS_APPROVAL, APPROVED, FINISHED = EVENTS = (
    "execution.started",
    "execution.needs_approval",
    "execution.approved",
    "execution.finished",
)
SECRET_PREFIX = "whsec_"  # noqa: S105 - the prefix of secrets of Standard Webhooks; base64 of the signing key follows


@dataclass(frozen=True)
class Webhook:
    """A row of `webhooks` without its secret. `key` is the name of the key whose executions it receives; None: all."""

    webhook_id: str
    url: str
    key: str | None
    created_at: str
    events: tuple[str, ...]


@dataclass(frozen=True)
class Claimed:
    """A delivery that is about to be made, with its URL and its signing secret; `attempts` counts this attempt.

    `approval` is the row that an event of an approval is about; None when it was deleted since.
    """

    number: int
    attempts: int
    webhook_id: str
    url: str
    secret: str = field(repr=False)
    event: str
    execution: Execution
    approval: Approval | None
    delivery_id: str  # by which a receiver knows it, however often it is made


@dataclass(frozen=True)
class Delivery:
    """A row of `deliveries` as a person looks at it. `status` and `problem` are those of the last attempt."""

    number: int
    delivery_id: str
    webhook_id: str
    event: str
    execution_id: str
    state: str
    attempts: int
    status: int | None
    problem: str | None
    next_at: str | None
    created_at: str
    finished_at: str | None


def check_url(url: str) -> str:
    """The URL as it is. Raises ConfigError for one that no delivery could go to."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises for one that is no number
    except ValueError:
        raise ConfigError(f"{url} is not a URL; use one like https://example.com/path.") from None
    plain = url.isascii() and url.isprintable() and " " not in url
    if parts.scheme not in ("http", "https") or not parts.hostname or not plain or parts.fragment or parts.username:
        raise ConfigError(f"{url} cannot be called; use a URL like https://example.com/path, without a user or a #.")
    try:
        literal = ipaddress.ip_address(parts.hostname)
    except ValueError:
        return url
    if addresses.never_called(addresses.address(str(literal))):
        raise ConfigError(f"{url} is an address that OCC does not call.")
    return url


def add(db: Database, url: str, key: str | None = None, events: Sequence[str] = (FINISHED,)) -> tuple[Webhook, str]:
    """Send `events` from now on to a URL: those of executions of the owner of the client key named `key`, or of all.

    Returns the webhook and the signing secret, which is never shown again. Raises NotFound for an unknown key.
    """
    webhook_id = f"webhook-{secrets.token_hex(6)}"
    secret = SECRET_PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()
    with db.write() as connection:
        key_id = None if key is None else _client_key(connection, key)
        connection.execute(
            """
            INSERT INTO webhooks (webhook_id, url, secret, key_id, owner_id, events, created_at)
            VALUES (:webhook_id, :url, :secret, :key_id, (SELECT owner_id FROM keys WHERE key_id = :key_id), :events,
                :now)
            """,
            {
                "webhook_id": webhook_id,
                "url": check_url(url),
                "secret": secret,
                "key_id": key_id,
                "events": " ".join(dict.fromkeys(events)),
                "now": iso_now(),
            },
        )
    return next(webhook for webhook in listing(db) if webhook.webhook_id == webhook_id), secret


def listing(db: Database) -> list[Webhook]:
    """All webhooks, oldest first."""
    with db.read() as connection:
        rows = connection.execute(
            """
            SELECT w.webhook_id, w.url, k.name, w.created_at, w.events
            FROM webhooks w LEFT JOIN keys k ON k.key_id = w.key_id ORDER BY w.created_at, w.webhook_id
            """
        ).fetchall()
    return [
        Webhook(row["webhook_id"], row["url"], row["name"], row["created_at"], tuple(row["events"].split()))
        for row in rows
    ]


def remove(db: Database, webhook_id: str) -> None:
    """Remove a webhook and its pending deliveries. Raises NotFound."""
    with db.write() as connection:
        if not connection.execute("DELETE FROM webhooks WHERE webhook_id = ?", (webhook_id,)).rowcount:
            raise NotFound(
                "NOT_FOUND",
                f"There is no webhook {webhook_id}; `occ hub webhooks list` lists them.",
                {"webhookId": webhook_id},
            )
        connection.execute("DELETE FROM deliveries WHERE webhook_id = ? AND state = 'waiting'", (webhook_id,))


def log(db: Database, limit: int) -> list[Delivery]:
    """The newest deliveries, newest first."""
    with db.read() as connection:
        rows = connection.execute(
            """
            SELECT d.number, d.delivery_id, d.webhook_id, d.event, x.execution_id, d.state, d.attempts, d.status,
                d.problem, d.next_at, d.created_at, d.finished_at
            FROM deliveries d JOIN executions x ON x.number = d.execution ORDER BY d.number DESC LIMIT ?
            """,
            (limit,),
        ).fetchall()
    return [Delivery(*row) for row in rows]


def due(db: Database, now: str, latest: str) -> list[tuple[str, int]]:
    """Return each webhook with a delivery due at `now`, an ISO time, and the number of its first due delivery.

    A plan for later than `latest` was made before the clock was set back, so it is due, too.
    """
    with db.read() as connection:
        rows = connection.execute(
            "SELECT webhook_id, number, min(next_at) FROM deliveries WHERE state = 'waiting'"
            " AND (next_at <= :now OR next_at > :latest) GROUP BY webhook_id",
            {"now": now, "latest": latest},
        ).fetchall()
    return [(row["webhook_id"], row["number"]) for row in rows]


def claim(db: Database, number: int, now: str, until: str, latest: str) -> Claimed | None:
    """Take a delivery that is due, as `due` has it, for an attempt that lasts no longer than to `until`, an ISO time.

    None when somebody else has it, it was made already, or its webhook was removed.
    """
    with db.write(durable=False) as connection:
        row = connection.execute(
            "UPDATE deliveries SET attempts = attempts + 1, next_at = :until WHERE number = :number"
            " AND state = 'waiting' AND (next_at <= :now OR next_at > :latest) RETURNING *",
            {"until": until, "number": number, "now": now, "latest": latest},
        ).fetchone()
        if row is None:
            return None
        webhook = connection.execute(
            "SELECT url, secret FROM webhooks WHERE webhook_id = ?", (row["webhook_id"],)
        ).fetchone()
        if webhook is None:  # removed without its deliveries, or another name in a damaged row
            connection.execute(
                "UPDATE deliveries SET state = 'failed', problem = :problem, finished_at = :now WHERE number = :number",
                {"problem": "its webhook is gone", "now": iso_now(), "number": number},
            )
            return None
        execution = executions.numbered(connection, row["execution"])
    return Claimed(
        number=number,
        attempts=row["attempts"],
        webhook_id=row["webhook_id"],
        url=webhook["url"],
        secret=webhook["secret"],
        event=row["event"],
        execution=execution,
        approval=approvals.find(db, row["approval_id"]) if row["approval_id"] else None,
        delivery_id=row["delivery_id"],
    )


def delivered(db: Database, claimed: Claimed, status: int) -> bool:
    """Write down that it arrived. False when it is not this attempt's to say any more."""
    return _finish_attempt(db, claimed, "delivered", status, None, None)


def failed(db: Database, claimed: Claimed, status: int | None, problem: str, next_at: str | None) -> bool:
    """Write down that it did not arrive: it is tried again at `next_at`, an ISO time, or never (None)."""
    return _finish_attempt(db, claimed, "failed" if next_at is None else "waiting", status, problem, next_at)


def forget(db: Database, before: str) -> int:
    """Forget deliveries that were over before `before`, an ISO time; returns how many."""
    with db.write(durable=False) as connection:
        return connection.execute(
            "DELETE FROM deliveries WHERE state != 'waiting' AND finished_at < ?", (before,)
        ).rowcount


def _finish_attempt(
    db: Database, claimed: Claimed, state: str, status: int | None, problem: str | None, next_at: str | None
) -> bool:
    with db.write() as connection:
        return bool(
            connection.execute(
                "UPDATE deliveries SET state = ?, status = ?, problem = ?, next_at = ?, finished_at = ?"
                " WHERE number = ? AND state = 'waiting' AND attempts = ?",
                (
                    *(state, status, problem, next_at, None if state == "waiting" else iso_now()),
                    *(claimed.number, claimed.attempts),
                ),
            ).rowcount
        )


def _client_key(connection: sqlite3.Connection, name: str) -> str:
    row = connection.execute(
        "SELECT key_id FROM keys WHERE (name = ? OR key_id = ?) AND kind = 'client' AND revoked_at IS NULL",
        (name, name),
    ).fetchone()
    if row is None:
        raise NotFound(
            "KEY_NOT_FOUND", f"There is no client key named {name}; list them with `occ hub keys list`.", {"name": name}
        )
    return str(row["key_id"])
