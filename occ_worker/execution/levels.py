"""The permissions for which processes start ahead.

Those are the ones with which the newest conversations began.
"""

from __future__ import annotations

from occ_app.config.settings import PERMISSIONS
from occ_app.database.database import Database
from occ_app.executions.ceilings import lowest
from occ_app.home import notes

_KEY = "conversations"
_DEFAULT = ["edit", "ask"]  # without a name, and in `occ chat` and on the pages


def wanted(db: Database, ceiling: str) -> list[str]:
    """Return the permissions of the two newest conversations, newest first.

    Each is listed once. Before the first conversation they are the usual ones. Raises OCCError.
    """
    return list(dict.fromkeys(of(lowest(level, ceiling)) for level in _newest(db) or _DEFAULT))


def of(permissions: str) -> str:
    """Return the permissions whose process serves these, too.

    `full` differs from `ask` only in the answers of OCC's hook.
    """
    return "ask" if permissions == "full" else permissions


def note(db: Database, level: str) -> None:
    """Note that a conversation began with these permissions. Raises OCCError."""
    former = _newest(db)
    newest = [level, *former[:1]]
    if newest != former:
        notes.note(db, _KEY, {"newest": newest})


def _newest(db: Database) -> list[str]:
    newest = notes.noted(db, _KEY).get("newest")
    return [each for each in newest if each in PERMISSIONS] if isinstance(newest, list) else []
