"""The end of a session's transcript.

It shows whether another process has added turns.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from occ_app.claude import projects

_SESSION = re.compile(r"[0-9a-fA-F-]{36}")
_TURN = re.compile(rb'"type":\s*"(?:user|assistant)"')


@dataclass(frozen=True)
class End:
    """The size in bytes of a transcript that one process writes, and which file it is."""

    path: Path
    inode: int
    size: int


def end(claude: Path, workspace: Path, session_id: str) -> End | None:
    """Return the present end of a session's transcript; None when there is none."""
    if _SESSION.fullmatch(session_id) is None:  # the CLI said it, and it becomes a part of a path
        return None
    for folder in projects.folders(claude, workspace):
        path = folder / f"{session_id}.jsonl"
        try:
            status = os.stat(path)
        except OSError:
            continue
        return End(path, status.st_ino, status.st_size)
    return None


def has_grown(former: End) -> bool:
    """Return whether turns were added after a former end.

    Also True when the file is another one or cannot be read.
    """
    try:
        with former.path.open("rb") as file:
            status = os.fstat(file.fileno())
            file.seek(former.size)
            return status.st_ino != former.inode or status.st_size < former.size or bool(_TURN.search(file.read()))
    except OSError:
        return True
