"""The two Huey queues, and the doorbell that wakes a worker for a new job.

Huey's SQLite storage polls. With this storage `dequeue` waits on a FIFO instead: `enqueue` commits, then writes one
byte, which wakes one worker. Jobs are JSON and carry ids only. The rows of occ.db are authoritative, so this file may
be lost.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import select
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huey import Huey
from huey.registry import Message
from huey.serializer import Serializer
from huey.storage import SqliteStorage

from occ_app.config.config import Config
from occ_app.database.database import begin, translated

_REREAD_SECONDS = 3.0  # a ring is lost only with a worker that was killed between hearing it and taking the job


class DoorbellStorage(SqliteStorage):
    """SqliteStorage with a `dequeue` that blocks.

    It returns when there is a job, a re-read is due, or `wake` becomes readable.
    """

    blocking = True

    def __init__(self, name: str, filename: str, bell: str, **options: Any) -> None:
        self._bell = bell
        self._descriptor: int | None = None
        self._pid: int | None = None
        self._thread = threading.local()
        self.wake: int | None = None
        self.idle: Callable[[], bool] | None = None  # called before each wait; True lets others be woken first
        self.called: tuple[int, Callable[[], object]] | None = None  # what to do when a descriptor is readable
        with contextlib.suppress(FileExistsError):
            os.mkfifo(bell, 0o600)
        super().__init__(name, filename=filename, **options)

    def _create_connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection = super()._create_connection()
        connection.execute("PRAGMA busy_timeout = 0")  # begin() waits better
        # Losing the newest wake-ups in a power cut costs nothing: the rows of occ.db ring again at the next start.
        connection.execute("PRAGMA synchronous = NORMAL")
        return connection

    def enqueue(self, data: bytes, priority: float | None = None) -> None:
        # A transaction of one statement, where Huey has three; it is on the way of every execution to its worker.
        self.sql("INSERT INTO task (queue, data, priority) VALUES (?, ?, ?)", (self.name, data, priority or 0))
        self.ring(1)

    def ring(self, times: int) -> None:
        """Wake as many of those that wait for a job."""
        with contextlib.suppress(BlockingIOError):  # 64 KiB of unread rings: every worker is awake
            os.write(self._open(), b"\0" * times)

    def dequeue(self) -> bytes | None:
        if self.sql("SELECT 1 FROM task WHERE queue = ? LIMIT 1", (self.name,), results=True):
            return self._take()
        bell, poller = self._open(), self._poller()
        if self.idle is not None and self.idle():
            # Those that wait are woken in the order in which they registered.
            poller.unregister(bell)
            poller.register(bell, select.EPOLLIN | select.EPOLLEXCLUSIVE)
        ready = dict(poller.poll(_REREAD_SECONDS))
        if bell not in ready:
            if self.called is not None and self.called[0] in ready:
                self.called[1]()
            return None
        # A ring wakes no other worker: it is heard before anything else that may take long.
        try:
            os.read(bell, 1)  # one byte is one job, so each ring wakes one worker
        except BlockingIOError:
            return None
        return self._take()

    def _take(self) -> bytes | None:
        """Remove the next job, which is this worker's then; None when others were faster."""
        taken = self.sql(
            """
            DELETE FROM task WHERE id = (SELECT id FROM task WHERE queue = ? ORDER BY priority DESC, id LIMIT 1)
            RETURNING data
            """,
            (self.name,),
            results=True,
        )
        return taken[0][0] if taken else None

    def _poller(self) -> select.epoll:
        """Return the epoll of the calling thread."""
        bell = self._open()
        if getattr(self._thread, "bell", None) != (self._pid, bell):
            poller = select.epoll()
            # Exclusive: a ring wakes one of those that wait, where it would wake all to find one byte. It is the first
            # of them that is free, as they stay registered; who ran a moment ago is faster than one who rested.
            poller.register(bell, select.EPOLLIN | select.EPOLLEXCLUSIVE)
            if self.wake is not None:
                poller.register(self.wake, select.EPOLLIN)
            if self.called is not None:
                poller.register(self.called[0], select.EPOLLIN)
            self._thread.bell, self._thread.poller = (self._pid, bell), poller
        existing: select.epoll = self._thread.poller
        return existing

    def _open(self) -> int:
        if self._descriptor is None or self._pid != os.getpid():
            # Open for reading and writing: no end of file, and no error while nobody reads.
            self._descriptor = os.open(self._bell, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            self._pid = os.getpid()
        return self._descriptor

    def read_schedule(self, _: Any) -> list[bytes]:
        """Return no scheduled jobs.

        OCC schedules none, and Huey would ask every second, in an exclusive transaction.
        """
        return []

    def add_to_schedule(self, *_: Any) -> None:
        raise NotImplementedError("later work is in rows; see read_schedule")

    def peek_many(self, _: Any) -> dict[str, bytes]:
        """Return no revoked jobs.

        A cancelled execution is marked in its row.
        """
        return {}

    def delete_data(self, _: Any) -> bool:
        return False


class _PatientConnection(sqlite3.Connection):
    """A connection that waits for locks as OCC's own transactions do."""

    def __del__(self) -> None:
        """Close the connection with its thread.

        From Python 3.13 on, SQLite's finalizer would warn.
        """
        with contextlib.suppress(sqlite3.Error):  # it could not be opened
            self.close()

    def cursor(self, *_: Any, **__: Any) -> Any:
        return super().cursor(_PatientCursor)


class _PatientCursor(sqlite3.Cursor):
    def execute(self, sql: str, *parameters: Any) -> _PatientCursor:
        begin(lambda: super(_PatientCursor, self).execute(sql, *parameters))
        return self


class JsonSerializer(Serializer):
    """Jobs as JSON.

    They are readable in the sqlite3 shell and, unlike pickles, cannot run code.
    """

    def _serialize(self, data: Any) -> bytes:
        if isinstance(data, Message):
            data = {key: value for key, value in data._asdict().items() if value is not None}
        return json.dumps(data, default=_as_text).encode()

    def _deserialize(self, data: bytes) -> Any:
        content = json.loads(bytes(data))
        if not isinstance(content, dict) or "name" not in content:
            return content
        resolved = content.get("expires_resolved")
        if isinstance(resolved, str):
            content["expires_resolved"] = datetime.datetime.fromisoformat(resolved)
        return Message(**content)


def _as_text(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime.datetime) else str(value)


def _never_run(_: Any) -> None:
    raise RuntimeError("this process only enqueues")


def open_queue(config: Config, name: str) -> Huey:
    """Return the queue `executions` or `control`.

    Results are not stored: the effects of a job are in occ.db.
    """
    return Huey(
        name,
        results=False,
        serializer=JsonSerializer(),
        storage_class=DoorbellStorage,
        filename=str(config.queue),
        bell=str(config.run / "queue" / Path(name).name),
        strict_fifo=True,
        factory=_PatientConnection,
    )


def task_of(queue: Huey, name: str, run: Callable[[Any], object] = _never_run) -> Callable[[Any], None]:
    """Define the task `name` and return the function that enqueues it.

    The function takes the one argument of the task. A process that only enqueues leaves `run` out. The function raises
    Unavailable or NoSpace when the queue file cannot be written.
    """

    @queue.task(name=name)  # type: ignore[untyped-decorator]  # huey is untyped
    def task(argument: Any) -> None:
        run(argument)

    def enqueue(argument: Any) -> None:
        try:
            queue.enqueue(task.s(argument))
        except sqlite3.DatabaseError as error:
            raise translated(error) from error

    return enqueue


def waker(config: Config) -> Callable[[], None]:
    """Return the function that wakes a worker.

    The worker runs the oldest execution that can run.
    """
    enqueue = task_of(open_queue(config, "executions"), "execute")
    return lambda: enqueue("")


def upload_enqueuer(config: Config) -> Callable[[int], None]:
    """Return the function that enqueues the unpacking of an upload.

    Its argument is the upload's number; the control process does the work.
    """
    return task_of(open_queue(config, "control"), "unpack_upload")
