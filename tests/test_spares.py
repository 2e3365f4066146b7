"""Processes of the CLI that start ahead of their execution, with a stand-in CLI that takes claims or does not."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from occ_app.claude import program as claude_cli
from occ_app.claude.program import waits_for_claim
from occ_app.config.config import Config
from occ_app.database import database as db
from occ_app.home import notes
from occ_app.queue import open_queue
from occ_app.system.process_identity import own_identity
from occ_worker.execution import command
from occ_worker.execution.child import Launcher
from occ_worker.execution.kept import LEAST_MEMORY_BYTES, Kept
from occ_worker.execution.spares import Spares
from tests.conftest import Occ, is_gone, names, occ_in, output, steps, wait_until
from tests.databases import make_database
from tests.promises import kill
from tests.spare_processes import one_spare, spares, stand_in_with_claims

MARK = steps({"sh": "echo $OCC_EXECUTION_ID >> marks"}, {"say": "done"})


@contextlib.contextmanager
def started(folder: Path, claim: str = "", **settings: str) -> Iterator[Occ]:
    """A running agent with a workspace, whose CLI can start ahead."""
    with occ_in(folder, OCC_WORKERS="1", OCC_WARM_PROCESSES="1", **settings) as occ:
        occ.environment["OCC_CLAUDE_BIN"] = str(stand_in_with_claims(folder, claim))
        occ.start()
        occ.workspace()
        yield occ


def marks(occ: Occ) -> list[str]:
    """The marks that the processes of the executions had, oldest first."""
    return (occ.home / "workspaces/work/marks").read_text().split()


def test_a_spare_process_serves_one_execution_and_another_follows(tmp_path: Path) -> None:
    with started(tmp_path) as occ:
        first = one_spare(occ)
        events = occ.run(MARK, executionId="e1")
        assert (names(events)[-1], output(events)) == ("complete", "done")
        one_spare(occ, first.pid)
        occ.run(MARK, executionId="e2")
        assert len(set(marks(occ))) == 2
        assert all(mark.startswith("spare-") for mark in marks(occ))
        with contextlib.closing(sqlite3.connect(occ.home / "occ.db")) as connection:
            assert connection.execute("SELECT count(*) FROM process_marks").fetchone() == (0,)
        last = one_spare(occ, first.pid)
        occ.stop()
        assert is_gone(last)


def test_an_execution_whose_spare_fails_runs_once_in_another_process(tmp_path: Path) -> None:
    with started(tmp_path, "refuse") as occ:
        spare = one_spare(occ)
        events = occ.run(MARK, executionId="e1")
        assert names(events).count("started") == 1
        assert names(events)[-1] == "complete"
        assert marks(occ) == ["e1"]
        assert is_gone(spare)
        assert occ.run(MARK, executionId="e2")[-1].name == "complete"  # after a failure there is no spare for a while
        assert marks(occ) == ["e1", "e2"]


def test_an_execution_whose_spare_was_stopped_runs_in_another_process(tmp_path: Path) -> None:
    with started(tmp_path) as occ:
        spare = one_spare(occ)
        spare.send_signal(signal.SIGSTOP)
        assert occ.run(MARK, executionId="e1")[-1].name == "complete"
        assert marks(occ) == ["e1"]
        assert is_gone(spare)


def test_only_new_conversations_at_the_default_permissions_have_a_spare(tmp_path: Path) -> None:
    with started(tmp_path, OCC_PERMISSIONS="full") as occ:
        spare = one_spare(occ)
        for number, options in enumerate(({"maxTurns": 3}, {"permissions": "ask"}, {"maxBudgetUsd": 1.0})):
            assert occ.run(MARK, executionId=f"e{number}", **options)[-1].name == "complete"
        assert marks(occ) == ["e0", "e1", "e2"]
        assert list(spares(occ)) == [spare.pid]
        assert occ.run(MARK, executionId="e3", continues="e2")[-1].name == "complete"
        assert marks(occ)[3] == "e3"
        assert list(spares(occ)) == [spare.pid]
        assert occ.run(MARK, executionId="e4")[-1].name == "complete"
        assert marks(occ)[4].startswith("spare-")


def test_a_spare_process_dies_with_the_daemon(tmp_path: Path) -> None:
    former: list[int] = []
    with started(tmp_path) as occ:
        for victim in ("a worker", "its whole group", "the supervisor"):
            spare = one_spare(occ, *former)
            wait_until(lambda victim=victim: kill(occ, victim), "it to be killed")
            wait_until(lambda spare=spare: is_gone(spare), "the spare to end")
            former.append(spare.pid)
        wait_until(lambda: not occ.processes(), "nothing of the daemon to be left")


def test_strays_of_a_spare_process_are_ended_by_the_next_start(tmp_path: Path) -> None:
    with started(tmp_path) as occ:
        one_spare(occ)
        body = steps({"spawn": "daemon"}, {"say": "on"}, {"sleep": 600})
        occ.under_way(body, "e1")
        assert wait_until(lambda: kill(occ, "everything"), "everything to be killed")
        wait_until(lambda: not occ.processes(), "nothing of the daemon to be left")
        stray = psutil.Process(int((occ.home / "workspaces/work/spawned.pid").read_text()))
        assert Path(f"/proc/{stray.pid}/environ").read_bytes().count(b"OCC_EXECUTION_ID=spare-") == 1
        occ.start()
        assert list(occ.client.events("e1"))[-1].data["code"] == "WORKER_LOST"
        assert is_gone(stray)


class Held:
    """The spares of a worker, which is the calling process, in a home without a daemon."""

    def __init__(self, config: Config, launcher: Launcher) -> None:
        self.memory = LEAST_MEMORY_BYTES
        self.stopping = False
        self.config = config
        self.database = db.Database(config.database)
        kept = Kept(config, self.database, own_identity(), lambda: None, lambda: self.stopping, lambda: self.memory)
        self.spares = Spares(
            config,
            self.database,
            launcher,
            command.environment(config),
            kept,
            lambda: self.stopping,
            lambda: self.memory,
        )

    @property
    def pid(self) -> int | None:
        """The pid of its spare, after a look at it."""
        self.spares.keep()
        wait_until(lambda: not any(spare.alive for spare in self.spares._leaving), "the former spare to exit")
        return next(iter(self.spares.processes), None)


@pytest.fixture
def held(tmp_path: Path, fake_claude: Path) -> Iterator[Held]:
    assert fake_claude.exists()
    program = stand_in_with_claims(tmp_path)
    environment = {"PATH": os.defpath, "HOME": str(tmp_path)}
    config = Config(home=tmp_path / "home", claude_bin=str(program), cli_environment=environment, warm_processes=1)
    config.make_folders()
    make_database(config.database)
    with contextlib.closing(Launcher(environment)) as launcher:
        held = Held(config, launcher)
        with contextlib.closing(held.database), contextlib.closing(held.spares):
            note(held)
            yield held


def note(held: Held) -> None:
    """Note the version of the CLI, as the control process does."""
    cli = claude_cli.probe(held.config)
    assert cli.path is not None
    file = claude_cli.file_identity(cli.path)
    notes.note(held.database, "claude", {"path": cli.path, "version": cli.version, "file": file})


def test_a_spare_that_read_other_files_of_the_operator_is_replaced(held: Held, tmp_path: Path) -> None:
    first = held.pid
    assert first is not None
    assert held.pid == first
    (tmp_path / ".claude").mkdir()
    seen = {first}
    for name in ("settings.json", ".credentials.json", "CLAUDE.md", "agents/a.md"):
        (tmp_path / ".claude" / name).parent.mkdir(exist_ok=True)
        (tmp_path / ".claude" / name).write_text("{}")
        pid = held.pid
        assert pid is not None
        assert pid not in seen
        seen.add(pid)


def test_a_change_is_seen_when_an_execution_takes_the_spare(held: Held, tmp_path: Path) -> None:
    assert held.pid is not None
    (tmp_path / ".claude").mkdir()
    (tmp_path / ".claude/settings.json").write_text("{}")
    assert held.spares.take(command.default_command(str(held.config.claude_bin), held.config)) is None
    wait_until(lambda: held.spares.processes == set(), "the spare to exit")


@pytest.mark.parametrize(
    ("claim", "taken"), [("", True), *((c, False) for c in ("refuse", "exit", "hang", "elsewhere"))]
)
def test_a_spare_is_used_only_once_it_is_in_the_workspace(held: Held, tmp_path: Path, claim: str, taken: bool) -> None:
    stand_in_with_claims(tmp_path, claim)
    note(held)
    held.spares.keep()
    spare = held.spares.take(command.default_command(str(held.config.claude_bin), held.config))
    assert spare is not None
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    reader, writer = os.pipe()
    try:
        spare.claim(workspace, "memory " * 100_000, None)
        assert spare.confirmed(reader) is (claim == "")
    finally:
        os.close(reader)
        os.close(writer)
        held.spares.reject(spare, "the test is over")
    assert spare.alive is False
    assert held.pid is None  # after a failure there is none for a while


def test_a_spare_that_was_killed_is_not_taken(held: Held) -> None:
    pid = held.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: held.spares.processes == set(), "it to die")
    assert held.spares.take(command.default_command(str(held.config.claude_bin), held.config)) is None


def test_a_stop_does_not_wait_for_a_spare(held: Held, tmp_path: Path) -> None:
    stand_in_with_claims(tmp_path, "hang")
    note(held)
    held.spares.keep()
    spare = held.spares.take(command.default_command(str(held.config.claude_bin), held.config))
    assert spare is not None
    reader, writer = os.pipe()
    try:
        os.write(writer, b"1")
        spare.claim(tmp_path, "", "a-model")
        assert spare.confirmed(reader) is False
    finally:
        os.close(reader)
        os.close(writer)
        held.spares.reject(spare, "the test is over")


def test_a_spare_of_another_program_ends_and_one_of_its_version_starts(held: Held) -> None:
    first = held.pid
    program = Path(str(held.config.claude_bin))
    program.write_text(program.read_text() + "\n")
    assert held.pid is None  # the version of this file is not known yet
    note(held)
    assert held.pid not in (None, first)


def test_there_is_no_spare_with_little_memory_or_while_the_daemon_stops(held: Held) -> None:
    assert held.pid is not None
    held.memory = LEAST_MEMORY_BYTES - 1
    assert held.pid is None
    held.memory = LEAST_MEMORY_BYTES
    assert held.pid is not None
    held.memory -= 1
    held.spares.spare_memory()  # as during an execution
    wait_until(lambda: held.spares.processes == set(), "the spare to exit")
    held.memory += 1
    assert held.pid is not None
    held.stopping = True
    assert held.pid is None


def test_the_workers_share_the_places_for_spares(held: Held) -> None:
    with contextlib.closing(Launcher(held.config.cli_environment)) as launcher:
        other = Held(held.config, launcher)
        with contextlib.closing(other.database), contextlib.closing(other.spares):
            assert held.pid is not None
            assert other.spares.keep() is True  # those with a spare are woken first
            assert other.pid is None
            argv = command.default_command(str(held.config.claude_bin), held.config)
            spare = held.spares.take(argv)
            assert spare is not None
            try:
                assert other.pid is not None
                assert held.pid is None
            finally:
                spare.child.close(held.spares.processes | other.spares.processes)


@pytest.mark.parametrize(
    "changes",
    [{"warm_processes": 0}, {"sandbox": "bwrap"}, {"trust_workspaces": True}, {"permissions": "plan"}],
    ids=str,
)
def test_settings_under_which_there_is_no_spare(held: Held, changes: dict[str, object]) -> None:
    config = replace(held.config, **changes)  # type: ignore[arg-type]  # fields of several types
    with contextlib.closing(Launcher(config.cli_environment)) as launcher:
        other = Held(config, launcher)
        with contextlib.closing(other.database), contextlib.closing(other.spares):
            assert other.pid is None


def test_the_cli_that_exits_at_once_is_not_started_again_and_again(held: Held, tmp_path: Path) -> None:
    program, starts = Path(str(held.config.claude_bin)), tmp_path / "starts"
    program.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo 2.1.332 && exit\necho started >> {starts}\nexit 1\n')
    note(held)
    held.spares.keep()
    wait_until(lambda: held.spares.processes == set(), "it to exit")
    assert held.pid is None
    assert held.pid is None
    assert starts.read_text() == "started\n"


def test_the_versions_that_can_start_ahead() -> None:
    versions = ("2.1.197", "2.1.329", "2.1.330", "2.1.332", "2.2.0", "3.0.0", "9.9.9", None)
    assert [waits_for_claim(version) for version in versions] == [False, False, True, True, True, False, False, False]


def test_a_worker_with_a_spare_is_woken_before_one_without(tmp_path: Path) -> None:
    """Those that wait are woken in the order in which they registered, and one without a spare registers again."""
    config = Config(home=tmp_path)
    config.make_folders()
    queue = open_queue(config, "executions")
    queue.storage.idle = lambda: threading.current_thread().name == "without"
    takers: list[str] = []
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            if queue.storage.dequeue() is not None:
                takers.append(threading.current_thread().name)
        queue.storage.close()  # the connection of this thread

    def took() -> bool:
        before = len(takers)
        queue.storage.enqueue(b"{}")
        wait_until(lambda: len(takers) > before, "the job to be taken")
        return takers[-1] == "with"

    threads = [threading.Thread(target=work, name=name) for name in ("without", "with")]
    try:
        threads[0].start()
        assert not took()
        threads[1].start()
        wait_until(took, "the one with a spare to be woken first")
    finally:
        stop.set()
        queue.storage.ring(len(threads))
        for thread in threads:
            thread.join()
        queue.storage.close()
