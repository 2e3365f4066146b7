"""The standing promises of an agent, checked after every fault, and the load under which faults are injected."""

from __future__ import annotations

import contextlib
import random
import signal
import sqlite3
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from occ_app.client.agent_client import AgentClient
from occ_app.client.sse import StreamEvent
from occ_app.config.config import load
from occ_app.errors import OCCError, Refused, Unreachable
from occ_app.executions import events
from occ_app.executions import queries as executions
from occ_app.executions.records import Execution
from occ_app.home import daemon
from tests.conftest import Occ, command_line, is_gone, output, steps, wait_until

GRACE_SECONDS = 5.0
HEALTH_SECONDS = 10.0  # on a machine that is busy with other tests, too


def prompt(pieces: int, pause: float = 0.01, *more: dict[str, Any]) -> str:
    """A prompt that makes the stand-in CLI count: what arrives tells whether anything is lost, doubled or misplaced."""
    return steps(*more, *(step for i in range(pieces) for step in ({"say": f"{i} "}, {"sleep": pause})))


def counted(pieces: int) -> str:
    return "".join(f"{i} " for i in range(pieces))


def counting_cli(folder: Path) -> tuple[Path, Path]:
    """The stand-in CLI, noting each start; returns the program and the file of its notes."""
    starts = folder / "starts"
    starts.touch()
    program = folder / "counting-claude"
    program.write_text(f'#!/bin/sh\nFAKE_CLAUDE_STARTS={starts} exec "{folder}/fake-claude" "$@"\n')
    program.chmod(0o700)
    return program, starts


