"""Copies of one instant.

The files are read, and read again if any of them changed meanwhile.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO

from occ_app.errors import Unavailable
from occ_app.workspaces.archives import below, pack

ATTEMPTS = 3

Marks = dict[str, tuple[int, ...]]


def pack_instant(folder: Path, output: IO[bytes]) -> None:
    """Write a zip of all files below `folder` as they were at one instant.

    Raises Unavailable (BUSY) when they changed during each attempt, and FileNotFoundError when the folder is gone.
    """

    def attempt() -> None:
        folder.stat()
        for _ in pack(folder, output):
            pass

    repeat(attempt, output, lambda: marks([folder, *below(folder)]), f"The files of workspace {folder.name}")


def repeat(attempt: Callable[[], None], output: IO[bytes], look: Callable[[], Marks], subject: str) -> None:
    """Repeat `attempt`, which writes `output`, until nothing changed during it.

    `look` then returns the same before and after it. Raises Unavailable (BUSY) after the last attempt; `subject`
    begins its sentence.
    """
    for _ in range(ATTEMPTS):
        output.seek(0)
        output.truncate()
        before = look()
        attempt()
        if look() == before:
            return
    raise Unavailable(
        "BUSY", f"{subject} change while they are read; try again when nothing runs or is uploaded there."
    )


def marks(paths: Iterable[Path]) -> Marks:
    """Return the identity and state of each file or folder.

    They are identity, kind, size and times of changes.
    """
    marks_by_path: Marks = {}
    for path in paths:
        with contextlib.suppress(OSError):
            status = path.lstat()
            times = (status.st_mtime_ns, status.st_ctime_ns)
            marks_by_path[os.fspath(path)] = (status.st_dev, status.st_ino, status.st_mode, status.st_size, *times)
    return marks_by_path


def identities(paths: Iterable[Path]) -> Marks:
    """Return each folder's identity, which a replacement changes.

    Changes within it do not count.
    """
    return {name: mark[:2] for name, mark in marks(paths).items()}
