"""Linked Slack users and the workspaces of channels, with all SQL on both.

A Slack user is a team id and a user id. An owner links it on the hub's page with a one-time code; the link ends with
the key that the owner was logged in with.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from occ_app.database.database import Database
from occ_app.system.timestamps import iso, iso_now

CODE_MINUTES = 10
_VALID = "k.kind = 'client' AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > :now)"


@dataclass(frozen=True)
class Person:
    """A linked Slack user: the owner, and the key with its rights."""

    team: str
    user: str
    key_id: str
    owner_id: str
    owner: str
    admin: bool
    viewer: bool

    @property
    def visible_to(self) -> str | None:
        """Return the owner whose runs and workspaces this person sees; None for all."""
        return None if self.admin else self.owner_id


@dataclass(frozen=True)
class Asked:
    """A Slack user who asked to be linked."""

    team: str
    user: str
    user_name: str


def find(db: Database, team: str, user: str) -> Person | None:
    """Return the person behind a Slack user.

    Returns None when the user is not linked, or the key is not valid any more.
    """
    with db.read() as connection:
        row = connection.execute(
            f"""
            SELECT p.team, p.user, k.key_id, k.owner_id, o.name AS owner, k.admin, k.viewer
            FROM slack_people p JOIN keys k ON k.key_id = p.key_id JOIN owners o ON o.owner_id = k.owner_id
            WHERE p.team = :team AND p.user = :user AND {_VALID}
            """,  # noqa: S608 - a literal
            {"team": team, "user": user, "now": iso_now()},
        ).fetchone()
    return None if row is None else Person(**{**dict(row), "admin": bool(row["admin"]), "viewer": bool(row["viewer"])})


def new_code(db: Database, asked: Asked) -> str:
    """Return a one-time code for the page, valid for CODE_MINUTES.

    Earlier codes of this Slack user become void.
    """
    code = secrets.token_urlsafe(24)
    with db.write() as connection:
        connection.execute(
            "DELETE FROM slack_codes WHERE (team = :team AND user = :user) OR expires_at <= :now",
            {"team": asked.team, "user": asked.user, "now": iso_now()},
        )
        connection.execute(
            """
            INSERT INTO slack_codes (hash, team, user, user_name, expires_at)
            VALUES (:hash, :team, :user, :user_name, :expires)
            """,
            {
                "hash": _hashed(code),
                "team": asked.team,
                "user": asked.user,
                "user_name": asked.user_name,
                "expires": iso(datetime.now(UTC) + timedelta(minutes=CODE_MINUTES)),
            },
        )
    return code


def asked_with(db: Database, code: str) -> Asked | None:
    """Return the Slack user of a valid code, which stays valid."""
    with db.read() as connection:
        row = connection.execute(
            "SELECT team, user, user_name FROM slack_codes WHERE hash = :hash AND expires_at > :now",
            {"hash": _hashed(code), "now": iso_now()},
        ).fetchone()
    return None if row is None else Asked(**dict(row))


def link(db: Database, code: str, key_id: str) -> Asked | None:
    """Link the Slack user of a code to a key's owner, and void the code.

    Returns None for a code that is not valid.
    """
    with db.write() as connection:
        row = connection.execute(
            """
            DELETE FROM slack_codes WHERE hash = :hash AND expires_at > :now RETURNING team, user, user_name
            """,
            {"hash": _hashed(code), "now": iso_now()},
        ).fetchone()
        if row is None:
            return None
        connection.execute(
            """
            INSERT INTO slack_people (team, user, key_id, linked_at) VALUES (:team, :user, :key_id, :now)
            ON CONFLICT (team, user) DO UPDATE SET key_id = :key_id, linked_at = :now
            """,
            {"team": row["team"], "user": row["user"], "key_id": key_id, "now": iso_now()},
        )
    return Asked(**dict(row))


def unlink(db: Database, team: str, user: str) -> bool:
    """Remove a link; return False when there was none."""
    with db.write() as connection:
        return bool(
            connection.execute(
                "DELETE FROM slack_people WHERE team = :team AND user = :user", {"team": team, "user": user}
            ).rowcount
        )


def count(db: Database) -> int:
    """Return the number of linked Slack users."""
    with db.read() as connection:
        return int(connection.execute("SELECT count(*) FROM slack_people").fetchone()[0])


def use(db: Database, team: str, channel: str, owner_id: str, workspace_id: str) -> None:
    """Set the workspace for an owner's runs from a channel."""
    with db.write() as connection:
        connection.execute(
            """
            INSERT INTO slack_places (team, channel, owner_id, workspace_id)
            VALUES (:team, :channel, :owner_id, :workspace_id)
            ON CONFLICT (team, channel, owner_id) DO UPDATE SET workspace_id = :workspace_id
            """,
            {"team": team, "channel": channel, "owner_id": owner_id, "workspace_id": workspace_id},
        )


def place(db: Database, team: str, channel: str, owner_id: str) -> str | None:
    """Return the workspace for an owner's runs from a channel; None if not chosen."""
    with db.read() as connection:
        row = connection.execute(
            """
            SELECT workspace_id FROM slack_places
            WHERE team = :team AND channel = :channel AND owner_id = :owner_id
            """,
            {"team": team, "channel": channel, "owner_id": owner_id},
        ).fetchone()
    return None if row is None else str(row["workspace_id"])


def _hashed(code: str) -> str:
    return hashlib.sha256(code.encode()).hexdigest()
