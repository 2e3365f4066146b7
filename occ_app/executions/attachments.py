"""Images and files that come with a prompt: their kinds, and all SQL on them.

They are stored with the execution and given to Claude as parts of the prompt; none is a file of the workspace.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from occ_app.database.database import Database
from occ_app.errors import InvalidRequest, TooLarge

MAX_BYTES = 10 * 1024 * 1024  # of all attachments of a prompt together
MAX_FILES = 20
TEXT, PDF = "text/plain", "application/pdf"

# The beginning of each kind's content.
_MAGIC = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg", b"GIF8": "image/gif", b"%PDF-": PDF}


@dataclass(frozen=True)
class Attachment:
    """A file that comes with a prompt."""

    name: str
    media_type: str
    data: bytes

    @property
    def summary(self) -> dict[str, Any]:
        """Its name, kind and size, as the record of the execution shows them."""
        return {"name": self.name, "mediaType": self.media_type, "bytes": len(self.data)}


def checked(files: Sequence[tuple[str, bytes]]) -> tuple[Attachment, ...]:
    """Return files, each a name and the content, as attachments.

    The content decides on the kind. Raises TooLarge, and InvalidRequest for a file that is no image, PDF or text.
    """
    if sum(len(data) for _, data in files) > MAX_BYTES:
        raise TooLarge(f"The attachments are over {MAX_BYTES} bytes; put large files into the workspace instead.")
    return tuple(Attachment(name, _media_type(name, data), data) for name, data in files)


def _media_type(name: str, data: bytes) -> str:
    for magic, media_type in _MAGIC.items():
        if data.startswith(magic):
            return media_type
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    try:
        if data and b"\0" not in data:
            data.decode()
            return TEXT
    except UnicodeDecodeError:
        pass
    message = f"{name} is no image (PNG, JPEG, GIF, WebP), PDF or text in UTF-8; put it into the workspace instead."
    raise InvalidRequest(message, {"attachments": [f"{name}: not an image, a PDF or a text."]})


def insert(connection: sqlite3.Connection, execution: int, attachments: Sequence[Attachment]) -> None:
    """Store the attachments of an execution that the caller's transaction accepts."""
    connection.executemany(
        """
        INSERT INTO attachments (execution, position, name, media_type, data)
        VALUES (:execution, :position, :name, :media_type, :data)
        """,
        [{**vars(each), "execution": execution, "position": position} for position, each in enumerate(attachments)],
    )


def of_execution(db: Database, execution: int) -> tuple[Attachment, ...]:
    """Return the attachments of an execution, in the order of its request."""
    with db.read() as connection:
        rows = connection.execute(
            "SELECT name, media_type, data FROM attachments WHERE execution = :execution ORDER BY position",
            {"execution": execution},
        ).fetchall()
    return tuple(Attachment(row["name"], row["media_type"], bytes(row["data"])) for row in rows)
