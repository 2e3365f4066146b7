"""An agent that tests use one after another: emptied after each test, and replaced when a test changed more."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from occ_app.client.agent_client import AgentClient
from occ_app.database import database as db
from occ_app.errors import OCCError
from tests.conftest import Occ, occ_in, wait_until

_CHANGING = ("workspaces", "logs", "run", "lock", "occ.db", "queue.db")  # in a home that is used
_SECONDS = 20.0  # for executions that are cancelled to end


@dataclass(frozen=True)
class _Untouched:
    """The parts of an agent that no test may change without the agent being replaced."""

    processes: frozenset[int]
    files: dict[str, bytes]


class KeptAgent:
    """Starts an agent when it is first lent. Its home and the stand-in CLI are in `folder`."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self._folder = folder
        self._settings = settings
        self._stack = contextlib.ExitStack()
        self._running: Occ | None = None
        self._count = 0

    @contextlib.contextmanager
    def lent(self, folder: Path) -> Iterator[Occ]:
        """Lend the agent, with nothing in it, to a test whose commands run in `folder`, with the home `folder`/user."""
        agent = self._running or self._start()
        user = folder / "user"
        user.mkdir(exist_ok=True)
        occ = replace(agent, environment=agent.environment | {"HOME": str(user)}, clients=[], folder=folder)
        try:
            yield occ
            for client in occ.clients:
                client.close()
            if not self._emptied(agent):
                self.end()
        except BaseException:
            with contextlib.suppress(AssertionError):  # the failure of the test says more
                self.end()
            raise

    def end(self) -> None:
        """Stop the agent. Raises AssertionError when processes of it are left."""
        self._running = None
        self._stack.close()

    def _start(self) -> Occ:
        self._count += 1
        folder = self._folder / str(self._count)
        folder.mkdir(parents=True)
        self._running = self._stack.enter_context(occ_in(folder)).start(**self._settings)
        parts = 4 + int(self._running.environment["OCC_WORKERS"])  # supervisor, web, control, consumer, its workers
        wait_until(lambda: len(_parts(self._running)) == parts, "all processes to have started")
        self._untouched = _look(self._running)
        return self._running

    def _emptied(self, agent: Occ) -> bool:
        """Remove all executions and workspaces. False when the agent is not as it was when it started."""
        if _look(agent) != self._untouched:
            return False
        with contextlib.closing(agent.database) as database:
            if not _all_over(agent, database):
                return False
            _delete_rows(database)
        for path in (agent.home / "workspaces").iterdir():
            shutil.rmtree(path)
        for path in (agent.home / "logs").iterdir():
            os.truncate(path, 0)
        return _soon(lambda: all(_belongs(line) for line in agent.commands().values()))


def _belongs(command_line: str) -> bool:
    """Whether it is of a process of the daemon, or of a shell that waits for the next execution."""
    return "-m occ_" in command_line or "IFS= read -r line" in command_line


def _parts(agent: Occ | None) -> frozenset[int]:
    return frozenset(pid for pid, line in agent.commands().items() if "-m occ_" in line) if agent else frozenset()


def _look(agent: Occ) -> _Untouched:
    files = {}
    for path in (*agent.home.iterdir(), agent.home / "run" / "daemon.json"):
        if not path.name.startswith(_CHANGING):
            files[path.name] = path.read_bytes() if path.is_file() else b""
    return _Untouched(_parts(agent), files)


def _all_over(agent: Occ, database: db.Database) -> bool:
    """Cancel all executions and wait until nothing runs. False when that takes too long."""

    def under_way() -> list[str]:
        with database.read() as connection:
            return [
                row[0]
                for row in connection.execute(
                    "SELECT execution_id FROM executions WHERE state IN ('queued', 'running')"
                    " UNION ALL SELECT '' FROM workspace_jobs WHERE state IN ('queued', 'running')"
                )
            ]

    with contextlib.suppress(OCCError), contextlib.closing(AgentClient(agent.url, agent.token, agent.pin)) as client:
        for execution_id in filter(None, under_way()):
            client.cancel(execution_id)
        return _soon(lambda: not under_way())
    return False


def _delete_rows(database: db.Database) -> None:
    with database.write() as connection:
        connection.execute("PRAGMA defer_foreign_keys = ON")
        named = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall()
        for (name,) in named:
            if name != "agent" and not name.startswith(("sqlite_", "_sqlite", "search_")):
                connection.execute(f"DELETE FROM {name}")  # noqa: S608 - a name from the schema


def _soon(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + _SECONDS
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
