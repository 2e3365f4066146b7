"""Sessions of the hub's pages, and all SQL on them.

A session maps a cookie to a key until it expires. A cookie is as secret as the key behind it; the hub stores its
SHA-256. A session ends at once with its key. A session opened with a one-time code has a separate key.
"""

from __future__ import annotations

import contextlib
import secrets
import sqlite3
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from occ_app import errors
from occ_app.database.database import Database
from occ_app.home import notes
from occ_app.hub import keys
from occ_app.hub.keys import Key, hashed
from occ_app.system.timestamps import iso, iso_now

DAYS = 30
_NOTED_EVERY = timedelta(minutes=1)  # a use within this time of the last is not recorded

_VALID = """
    l.expires_at > :now AND k.kind = 'client' AND k.revoked_at IS NULL
    AND (k.expires_at IS NULL OR k.expires_at > :now)
"""


@dataclass(frozen=True)
class Login:
    """A valid session: its key, and the CSRF token of its forms.

    `paired` is true when a one-time code opened it.
    """

    session_id: str
    key_id: str
    key_name: str
    owner_id: str
    owner: str
    admin: bool
    viewer: bool
    paired: bool
    csrf: str
    used_at: str
    expires_at: str

    @property
    def may_pair(self) -> bool:
        """Return whether it may open sessions on other devices."""
        return self.admin or not (self.paired or self.viewer)


@dataclass(frozen=True)
class Session:
    """A valid session as lists show it.

    `key` is the name of the key that opened it, None for a one-time code.
    """

    id: str
    device: str
    owner_id: str
    owner: str
    role: str
    key: str | None
    created_at: str
    used_at: str
    expires_at: str


def begin(db: Database, key: Key, device: str = "") -> str:
    """Open a session with a key, and return its cookie, which is not shown again."""
    with db.write() as connection:
        return begin_in(connection, key.key_id, device)


def begin_in(connection: sqlite3.Connection, key_id: str, device: str) -> str:
    """Open a session inside the caller's transaction, and return its cookie."""
    cookie = secrets.token_urlsafe(32)
    now = datetime.now(UTC)
    connection.execute(
        """
        INSERT INTO logins (hash, key_id, csrf, created_at, expires_at, session_id, device, used_at)
        VALUES (:hash, :key_id, :csrf, :now, :expires, :session_id, :device, :now)
        """,
        {
            "hash": hashed(cookie),
            "key_id": key_id,
            "csrf": secrets.token_urlsafe(32),
            "now": iso(now),
            "expires": iso(now + timedelta(days=DAYS)),
            "session_id": f"session-{secrets.token_hex(6)}",
            "device": device,
        },
    )
    return cookie


def forget(db: Database) -> None:
    """Delete expired sessions and codes, which are refused already."""
    with db.write(durable=False) as connection:
        connection.execute("DELETE FROM logins WHERE expires_at <= :now", {"now": iso_now()})
        connection.execute("DELETE FROM pairings WHERE expires_at <= :now", {"now": iso_now()})


def find(db: Database, cookie: str) -> Login | None:
    """Return the session of this cookie, and record its use.

    Returns None when the session or its key is not valid any more.
    """
    now = datetime.now(UTC)
    with db.read() as connection:
        row = connection.execute(
            f"""
            SELECT l.session_id, l.key_id, coalesce(k.device, k.name) AS key_name, k.owner_id, o.name AS owner, k.admin,
                k.viewer, k.device IS NOT NULL AS paired, l.csrf, coalesce(l.used_at, l.created_at) AS used_at,
                min(l.expires_at, coalesce(k.expires_at, l.expires_at)) AS expires_at
            FROM logins l JOIN keys k ON k.key_id = l.key_id LEFT JOIN owners o ON o.owner_id = k.owner_id
            WHERE l.hash = :hash AND {_VALID}
            """,  # noqa: S608 - a literal
            {"hash": hashed(cookie), "now": iso(now)},
        ).fetchone()
    if row is None:
        return None
    login = Login(**{**dict(row), **{name: bool(row[name]) for name in ("admin", "viewer", "paired")}})
    if login.used_at < iso(now - _NOTED_EVERY):
        with contextlib.suppress(
            errors.Unavailable, errors.NoSpace
        ):  # pages stay readable while nothing can be written
            _note_use(db, login.session_id, iso(now))
    return login


