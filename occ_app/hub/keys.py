"""The keys of a hub, and all SQL on them.

Machines register with agent keys; people and programs call the API with client keys. A key's secret is shown once,
when it is created. The hub stores its SHA-256, which is enough to recognize it.
"""

from __future__ import annotations

import itertools
import secrets
import sqlite3
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from occ_app.database.database import Database
from occ_app.errors import ConfigError, InvalidRequest, NotFound
from occ_app.system import proofs
from occ_app.system.timestamps import iso, iso_now

ROLES = ("owner", "viewer", "admin")

_VALID = "revoked_at IS NULL AND (expires_at IS NULL OR expires_at > ?)"
_OWNER = "(SELECT name FROM owners o WHERE o.owner_id = keys.owner_id) AS owner"
_ALL = f"SELECT *, {_OWNER} FROM keys WHERE device IS NULL ORDER BY created_at, key_id"  # noqa: S608 - a literal

# A key is never paired by a later one, so the recursion ends.
_PAIRED = """
    WITH RECURSIVE paired (key_id) AS (
        SELECT key_id FROM keys WHERE paired_by = :key_id
        UNION SELECT k.key_id FROM keys k JOIN paired p ON k.paired_by = p.key_id
    )
"""


@dataclass(frozen=True)
class Key:
    """A row of `keys`.

    `most` limits an agent key's machines, or a client key's waiting and running executions. The key and everything
    created with it belong to the owner `owner_id`, named `owner`. A viewer's key only reads. `device` names the device
    of a paired session; nobody knows the secret of such a key, and lists leave it out.
    """

    key_id: str
    name: str
    kind: str
    admin: bool
    viewer: bool
    owner_id: str
    owner: str
    most: int | None
    created_at: str
    expires_at: str | None
    revoked_at: str | None
    device: str | None = None
    paired_by: str | None = None

    @property
    def role(self) -> str:
        """Return one of ROLES."""
        return "admin" if self.admin else "viewer" if self.viewer else "owner"

    def expired(self) -> bool:
        """Return whether the key has expired."""
        return self.expires_at is not None and iso_now() >= self.expires_at


def create(
    db: Database,
    name: str,
    kind: str,
    *,
    role: str = "owner",
    owner: str | None = None,
    most: int | None = None,
    days: float | None = None,
) -> tuple[Key, str]:
    """Create a key, and return it with its secret, which is never shown again.

    It belongs to the existing `owner`, given by name or id, or else to a new owner named after the key. Raises
    ConfigError for a name in use, NotFound for an unknown owner.
    """
    key_id, secret = f"key-{secrets.token_hex(6)}", _new_secret(kind)
    expires = None
    if days is not None:
        expires = iso(datetime.now(UTC) + timedelta(days=days))
    try:
        with db.write() as connection:
            connection.execute(
                """
                INSERT INTO keys (key_id, name, kind, admin, viewer, owner_id, hash, most, created_at, expires_at)
                VALUES (:key_id, :name, :kind, :admin, :viewer, :owner_id, :hash, :most, :now, :expires)
                """,
                {
                    "key_id": key_id,
                    "name": name,
                    "kind": kind,
                    "admin": role == "admin",
                    "viewer": role == "viewer",
                    "owner_id": new_owner(connection, name) if owner is None else owner_id(connection, owner),
                    "hash": hashed(secret),
                    "most": most,
                    "now": iso_now(),
                    "expires": expires,
                },
            )
    except sqlite3.IntegrityError:
        raise ConfigError(f"A key named {name} exists; choose another name, or revoke it.") from None
    existing = find(db, secret, kind)
    assert existing is not None  # noqa: S101 - inserted above
    return existing, secret


def find(db: Database, secret: str, kind: str) -> Key | None:
    """Return the valid key of this kind with this secret."""
    # Looked up by its hash: the timing reveals nothing about a secret of 256 bits.
    with db.read() as connection:
        row = connection.execute(
            f"SELECT *, {_OWNER} FROM keys WHERE hash = ? AND kind = ? AND {_VALID}",  # noqa: S608 - a literal
            (hashed(secret), kind, iso_now()),
        ).fetchone()
    return None if row is None else _key(row)


def find_proven(db: Database, authorization: str) -> tuple[Key, str] | None:
    """Return the agent key that a header proves, and the hub's own proof.

    The header proves that the sender holds a valid agent key; the proof returned shows that the hub knows it. Returns
    None for any other header.
    """
    with db.read() as connection:
        rows = connection.execute(
            f"SELECT *, {_OWNER} FROM keys WHERE kind = 'agent' AND {_VALID}",  # noqa: S608 - a literal
            (iso_now(),),
        ).fetchall()
    for row in rows:
        nonce = proofs.asked(authorization, row["hash"])
        if nonce is not None:
            return _key(row), proofs.of_agent(row["hash"], nonce)
    return None


def is_unlimited(db: Database, key_id: str | None) -> bool:
    """Return whether a caller may use everything: an admin, or None, the operator."""
    with db.read() as connection:
        row = connection.execute("SELECT admin FROM keys WHERE key_id = :key_id", {"key_id": key_id}).fetchone()
    return key_id is None or bool(row is not None and row["admin"])


def owner_name(db: Database, owner_id: str | None) -> str | None:
    """Return the name of an owner; None for an unknown id."""
    with db.read() as connection:
        row = connection.execute(
            "SELECT name FROM owners WHERE owner_id = :owner_id", {"owner_id": owner_id}
        ).fetchone()
    return None if row is None else str(row["name"])