@dataclass
class Promises:
    """Checks what an agent promised of every execution it accepted; `accepted` are ids that clients know of."""

    occ: Occ
    starts: Path
    accepted: set[str] = field(default_factory=set)
    checked: Counter[str] = field(default_factory=Counter)

    def check(self) -> None:
        """Everything must be over, or get there soon. The agent must run."""
        self._healthy()
        client = self.occ.client
        wait_until(lambda: not self._unfinished(), "everything accepted to be over", 60)
        rows = {row.execution_id: row for row in self._rows()}
        assert self.accepted <= set(rows), self.accepted - set(rows)
        for execution_id, row in rows.items():
            self._one_end(client, execution_id)
            self._replays(client, row)
        started = Counter(self.starts.read_text().split())
        assert all(count == 1 for count in started.values()), started.most_common(3)
        self.checked["started at most once"] += len(started)
        wait_until(lambda: not self.strays(set(rows)), "what executions started to be gone", GRACE_SECONDS)
        self.checked["nothing left behind"] += len(rows)
        self._sound()
        self._no_secret()

    def _healthy(self) -> None:
        begun = time.monotonic()
        assert self.occ.client.health()["version"]
        assert time.monotonic() - begun < HEALTH_SECONDS
        self.checked["health in time"] += 1

    def _rows(self) -> list[Execution]:
        found, before = list[Execution](), None
        while True:
            page, before = executions.listing(self.occ.database, before=before, limit=1000)
            found += page
            if before is None:
                return found

    def _unfinished(self) -> bool:
        return any(executions.counts(self.occ.database))

    def _one_end(self, client: AgentClient, execution_id: str) -> None:
        told = list(client.events(execution_id))
        finals = [event for event in told if event.final]
        assert len(finals) == 1, (execution_id, told)
        assert told[-1] is finals[0]
        assert [event.seq for event in told] == list(range(1, len(told) + 1)), execution_id
        text = output(told)
        assert text == counted(len(text.split())), (execution_id, text[-50:])
        self.checked["one end, last"] += 1

    def _replays(self, client: AgentClient, row: Execution) -> None:
        """From the start, the middle, the end, and beyond it."""
        whole = _plain(list(client.events(row.execution_id)))
        for after in {0, 1, row.last_seq // 2, row.last_seq - 1}:
            assert _plain(list(client.events(row.execution_id, after=after))) == whole[after:]
        for after in (row.last_seq, row.last_seq + 1000):
            assert _plain(list(client.events(row.execution_id, after=after))) == whole[-1:]
        stored = [(event.seq, event.name) for event in events.after(self.occ.database, row.number, 0, 1_000_000)]
        assert stored == [(seq, name) for seq, name, _ in whole]
        self.checked["replays alike"] += 1

    def strays(self, ids: set[str]) -> list[int]:
        """Processes that carry the mark of an execution of ours; other agents of this machine have the same ids."""
        marks = {f"OCC_EXECUTION_ID={execution_id}".encode() for execution_id in ids}
        home = f"HOME={self.occ.environment['HOME']}".encode()
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(OSError, psutil.Error):
                environ = set(Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0"))
                if environ & marks and home in environ and not is_gone(process):
                    found.append(process.pid)
        return found

    def _sound(self) -> None:
        with contextlib.closing(sqlite3.connect(self.occ.home / "occ.db")) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        self.checked["database sound"] += 1

    def _no_secret(self) -> None:
        assert self.occ.token not in self.occ.logs()
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                assert self.occ.token not in " ".join(command_line(process))
        self.checked["no secret shown"] += 1


def _plain(told: list[StreamEvent]) -> list[tuple[int, str, str]]:
    return [(event.seq, event.name, str(sorted(event.data.items(), key=str))) for event in told]


VICTIMS = (
    "a worker",
    "the executions consumer",
    "its whole group",
    "web",
    "control",
    "the supervisor",
    "everything",
)


def kill(occ: Occ, victim: str) -> bool:
    """SIGKILL a part of the daemon. False when it was not there to be killed just then."""
    found = daemon.find(load({"OCC_HOME": str(occ.home)}))
    if found is None:
        return False
    try:
        pids = _pids(psutil.Process(found.pid), victim)
    except psutil.NoSuchProcess:  # it was just going by itself
        return False
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
            psutil.Process(pid).send_signal(signal.SIGKILL)
    return bool(pids)


def _pids(supervisor: psutil.Process, victim: str) -> list[int]:
    parts = {" ".join(command_line(part)).partition(" -m ")[2]: part for part in supervisor.children()}
    web, consumer, control = (
        next((part for name, part in parts.items() if name.startswith(start)), None)
        for start in ("occ_app.wsgi", "occ_worker.agent executions", "occ_worker.agent control")
    )
    if victim == "everything":
        # The supervisor first, so that it restarts nothing. The CLIs die with their workers; what tools left, does not.
        return [supervisor.pid, *(process.pid for process in supervisor.children(recursive=True) if _is_occ(process))]
    if victim == "the supervisor":
        return [supervisor.pid]
    part = {"web": web, "control": control}.get(victim, consumer)
    if part is None:
        return []
    children = [child.pid for child in part.children()]
    if victim == "a worker":
        return [random.choice(children)] if children else []  # noqa: S311 - a test's choice
    return [part.pid, *children] if victim == "its whole group" else [part.pid]


def _is_occ(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):  # gone, or a zombie
        return "-m" in command_line(process)
    return False


@dataclass
class Load:
    """Clients that run counting executions one after the other and note what they were told."""

    occ: Occ
    promises: Promises
    pieces: int = 20
    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    more: tuple[dict[str, Any], ...] = ()

    def run(self, clients: int, until: Callable[[], bool]) -> None:
        """Keep `clients` of them busy until told; returns when all are done."""
        threads = [threading.Thread(target=self._client, args=(number, until)) for number in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _client(self, number: int, until: Callable[[], bool]) -> None:
        client = AgentClient(self.occ.url, self.occ.token)
        try:
            while not until():
                self._one(client, f"w{number % 4}")
        except Exception as error:
            self.faults.append(f"{type(error).__name__}: {error}")
        finally:
            client.close()

    def _one(self, client: AgentClient, workspace: str) -> None:
        execution_id = f"load-{uuid.uuid4().hex[:12]}"
        told = list(client.execute(workspace, prompt(self.pieces, 0.01, *self.more), executionId=execution_id))
        self.promises.accepted.add(execution_id)
        final = told[-1]
        self.outcomes[final.data.get("code", "succeeded")] += 1
        if [event.seq for event in told] != list(range(1, len(told) + 1)):
            self.faults.append(f"{execution_id}: {[event.seq for event in told]}")
        if final.name == "complete" and output(told) != counted(self.pieces):
            self.faults.append(f"{execution_id}: {output(told)[-80:]}")


@contextlib.contextmanager
def load_for(load: Load, clients: int, seconds: float) -> Iterator[None]:
    """Load in the background around the block, for at least so long."""
    deadline = time.monotonic() + seconds
    done = threading.Event()
    thread = threading.Thread(target=load.run, args=(clients, lambda: done.is_set() and time.monotonic() > deadline))
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    assert not load.faults, load.faults[:3]


def serves(occ: Occ) -> bool:
    """Whether the agent answers right now."""
    client = AgentClient(occ.url, occ.token)
    try:
        client.health()
    except (Unreachable, Refused, OCCError):
        return False
    else:
        return True
    finally:
        client.close()