def listing(db: Database, visible_to: str | None) -> list[Session]:
    """Return the valid sessions of an owner, most recently used first.

    `visible_to` is the owner, or None for all.
    """
    with db.read() as connection:
        rows = connection.execute(
            f"""
            SELECT l.session_id AS id, l.device, k.owner_id, o.name AS owner,
                CASE WHEN k.admin THEN 'admin' WHEN k.viewer THEN 'viewer' ELSE 'owner' END AS role,
                CASE WHEN k.device IS NULL THEN k.name END AS key, l.created_at,
                coalesce(l.used_at, l.created_at) AS used_at,
                min(l.expires_at, coalesce(k.expires_at, l.expires_at)) AS expires_at
            FROM logins l JOIN keys k ON k.key_id = l.key_id LEFT JOIN owners o ON o.owner_id = k.owner_id
            WHERE {_VALID} AND (:owner_id IS NULL OR k.owner_id = :owner_id)
            ORDER BY used_at DESC, l.session_id
            """,  # noqa: S608 - a literal
            {"now": iso_now(), "owner_id": visible_to},
        ).fetchall()
    return [Session(**dict(row)) for row in rows]


def revoke(db: Database, session_id: str, visible_to: str | None) -> list[str]:
    """End a session of an owner and all sessions that it paired.

    `visible_to` is the owner, or None for any. Returns the ids of the keys that ended with it. Raises NotFound.
    """
    with db.write() as connection:
        row = connection.execute(
            """
            SELECT l.key_id, k.device FROM logins l JOIN keys k ON k.key_id = l.key_id
            WHERE l.session_id = :id AND (:owner_id IS NULL OR k.owner_id = :owner_id)
            """,
            {"id": session_id, "owner_id": visible_to},
        ).fetchone()
        if row is None:
            raise errors.NotFound(
                "NOT_FOUND", f"There is no session {session_id}; `occ hub sessions` lists them.", {"id": session_id}
            )
        connection.execute("DELETE FROM logins WHERE session_id = :id", {"id": session_id})
        if row["device"] is None:
            return []
        connection.execute(
            "UPDATE keys SET revoked_at = :now WHERE key_id = :key_id AND revoked_at IS NULL",
            {"now": iso_now(), "key_id": row["key_id"]},
        )
        keys.revoke_paired(connection, row["key_id"])
    return [row["key_id"], *keys.paired(db, row["key_id"])]


def cookie_name(db: Database) -> str:
    """Return the name of this hub's cookie.

    It is unique, so that hubs at other ports of the same host use other cookies.
    """
    noted = notes.noted(db, "cookie").get("name")
    if noted is None:
        notes.note(db, "cookie", {"name": f"occ-{secrets.token_hex(4)}"})
        noted = notes.noted(db, "cookie")["name"]
    return str(noted)


def end(db: Database, cookie: str) -> None:
    """Log out, and revoke the key of a paired session. May be called again."""
    with db.write() as connection:
        connection.execute(
            """
            UPDATE keys SET revoked_at = :now
            WHERE device IS NOT NULL AND key_id IN (SELECT key_id FROM logins WHERE hash = :hash)
            """,
            {"now": iso_now(), "hash": hashed(cookie)},
        )
        connection.execute("DELETE FROM logins WHERE hash = :hash", {"hash": hashed(cookie)})


def _note_use(db: Database, session_id: str, now: str) -> None:
    with db.write(durable=False) as connection:
        connection.execute("UPDATE logins SET used_at = :now WHERE session_id = :id", {"now": now, "id": session_id})
