"""The version of the CLI, as the control process noted it."""

from __future__ import annotations

from occ_app.claude import program
from occ_app.database.database import Database
from occ_app.errors import OCCError
from occ_app.home import notes


def noted(db: Database, path: str) -> str | None:
    """Return the recorded version of the CLI at `path`.

    None when it was not recorded, or for another file than the present one.
    """
    try:
        note = notes.noted(db, "claude")
    except OCCError:
        return None
    same = note.get("path") == path and note.get("file") == program.file_identity(path)
    return note.get("version") if same else None
