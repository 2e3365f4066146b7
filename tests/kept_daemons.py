"""Daemons that tests use one after another: emptied after each test, and replaced when a test changed more."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from occ_app.client.agent_client import AgentClient
from occ_app.database import database as db
from occ_app.errors import OCCError
from tests.conftest import Occ, occ_in, wait_until
from tests.real_hub import Hub, hub_in

_KEPT_FOLDERS = ("logs", "run", "lock")  # of a home; the contents of all others are of executions and workspaces
_SECONDS = 15.0  # for executions that are cancelled to end
_AT_ONCE = ("supervisor", "wsgi", "control")  # the processes of a daemon; the rest are workers


@dataclass(frozen=True)
class _Look:
    """The parts of a daemon that no test may change without the daemon being replaced."""

    processes: frozenset[int]
    files: dict[str, bytes]

    def still_true_of(self, daemon: Occ | Hub) -> bool:
        """Whether the processes run and the files are as they were; there may be more processes."""
        now = _look(daemon)
        return self.files == now.files and self.processes <= now.processes


class KeptAgent:
    """Starts an agent when it is first lent. Its home and the stand-in CLI are in `folder`."""

    def __init__(self, folder: Path, program: Path | None = None, **settings: str) -> None:
        self._folder = folder
        self._program = program
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
        with _ended_on_failure(self.end):
            yield occ
            for client in occ.clients:
                client.close()
            if not self._emptied(agent):
                self.end()

    @property
    def running(self) -> bool:
        return self._running is not None

    @property
    def state(self) -> dict[str, Any]:
        """The agent's state.json as it was when it started."""
        return dict(json.loads(self._first.files["state.json"]))

    def end(self) -> None:
        """Stop the agent. Raises AssertionError when processes of it are left."""
        self._running = None
        self._stack.close()

    def _start(self) -> Occ:
        self._count += 1
        folder = self._folder / str(self._count)
        folder.mkdir(parents=True)
        agent = self._stack.enter_context(occ_in(folder, program=self._program)).start(**self._settings)
        self._running, self._first = agent, _first_look(agent, 1 + int(agent.environment["OCC_WORKERS"]))
        return agent

    def _emptied(self, agent: Occ) -> bool:
        """Remove all executions and workspaces. False when the agent is not as it was when it started."""
        if not self._first.still_true_of(agent):
            return False
        with contextlib.closing(agent.database) as database:
            if not _all_over(database, AgentClient(agent.url, agent.token, agent.pin)):
                return False
            _delete_rows(database, {})
        return _remove_files(agent.home) and _soon(lambda: all(_belongs(line) for line in agent.commands().values()))


class KeptHub:
    """Starts a hub when it is first lent, and with `box` a machine of that name, which tests use by `hub.agent`."""

    def __init__(self, folder: Path, *, box: bool) -> None:
        self._folder = folder
        self._with_box = box
        self._stack = contextlib.ExitStack()
        self._running: Hub | None = None
        self._count = 0

    @contextlib.contextmanager
    def lent(self, folder: Path) -> Iterator[Hub]:
        """Lend the hub, with no machine but `box`, to a test whose other machines have their homes in `folder`."""
        running = self._running or self._start()
        stack = contextlib.ExitStack()
        hub = replace(running, environment=dict(running.environment), stack=stack, clients=[], folder=folder)
        hub.kept_box = (lambda: self._box.lent(folder)) if self._with_box else None
        with _ended_on_failure(self.end), stack:
            yield hub
            for client in hub.clients:
                client.close()
            if not self._emptied(running, stack):
                self.end()

    def end(self) -> None:
        """Stop the hub and its machine. Raises AssertionError when processes of them are left."""
        self._running = None
        self._stack.close()

    def _start(self) -> Hub:
        self._count += 1
        folder = self._folder / str(self._count)
        folder.mkdir(parents=True)
        hub = self._running = self._stack.enter_context(hub_in(folder)).start()
        self._first = _first_look(hub, 1)
        self._keys = _rows(hub.database, "keys")
        self._box = KeptAgent(folder / "box", None, **hub.settings_of("box"))
        self._stack.callback(self._box.end)
        return hub

    def _emptied(self, hub: Hub, machines: contextlib.ExitStack) -> bool:
        """Remove all but the two keys and the kept machine. False when the hub is not as it was when it started."""
        if not self._first.still_true_of(hub):
            return False
        with contextlib.closing(hub.database) as database:
            if not _all_over(database, AgentClient(hub.url, hub.client_key)):
                return False
            machines.close()
            keys = {row["key_id"]: row for row in _rows(database, "keys")}
            if [keys.get(row["key_id"]) for row in self._keys] != self._keys:
                return False
            kept = {
                "keys": f"name NOT IN ({', '.join(repr(row['name']) for row in self._keys)})",
                "owners": "owner_id NOT IN (SELECT owner_id FROM keys)",  # those of the kept keys, which refer to them
            }
            _delete_rows(database, kept | ({"agents": "name <> 'box'"} if self._box.running else {}))
            if self._box.running and not self._box_is_as_before(database):
                return False
        return _remove_files(hub.home)

    def _box_is_as_before(self, database: db.Database) -> bool:
        with database.write() as connection:
            connection.execute("UPDATE agents SET draining = 0")
        agents = [(row["agent_id"], row["token"], json.loads(row["labels"])) for row in _rows(database, "agents")]
        return agents == [(self._box.state["agentId"], self._box.state["token"], [])]


