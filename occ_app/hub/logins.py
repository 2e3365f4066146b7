"""Logins of the hub's pages, and all SQL on them: which cookie represents which key, and until when.

A cookie is as secret as the key it was got with; kept is its SHA-256. A login ends with its key, at once.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from occ_app.database.database import Database
from occ_app.home import notes
from occ_app.hub.keys import Key, hashed
from occ_app.system.timestamps import iso, iso_now

DAYS = 30


@dataclass(frozen=True)
class Login:
    """A valid login: the key behind it, and the token that its forms carry."""

    key_id: str
    key_name: str
    owner_id: str
    admin: bool
    viewer: bool
    csrf: str
    expires_at: str


def begin(db: Database, key: Key) -> str:
    """Log a key in; returns the cookie, which is never shown again."""
    cookie = secrets.token_urlsafe(32)
    expires = iso(datetime.now(UTC) + timedelta(days=DAYS))
    with db.write() as connection:
        connection.execute(
            "INSERT INTO logins (hash, key_id, csrf, created_at, expires_at) VALUES (?, ?, ?, ?, ?)",
            (hashed(cookie), key.key_id, secrets.token_urlsafe(32), iso_now(), expires),
        )
    return cookie


def forget(db: Database) -> None:
    """Delete the logins that have expired; `find` refuses them before that."""
    with db.write(durable=False) as connection:
        connection.execute("DELETE FROM logins WHERE expires_at <= :now", {"now": iso_now()})


def find(db: Database, cookie: str) -> Login | None:
    """Return the login of this cookie; None when it or its key is not valid any more."""
    with db.read() as connection:
        row = connection.execute(
            "SELECT l.key_id, k.name AS key_name, k.owner_id, k.admin, k.viewer, l.csrf,"
            " min(l.expires_at, coalesce(k.expires_at, l.expires_at)) AS expires_at"
            " FROM logins l JOIN keys k ON k.key_id = l.key_id"
            " WHERE l.hash = :hash AND l.expires_at > :now AND k.kind = 'client' AND k.revoked_at IS NULL"
            " AND (k.expires_at IS NULL OR k.expires_at > :now)",
            {"hash": hashed(cookie), "now": iso_now()},
        ).fetchone()
    return None if row is None else Login(**{**dict(row), "admin": bool(row["admin"]), "viewer": bool(row["viewer"])})


def cookie_name(db: Database) -> str:
    """The name of this hub's cookie: no other hub has it, at any port of the same host."""
    noted = notes.noted(db, "cookie").get("name")
    if noted is None:
        notes.note(db, "cookie", {"name": f"occ-{secrets.token_hex(4)}"})
        noted = notes.noted(db, "cookie")["name"]
    return str(noted)


def end(db: Database, cookie: str) -> None:
    """Log out; harmless when that is done."""
    with db.write() as connection:
        connection.execute("DELETE FROM logins WHERE hash = ?", (hashed(cookie),))
