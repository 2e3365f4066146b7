"""The webhooks of a hub, and all SQL on them.

occ_app/hub/deliveries.py has their deliveries.
"""

from __future__ import annotations

import base64
import ipaddress
import secrets
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from occ_app.database.database import Database
from occ_app.errors import ConfigError, NotFound
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
    """A row of `webhooks` without its secret.

    `key` is the name of the key whose executions it receives; None for all.
    """

    webhook_id: str
    url: str
    key: str | None
    created_at: str
    events: tuple[str, ...]


def check_url(url: str) -> str:
    """Return the URL unchanged; raise ConfigError when it cannot be called."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises when the port is not a number
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
    """Add a webhook, and return it with its signing secret.

    It receives `events` of the executions of the owner of the client key named `key`, or of all. The secret is never
    shown again. Raises NotFound for an unknown key.
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
    """Return all webhooks, oldest first."""
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