@contextlib.contextmanager
def _ended_on_failure(end: Callable[[], None]) -> Iterator[None]:
    try:
        yield
    except BaseException:
        with contextlib.suppress(AssertionError):  # the failure says more
            end()
        raise


def _first_look(daemon: Occ | Hub, workers: int) -> _Look:
    """Wait until all processes of a daemon have started, with so many consumers and workers."""

    def whole() -> _Look | None:
        look = _look(daemon)  # one that counts now may be gone in another look
        return look if len(look.processes) == len(_AT_ONCE) + workers else None

    found: _Look = wait_until(whole, "all processes to have started")
    return found


def _look(daemon: Occ | Hub) -> _Look:
    kept = [path for path in daemon.home.iterdir() if path.is_file() and ".db" not in path.name]
    place = daemon.home / "run" / "daemon.json"
    files = {path.name: path.read_bytes() for path in (*kept, place) if path.exists()}
    return _Look(_parts(daemon), files)


def _parts(daemon: Occ | Hub) -> frozenset[int]:
    return frozenset(pid for pid, line in daemon.commands().items() if "-m occ_" in line)


def _belongs(command_line: str) -> bool:
    """Whether it is of a process of the daemon, or of a shell that waits for the next execution."""
    return "-m occ_" in command_line or "IFS= read -r line" in command_line


def _all_over(database: db.Database, client: AgentClient) -> bool:
    """Cancel all executions and wait until nothing runs. False when that takes too long."""

    def under_way() -> list[str]:
        with database.read() as connection:
            found = connection.execute(
                "SELECT execution_id FROM executions WHERE state IN ('queued', 'running')"
                " UNION ALL SELECT '' FROM executions WHERE holds_workspace = 1"  # its changes are being stored
                " UNION ALL SELECT '' FROM workspace_jobs WHERE state IN ('queued', 'running')"
            )
            return [row[0] for row in found]

    with contextlib.suppress(OCCError), contextlib.closing(client):
        for execution_id in filter(None, under_way()):
            client.cancel(execution_id)
        return _soon(lambda: not under_way())
    return False


def _rows(database: db.Database, table: str) -> list[dict[str, Any]]:
    with database.read() as connection:
        found = connection.execute(f"SELECT * FROM {table}")  # noqa: S608 - a name from this file
        names = [column[0] for column in found.description]
        return [dict(zip(names, row, strict=True)) for row in found]


def _delete_rows(database: db.Database, only: dict[str, str]) -> None:
    """Delete all rows but the daemon's notes; of the tables in `only`, those that its condition names."""
    with database.write() as connection:
        connection.execute("PRAGMA defer_foreign_keys = ON")
        named = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall()
        for (name,) in named:
            if name != "agent" and not name.startswith(("sqlite_", "_sqlite", "search_")):
                connection.execute(f"DELETE FROM {name} WHERE {only.get(name, '1')}")  # noqa: S608 - names from here


def _remove_files(home: Path) -> bool:
    """Remove the files of workspaces and executions, and the lines of the logs. False when one is just being made."""
    try:
        for folder in [path for path in home.iterdir() if path.is_dir() and path.name not in _KEPT_FOLDERS]:
            for path in folder.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    except OSError:
        return False
    for path in (home / "logs").iterdir():
        os.truncate(path, 0)
    return True


def _soon(condition: Callable[[], bool]) -> bool:
    deadline, pause = time.monotonic() + _SECONDS, 0.005
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
        pause = min(pause * 1.5, 0.2)
    return True
