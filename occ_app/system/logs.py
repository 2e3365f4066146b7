"""Logging of OCC's processes: one line for each record, in files of bounded size.

Each part of the daemon has a file. A line has the time in UTC, the level, the part, the execution (or -), the logger
and the message; with the format `json` it is one object with these fields. Indented lines below a record are its
traceback.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import re
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from occ_app.system.foreign_text import visible, visible_line

MAX_BYTES = 10_000_000  # of one file
OLD_FILES = 3  # NAME.log.1, the newest, to NAME.log.3
_STDERR = 2
_UNSAFE = re.compile(r"[^A-Za-z0-9._:@-]")  # in an id of a request, which may be anything
_LONGEST_ID = 128

_execution: ContextVar[str] = ContextVar("execution", default="-")


@contextlib.contextmanager
def execution(execution_id: str) -> Iterator[None]:
    """Name this execution in each record that this thread logs in the block."""
    token = _execution.set(execution_id)
    try:
        yield
    finally:
        _execution.reset(token)


def set_execution(execution_id: str | None) -> None:
    """Name this execution in each record that this thread logs from now on.

    With None, records name no execution.
    """
    _execution.set(execution_id or "-")


class RecordFormatter(logging.Formatter):
    """A formatter whose records cannot command a terminal or imitate another record."""

    def __init__(self, part: str) -> None:
        super().__init__()
        self._part = part

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as a line, and its traceback as indented lines below it."""
        fields = self._fields(record)
        head = f"{fields['time']} {fields['level']} {self._part} {fields['execution']} {fields['logger']}:"
        lines = [f"{head} {fields['message']}"]
        if "traceback" in fields:
            lines += [f"  {line}" for line in visible(fields["traceback"]).split("\n")]
        return "\n".join(lines)

    def _fields(self, record: logging.LogRecord) -> dict[str, str]:
        moment = datetime.fromtimestamp(record.created, UTC)
        fields = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "part": self._part,
            "execution": _UNSAFE.sub("?", _execution.get())[:_LONGEST_ID],
            "logger": record.name,
            "message": visible_line(record.getMessage()),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return fields


class JsonFormatter(RecordFormatter):
    """Formats a record as one line of JSON, its traceback included."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as a JSON object; `execution` is null outside of one."""
        fields = self._fields(record)
        return json.dumps({**fields, "execution": None if fields["execution"] == "-" else fields["execution"]})


class RotatingHandler(logging.StreamHandler):  # type: ignore[type-arg]  # a plain class at run time
    """A handler that rotates the file at `path`, open as `descriptor`.

    Several processes of a part share a file: the one that finds it full renames it, and the others notice at their
    next record. When the descriptor is standard error, the interpreter's own messages move to the new file, too.
    """

    def __init__(self, path: Path, descriptor: int = _STDERR, max_bytes: int = MAX_BYTES) -> None:
        super().__init__(sys.stderr if descriptor == _STDERR else open(descriptor, "w", encoding="utf-8"))  # noqa: SIM115 - it is open as long as the process
        self._path, self._descriptor, self._max_bytes = path, descriptor, max_bytes

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        with contextlib.suppress(OSError):  # the disk is full: the file may grow
            self._rotate()
        super().emit(record)

    def _rotate(self) -> None:
        written = os.fstat(self._descriptor)
        try:
            current = self._path.stat()
        except FileNotFoundError:
            self._follow()
            return
        full = current.st_size >= self._max_bytes and put_aside(self._path, self._max_bytes)
        if full or not os.path.samestat(current, written):
            self._follow()

    def _follow(self) -> None:
        """Write to the file at the path from now on."""
        opened = open_log(self._path)
        os.dup2(opened, self._descriptor, inheritable=self._descriptor == _STDERR)
        os.close(opened)


def open_log(path: Path) -> int:
    """Return a descriptor that appends to a log."""
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)


def put_aside(path: Path, max_bytes: int = MAX_BYTES) -> bool:
    """Rename a full log to NAME.log.1, and older ones to the next number.

    False when it is not full. Of several processes that call this at once, one renames. Raises OSError.
    """
    with contextlib.suppress(FileNotFoundError), path.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        mine, current = os.fstat(held.fileno()), path.stat()
        if os.path.samestat(mine, current) and current.st_size >= max_bytes:
            for number in range(OLD_FILES - 1, 0, -1):
                with contextlib.suppress(FileNotFoundError):
                    os.replace(old_log(path, number), old_log(path, number + 1))
            os.replace(path, old_log(path, 1))
        return True
    return False


def old_log(path: Path, number: int) -> Path:
    """Return the number of a rotated log, 1 for the newest."""
    return path.with_name(f"{path.name}.{number}")


def formatter(part: str, shape: str) -> RecordFormatter:
    """Return the formatter of every handler in a part's processes.

    Handlers of libraries use it, too.
    """
    return JsonFormatter(part) if shape == "json" else RecordFormatter(part)


def log_to_stderr(part: str, shape: str = "text", path: Path | None = None) -> None:
    """Log to standard error from now on, an exception that ends the process included.

    When standard error is the file at `path`, OCC keeps that file small.
    """
    handler = logging.StreamHandler() if path is None or not _is_stderr(path) else RotatingHandler(path)
    handler.setFormatter(formatter(part, shape))
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)
    sys.excepthook = _log_the_end


def log_to_file_too(part: str, shape: str, path: Path) -> None:
    """Log also to the file at `path`, of bounded size."""
    handler = RotatingHandler(path, open_log(path))
    handler.setFormatter(formatter(part, shape))
    logging.getLogger().addHandler(handler)


def _is_stderr(path: Path) -> bool:
    """Return whether standard error is the log at `path`.

    A log that was at `path` when this process started counts, too.
    """
    try:
        opened = os.readlink(f"/proc/self/fd/{_STDERR}")
    except OSError:
        return False
    return opened.startswith(f"{path.resolve()}")


def handler() -> logging.Handler:
    """Return the handler made by `log_to_stderr`.

    For the loggers of libraries that do not use it by themselves.
    """
    return logging.getLogger().handlers[0]


def _log_the_end(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, traceback)
        return
    logging.getLogger("occ").critical("The process ends with a fault.", exc_info=(kind, error, traceback))