def is_revoked(db: Database, key_id: str) -> bool:
    """Return whether a key was revoked or is unknown."""
    with db.read() as connection:
        row = connection.execute("SELECT revoked_at FROM keys WHERE key_id = :key_id", {"key_id": key_id}).fetchone()
    return row is None or row["revoked_at"] is not None


def listing(db: Database) -> list[Key]:
    """Return all keys, including revoked ones, oldest first."""
    with db.read() as connection:
        return [_key(row) for row in connection.execute(_ALL).fetchall()]


def revoke(db: Database, name: str) -> Key:
    """Revoke a key, given by name or id, and the sessions it paired; raise NotFound."""
    with db.write() as connection:
        row = connection.execute(
            f"UPDATE keys SET revoked_at = :now WHERE (name = :name OR key_id = :name) AND revoked_at IS NULL"  # noqa: S608 - a literal
            f" AND device IS NULL RETURNING *, {_OWNER}",
            {"now": iso_now(), "name": name},
        ).fetchone()
        if row is not None:
            revoke_paired(connection, row["key_id"])
    if row is None:
        raise _unknown(name)
    return _key(row)


def revoke_paired(connection: sqlite3.Connection, key_id: str) -> None:
    """Revoke all sessions that a key paired, directly or not, in this transaction."""
    connection.execute(
        f"{_PAIRED} UPDATE keys SET revoked_at = :now WHERE key_id IN paired AND revoked_at IS NULL",  # noqa: S608 - a literal
        {"key_id": key_id, "now": iso_now()},
    )


def paired(db: Database, key_id: str) -> list[str]:
    """Return the key ids of all sessions that a key paired, directly or not."""
    with db.read() as connection:
        rows = connection.execute(
            f"{_PAIRED} SELECT key_id FROM paired",  # noqa: S608 - literals
            {"key_id": key_id},
        ).fetchall()
    return [row["key_id"] for row in rows]


def rotate(db: Database, name: str, days: float | None = None) -> tuple[Key, str]:
    """Replace the secret of a key, and return the key and its new secret.

    The key is given by name or id. It keeps its id, and so its workspaces, executions, webhooks, and the machines that
    registered with it. Its logins end, and so do the sessions that it paired. `days` sets when it expires. Raises
    NotFound for a revoked or unknown key, InvalidRequest for an expired one when `days` is None.
    """
    key = _unrevoked(db, name)
    expires = key.expires_at if days is None else iso(datetime.now(UTC) + timedelta(days=days))
    if expires is not None and expires <= iso_now():
        message = f"The key {key.name} expired on {expires[:10]}. Set how long it is valid with --days."
        raise InvalidRequest(message, {"days": [message]})
    secret = _new_secret(key.kind)
    with db.write() as connection:
        row = connection.execute(
            f"""
            UPDATE keys SET hash = :hash, expires_at = :expires WHERE key_id = :key_id AND revoked_at IS NULL
            RETURNING *, {_OWNER}
            """,  # noqa: S608 - a literal
            {"hash": hashed(secret), "expires": expires, "key_id": key.key_id},
        ).fetchone()
        connection.execute("DELETE FROM logins WHERE key_id = :key_id", {"key_id": key.key_id})
        revoke_paired(connection, key.key_id)
    if row is None:
        raise _unknown(name)
    return _key(row), secret


def _unrevoked(db: Database, name: str) -> Key:
    with db.read() as connection:
        row = connection.execute(
            f"SELECT *, {_OWNER} FROM keys WHERE (name = :name OR key_id = :name) AND revoked_at IS NULL"  # noqa: S608 - a literal
            " AND device IS NULL",
            {"name": name},
        ).fetchone()
    if row is None:
        raise _unknown(name)
    return _key(row)


def new_owner(connection: sqlite3.Connection, name: str) -> str:
    """Add an owner named after its first key, and return the owner's id.

    A number is added to a name that another owner has, so that a new key never joins another owner's work.
    """
    new_id = f"owner-{secrets.token_hex(6)}"
    for number in itertools.count(1):
        won = connection.execute(
            "INSERT INTO owners (owner_id, name, created_at) VALUES (:owner_id, :name, :now) ON CONFLICT DO NOTHING",
            {"owner_id": new_id, "name": name if number == 1 else f"{name}-{number}", "now": iso_now()},
        ).rowcount
        if won:
            break
    return new_id


def owner_named(db: Database, owner: str) -> str:
    """Return the id of an owner, given by name or id. Raises NotFound."""
    with db.read() as connection:
        return owner_id(connection, owner)


def owner_id(connection: sqlite3.Connection, owner: str) -> str:
    """Return the id of an owner, given by name or id.

    Runs inside the caller's transaction. Raises NotFound.
    """
    row = connection.execute(
        "SELECT owner_id FROM owners WHERE owner_id = :owner OR name = :owner ORDER BY owner_id <> :owner LIMIT 1",
        {"owner": owner},
    ).fetchone()
    if row is None:
        message = f"There is no owner called {owner}; `occ hub keys list` names the owners."
        raise NotFound("OWNER_NOT_FOUND", message, {"owner": owner})
    return str(row["owner_id"])


def _unknown(name: str) -> NotFound:
    message = f"There is no valid key called {name}; `occ hub keys list` lists them."
    return NotFound("KEY_NOT_FOUND", message, {"name": name})


def _new_secret(kind: str) -> str:
    return f"occ_{kind}_{secrets.token_urlsafe(32)}"


def hashed(secret: str) -> str:
    return proofs.of_key(secret)


def _key(row: sqlite3.Row) -> Key:
    values = {name: row[name] for name in row.keys() if name != "hash"}  # noqa: SIM118 - a Row iterates over values
    return Key(**{**values, "admin": bool(values["admin"]), "viewer": bool(values["viewer"])})
