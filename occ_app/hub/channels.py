"""Notification channels of owners, and pages open now, with all SQL on them.

A notification is a delivery (occ_app/hub/deliveries.py) whose receiver is a channel. Triggers create one for each
channel of the owner, in the transaction that opens an approval or ends an execution. An open page that shows the run
makes the notification unnecessary.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from occ_app.database.database import Database
from occ_app.errors import InvalidRequest, NotFound
from occ_app.system.timestamps import iso, iso_now

CLASSES = NEEDS_CLASS, ENDED_CLASS = ("needs-you", "ended")
NEEDS_YOU, ENDED = "notify.needs_you", "notify.ended"
KINDS = NTFY, EMAIL, PUSH, APPRISE, SLACK = ("ntfy", "email", "push", "apprise", "slack")
SEEN = "a page of its owner shows it"
MAX_BROWSERS = 50
SEEN_SECONDS = 45.0
"""How long a page counts as visible after its last report."""


@dataclass(frozen=True)
class Channel:
    """A row of `channels`.

    `address` depends on the kind and may hold secrets; `name` is shown in its place. It receives notifications about
    the executions of the owner `owner_id`, named `owner`; None means all.
    """

    channel_id: str
    kind: str
    name: str
    address: Mapping[str, Any] = field(repr=False)
    classes: tuple[str, ...]
    owner_id: str | None
    owner: str | None
    created_at: str


_SELECT = """
    SELECT c.*, o.name AS owner FROM channels c LEFT JOIN owners o ON o.owner_id = c.owner_id
