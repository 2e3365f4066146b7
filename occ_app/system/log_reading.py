"""Reading a daemon's logs.

Records of several files are merged in the order of their times, and new ones can be followed.
"""

from __future__ import annotations

import contextlib
import heapq
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from occ_app.system.logs import OLD_FILES, old_log
from occ_app.system.timestamps import iso

# Lines of 0.1.0 have the local time, a comma, and neither part nor execution.
_LINE = re.compile(r"(\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d[.,]\d{3})(Z?) [A-Z]+ (?:\w+ (\S+) [\w.]+: )?")
_TAIL_BYTES = 1_000_000


@dataclass(frozen=True)
class Record:
    """A record as it is in the file, with its traceback.

    `time` is ISO 8601 in UTC, empty when the record has none.
    """

    time: str
    execution: str
    text: str

    def matches(self, since: str | None, execution: str | None) -> bool:
        """Return whether the record is as new as `since` and of `execution`.

        `execution` is the beginning of an execution's id.
        """
        new = since is None or self.time >= since
        return new and (execution is None or self.execution.startswith(execution))


def records(lines: Iterable[str]) -> Iterator[Record]:
    """Group lines to records: lines that begin no record belong to the one before."""
    current: Record | None = None
    for line in lines:
        begun = begin(line)
        if begun is None and current is not None:
            current = Record(current.time, current.execution, f"{current.text}\n{line}")
            continue
        if current is not None:
            yield current
        current = begun or Record("", "-", line)
    if current is not None:
        yield current


def begin(line: str) -> Record | None:
    """Return the record that a line begins, None for a line that belongs to another."""
    if line.startswith("{"):
        try:
            fields = json.loads(line)
            return Record(str(fields["time"]), str(fields["execution"] or "-"), line)
        except (ValueError, KeyError, TypeError):
            return None
    match = _LINE.match(line)
    if match is None:
        return None
    moment, utc, execution = match.groups()
    if not utc:
        try:
            moment = iso(datetime.fromisoformat(moment.replace(",", ".")).astimezone(UTC)).removesuffix("Z")
        except ValueError:
            return None
    return Record(f"{moment}Z", execution or "-", line)


class Logs:
    """The logs at some paths as they are now, and the lines that are added later."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._files = {path: _open_at_end(path) for path in paths}
        self._rests = dict.fromkeys(self._files, b"")

    def read(self, *, whole: bool) -> Iterator[Record]:
        """Yield the stored records by time.

        Without `whole` these are the records of the last megabyte of each log.
        """
        logs = (records(_lines(path, file, whole)) for path, file in self._files.items())
        yield from heapq.merge(*logs, key=lambda record: record.time)

    def added(self, show: Callable[[str], None]) -> bool:
        """Call `show` with each whole line that was added since the last call.

        Returns whether there was one. A log that was rotated is followed.
        """
        some = False
        for path, file in self._files.items():
            some |= self._show(path, file, show)
            if not _is_current(path, file):
                if file is not None:
                    some |= self._show(path, file, show)  # written between the two looks
                    file.close()
                with contextlib.suppress(FileNotFoundError):
                    self._files[path] = path.open("rb")
                    some |= self._show(path, self._files[path], show)
        return some

    def _show(self, path: Path, file: IO[bytes] | None, show: Callable[[str], None]) -> bool:
        if file is None:
            return False
        *lines, self._rests[path] = (self._rests[path] + file.read()).split(b"\n")
        for line in lines:
            show(line.decode(errors="replace"))
        return bool(lines)

    def close(self) -> None:
        for file in self._files.values():
            if file is not None:
                file.close()


def _open_at_end(path: Path) -> IO[bytes] | None:
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return None
    file.seek(0, os.SEEK_END)
    return file


def _lines(path: Path, current: IO[bytes] | None, whole: bool) -> Iterator[str]:
    """Yield the lines of a log, those of its rotated files first.

    Ends at the position of `current`, the open file.
    """
    end = 0 if current is None else current.tell()
    here = None if current is None else os.fstat(current.fileno())
    for number in range(OLD_FILES, 0, -1):
        if whole or (number == 1 and end < _TAIL_BYTES):
            with contextlib.suppress(FileNotFoundError), old_log(path, number).open("rb") as file:
                status = os.fstat(file.fileno())
                if here is None or not os.path.samestat(status, here):  # it is when it was put aside just now
                    yield from _part(file, status.st_size, whole)
    if current is not None:
        with open(f"/proc/self/fd/{current.fileno()}", "rb") as file:
            yield from _part(file, end, whole)


def _part(file: IO[bytes], end: int, whole: bool) -> Iterator[str]:
    """Yield the lines before the byte `end`; of the last megabyte, unless `whole`."""
    if not whole and end > _TAIL_BYTES:
        file.seek(end - _TAIL_BYTES)
        file.readline()  # the rest of a line
    while file.tell() < end and (line := file.readline()):
        yield line.decode(errors="replace").rstrip("\n")


def _is_current(path: Path, file: IO[bytes] | None) -> bool:
    try:
        return file is not None and os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return file is not None  # it was put aside, and nothing was logged since
