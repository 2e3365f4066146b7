"""The places for spare processes that the workers of a daemon share.

They are locked files that name the worker and the permissions of its spare.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_MOST_BYTES = 100


@dataclass(frozen=True)
class Taken:
    """A place with a spare for the permissions `level`; `worker` is a pid."""

    number: int
    worker: int
    level: str


class Places:
    """The place of the worker that calls this, if it has one.

    The kernel frees that of a killed worker.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = -1
        self.number = 0

    @property
    def taken(self) -> bool:
        return self._file >= 0

    def take(self, room: int) -> bool:
        """Take one of the first `room` places, unless this worker has one.

        False when all are taken.
        """
        if self.taken:
            return True
        for number in range(room):
            try:
                file = os.open(self._path(number), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except OSError:
                return False
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(file)
                continue
            self._file, self.number = file, number
            self.note("")
            return True
        return False

    def note(self, level: str) -> None:
        """Note the permissions for which this worker has a spare, empty for none."""
        with contextlib.suppress(OSError):  # a full disk; the others do not know of it then
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, f"{os.getpid()} {level}".encode() if level else b"", 0)

    def free(self) -> None:
        """Free the place of this worker, if it has one."""
        if self.taken:
            self.note("")
            os.close(self._file)
            self._file = -1

    def others(self, room: int) -> Iterator[Taken]:
        """Yield the places of the other workers that have a spare.

        Those are among the first `room`, as they were a moment ago.
        """
        for number in range(room):
            if self.taken and number == self.number:
                continue
            with contextlib.suppress(OSError, ValueError):  # no spare, or one that was just being noted
                pid, level = self._path(number).read_bytes()[:_MOST_BYTES].decode().split()
                yield Taken(number, int(pid), level)

    def _path(self, number: int) -> Path:
        return self._folder / f"slot-{number}"