"""


def add(
    db: Database,
    kind: str,
    name: str,
    address: Mapping[str, Any],
    *,
    owner_id: str | None,
    classes: Sequence[str] = CLASSES,
) -> Channel:
    """Add a channel for the executions of an owner, or of all (None)."""
    channel_id = f"channel-{secrets.token_hex(6)}"
    with db.write() as connection:
        connection.execute(
            """
            INSERT INTO channels (channel_id, kind, name, address, classes, owner_id, created_at)
            VALUES (:channel_id, :kind, :name, :address, :classes, :owner_id, :now)
            """,
            {
                "channel_id": channel_id,
                "kind": kind,
                "name": name,
                "address": json.dumps(address),
                "classes": " ".join(dict.fromkeys(classes)),
                "owner_id": owner_id,
                "now": iso_now(),
            },
        )
        return require(connection, channel_id)


def listing(db: Database, owner_id: str | None = None) -> list[Channel]:
    """Return the channels of an owner, or all, oldest first."""
    with db.read() as connection:
        rows = connection.execute(
            f"{_SELECT} WHERE (:owner_id IS NULL OR c.owner_id = :owner_id) ORDER BY c.created_at, c.channel_id",
            {"owner_id": owner_id},
        ).fetchall()
    return [_channel(row) for row in rows]


def find(connection: sqlite3.Connection, channel_id: str) -> Channel | None:
    """Return one channel; None for an unknown id."""
    row = connection.execute(f"{_SELECT} WHERE c.channel_id = :channel_id", {"channel_id": channel_id}).fetchone()
    return None if row is None else _channel(row)


def require(connection: sqlite3.Connection, channel_id: str, owner_id: str | None = None) -> Channel:
    """Return one channel, of this owner if one is given. Raises NotFound."""
    channel = find(connection, channel_id)
    if channel is None or owner_id not in (None, channel.owner_id):
        raise NotFound(
            "NOT_FOUND",
            f"There is no channel {channel_id}; `occ hub notify list` lists them.",
            {"channelId": channel_id},
        )
    return channel


def remove(db: Database, channel_id: str, owner_id: str | None = None) -> None:
    """Remove a channel and its pending deliveries.

    With `owner_id` it must be that owner's. Raises NotFound.
    """
    with db.write() as connection:
        require(connection, channel_id, owner_id)
        connection.execute("DELETE FROM channels WHERE channel_id = :channel_id", {"channel_id": channel_id})
        connection.execute(
            "DELETE FROM deliveries WHERE webhook_id = :channel_id AND state = 'waiting'", {"channel_id": channel_id}
        )


def needless(
    connection: sqlite3.Connection, channel: Channel, event: str, execution: int | None, approval_id: str | None
) -> str | None:
    """Return why a notification is no longer needed; None when it is needed."""
    if event == NEEDS_YOU and approval_id is not None:
        still_open = connection.execute(
            "SELECT 1 FROM approvals WHERE approval_id = :approval_id AND state = 'open' AND pending IS NULL",
            {"approval_id": approval_id},
        ).fetchone()
        if still_open is None:
            return "it is not open any more"
    if channel.kind == PUSH and not _has_valid_key(connection, channel):
        return "the browser's key is not valid any more"
    seen = connection.execute(
        "SELECT 1 FROM seen_pages WHERE owner_id = :owner_id AND execution = :execution AND until > :now",
        {"owner_id": channel.owner_id, "execution": execution, "now": iso_now()},
    ).fetchone()
    return None if seen is None else SEEN


def _has_valid_key(connection: sqlite3.Connection, channel: Channel) -> bool:
    """Return whether a browser's key is still valid.

    It is the key with which the browser was logged in when it subscribed.
    """
    found = connection.execute(
        """
        SELECT 1 FROM keys
        WHERE key_id = :key_id AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > :now)
        """,
        {"key_id": channel.address.get("keyId"), "now": iso_now()},
    ).fetchone()
    return found is not None


def subscribe(db: Database, name: str, address: Mapping[str, Any], owner_id: str) -> Channel:
    """Add a browser of an owner, and return its channel.

    Replaces a browser already subscribed at this endpoint. `address` has the endpoint, the browser's keys and the id
    of the key that the browser is logged in with. Raises InvalidRequest when the owner has MAX_BROWSERS.
    """
    browsers = [one for one in listing(db, owner_id) if one.kind == PUSH]
    former = [one for one in browsers if one.address.get("endpoint") == address["endpoint"]]
    for one in former:
        remove(db, one.channel_id)
    if len(browsers) - len(former) >= MAX_BROWSERS:
        message = f"You have {MAX_BROWSERS} subscribed browsers, which is the limit; remove one first."
        raise InvalidRequest(message, {"endpoint": ["Too many browsers."]})
    return add(db, PUSH, name, address, owner_id=owner_id)


def note_page(db: Database, page: str, owner_id: str, execution: int, *, seen: bool) -> None:
    """Record whether a page with this execution is visible to its owner.

    `page` is the page's own random id. A page that has not reported for SEEN_SECONDS counts as closed.
    """
    until = iso(datetime.now(UTC) + timedelta(seconds=SEEN_SECONDS))
    with db.write(durable=False) as connection:
        connection.execute(
            "DELETE FROM seen_pages WHERE page = :page OR until <= :now", {"page": page, "now": iso_now()}
        )
        if seen:
            connection.execute(
                """
                INSERT INTO seen_pages (page, owner_id, execution, until) VALUES (:page, :owner_id, :execution, :until)
                """,
                {"page": page, "owner_id": owner_id, "execution": execution, "until": until},
            )


def name_of_place(connection: sqlite3.Connection, generation: int) -> str | None:
    """Return the name of a workspace by its number; None once it is deleted."""
    row = connection.execute(
        "SELECT name FROM workspaces WHERE generation = :generation", {"generation": generation}
    ).fetchone()
    return None if row is None else str(row["name"])


def _address(text: Any) -> Mapping[str, Any]:
    """Return the address in a row.

    Returns an empty address for a damaged row, so that only its deliveries fail.
    """
    try:
        loaded = json.loads(text)
    except (ValueError, TypeError):
        return {}
    return loaded if isinstance(loaded, dict) else {}


def _channel(row: sqlite3.Row) -> Channel:
    return Channel(
        channel_id=row["channel_id"],
        kind=row["kind"],
        name=row["name"],
        address=_address(row["address"]),
        classes=tuple(row["classes"].split()),
        owner_id=row["owner_id"],
        owner=row["owner"],
        created_at=row["created_at"],
    )
