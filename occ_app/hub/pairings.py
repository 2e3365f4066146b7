"""One-time codes that open a session on another device, and all SQL on them.

The hub stores the SHA-256 of a code. Redeeming it is one DELETE, so that a code opens one session.
"""

from __future__ import annotations

import os
import pwd
import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from occ_app.database.database import Database
from occ_app.home import notes
from occ_app.hub import keys, logins
from occ_app.system.timestamps import iso, iso_now

MINUTES = 10
# Without letters and digits that look alike; 12 characters are 60 bits.
_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_GROUPS, _GROUP_LENGTH = 3, 4
_READ_AS = str.maketrans({"O": "0", "I": "1", "L": "1", "U": "V", "-": None, " ": None})
_OPERATOR = "operator"


@dataclass(frozen=True)
class Pairing:
    """A new code, and the owner and role of the session that it opens."""

    code: str = field(repr=False)
    owner_id: str
    owner: str
    role: str
    expires_at: str

    @property
    def path(self) -> str:
        """Return the address of the page that redeems the code.

        The code is in the fragment, which browsers do not send.
        """
        return f"/pair#{self.code}"


def create(db: Database, role: str, owner: str | None, paired_by: str | None) -> Pairing:
    """Create a code for a session of an owner.

    `owner` is the name or id of an existing owner, None for the owner of this hub's operator. `paired_by` is the key
    that requests the code; the session ends with that key. Raises NotFound for an unknown owner.
    """
    code = "".join(secrets.choice(_ALPHABET) for _ in range(_GROUPS * _GROUP_LENGTH))
    now = datetime.now(UTC)
    expires = iso(now + timedelta(minutes=MINUTES))
    owner = owner or _operator(db)
    with db.write() as connection:
        owner_id = keys.owner_id(connection, owner)
        connection.execute(
            """
            INSERT INTO pairings (hash, owner_id, role, paired_by, created_at, expires_at)
            VALUES (:hash, :owner_id, :role, :paired_by, :now, :expires)
            """,
            {
                "hash": keys.hashed(code),
                "owner_id": owner_id,
                "role": role,
                "paired_by": paired_by,
                "now": iso(now),
                "expires": expires,
            },
        )
        name = connection.execute("SELECT name FROM owners WHERE owner_id = :id", {"id": owner_id}).fetchone()["name"]
    shown = "-".join(code[at : at + _GROUP_LENGTH] for at in range(0, len(code), _GROUP_LENGTH))
    return Pairing(shown, owner_id, name, role, expires)


def redeem(db: Database, code: str, device: str) -> str | None:
    """Open a session on a device with a code, and return the session's cookie.

    The code is void afterwards. Returns None for a code that is not valid.
    """
    key_id = f"key-{secrets.token_hex(6)}"
    with db.write() as connection:
        row = connection.execute(
            """
            DELETE FROM pairings WHERE hash = :hash AND expires_at > :now
            AND (paired_by IS NULL OR EXISTS (
                SELECT 1 FROM keys k WHERE k.key_id = pairings.paired_by AND k.revoked_at IS NULL
                AND (k.expires_at IS NULL OR k.expires_at > :now)))
            RETURNING owner_id, role, paired_by
            """,
            {"hash": keys.hashed(code.upper().translate(_READ_AS)), "now": iso_now()},
        ).fetchone()
        if row is None:
            return None
        connection.execute(
            """
            INSERT INTO keys (key_id, name, kind, admin, viewer, owner_id, hash, created_at, expires_at, device,
                paired_by)
            VALUES (:key_id, :key_id, 'client', :admin, :viewer, :owner_id, :hash, :now,
                (SELECT expires_at FROM keys WHERE key_id = :paired_by), :device, :paired_by)
            """,
            {
                "key_id": key_id,  # also its name, which no person can have chosen
                "admin": row["role"] == "admin",
                "viewer": row["role"] == "viewer",
                "owner_id": row["owner_id"],
                "hash": keys.hashed(secrets.token_urlsafe(32)),  # of a secret that nobody has
                "now": iso_now(),
                "device": device,
                "paired_by": row["paired_by"],
            },
        )
        return logins.begin_in(connection, key_id, device)


def _operator(db: Database) -> str:
    """Return the id of the owner of this hub's operator.

    The owner is created when missing, named after the user who runs the hub.
    """
    noted = notes.noted(db, _OPERATOR).get("ownerId")
    if noted is None:
        with db.write() as connection:
            new = keys.new_owner(connection, _user())
        noted = notes.first_note(db, _OPERATOR, {"ownerId": new})["ownerId"]
    return str(noted)


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return "me"
