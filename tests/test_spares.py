"""Processes of the CLI that start ahead of their execution, with a stand-in CLI that takes claims or does not."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest

from occ_app.claude import program as claude_cli
from occ_app.claude.program import waits_for_claim
from occ_app.config.config import Config
from occ_app.database import database as db
from occ_app.executions import ceilings
from occ_app.home import notes
from occ_app.queue import open_queue
from occ_app.system.process_identity import own_identity
from occ_worker.execution import command, levels
from occ_worker.execution.child import Launcher
from occ_worker.execution.kept import LEAST_MEMORY_BYTES, Kept
from occ_worker.execution.spares import Spares
from tests.conftest import Occ, command_line, is_gone, names, occ_in, output, steps, wait_until
from tests.databases import make_database
from tests.promises import kill
from tests.spare_processes import one_spare, spare_for, spares, stand_in_with_claims

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


def test_only_new_conversations_with_the_permissions_of_the_spare_have_it(tmp_path: Path) -> None:
    with started(tmp_path, OCC_PERMISSIONS="full") as occ:
        spare = spare_for(occ, "edit")
        for number, options in enumerate(({"maxTurns": 3}, {"permissions": "ask"}, {"maxBudgetUsd": 1.0})):
            assert occ.run(MARK, executionId=f"e{number}", **options)[-1].name == "complete"
        assert marks(occ) == ["e0", "e1", "e2"]
        assert list(spares(occ)) == [spare.pid]
        assert occ.run(MARK, executionId="e3", continues="e2")[-1].name == "complete"
        assert marks(occ)[3] == "e3"
        assert list(spares(occ)) == [spare.pid]
        assert occ.run(MARK, executionId="e4")[-1].name == "complete"
        assert marks(occ)[4].startswith("spare-")


def test_a_spare_has_the_permissions_of_the_newest_conversations(tmp_path: Path) -> None:
    with started(tmp_path, OCC_PERMISSIONS="full") as occ:
        first = spare_for(occ, "ask")
        assert occ.run(MARK, executionId="e0", permissions="full")[-1].name == "complete"
        assert marks(occ)[0].startswith("spare-")
        second = spare_for(occ, "ask", first.pid)
        assert occ.run(MARK, executionId="e1", permissions="edit")[-1].name == "complete"
        assert second.pid in spares(occ)
        assert occ.run(MARK, executionId="e2", permissions="edit")[-1].name == "complete"
        assert marks(occ)[1:] == ["e1", "e2"]
        third = one_spare(occ, second.pid)
        assert "--permission-prompt-tool" not in command_line(third)
        assert occ.run(MARK, executionId="e3", permissions="edit")[-1].name == "complete"
        assert marks(occ)[3].startswith("spare-")


def test_a_spare_never_has_more_than_the_ceiling_of_its_machine_or_workspace(tmp_path: Path) -> None:
    with started(tmp_path, OCC_PERMISSIONS="ask") as occ:
        asking = spare_for(occ, "ask")
        with contextlib.closing(occ.database) as database:
            ceilings.limit(database, "work", "edit")
        assert occ.run(MARK, executionId="e0")[-1].name == "complete"
        assert marks(occ) == ["e0"]
        occ.stop()
        occ.start(OCC_PERMISSIONS="edit")
        editing = one_spare(occ, asking.pid)
        assert "--permission-prompt-tool" not in command_line(editing)


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


def plain(held: Held) -> list[str]:
    """The arguments of a process for a new conversation at the permissions `edit`."""
    return command.plain_command(str(held.config.claude_bin), "edit", held.config)


def begun(held: Held, *newest: str) -> None:
    """Note that conversations began with these permissions, the newest last."""
    for permissions in newest:
        levels.note(held.database, permissions)


def level(held: Held) -> str | None:
    """The permissions of its spare, after a look at it."""
    assert held.pid is not None
    return None if held.spares._spare is None else held.spares._spare.kind.level


def note(held: Held) -> None:
    """Note the version of the CLI, as the control process does."""
    cli = claude_cli.probe(held.config)
    assert cli.path is not None
    file = claude_cli.file_identity(cli.path)
    notes.note(held.database, "claude", {"path": cli.path, "version": cli.version, "file": file})


def test_the_permissions_for_which_processes_start_ahead(held: Held) -> None:
    assert levels.wanted(held.database, "full") == ["edit", "ask"]
    assert levels.wanted(held.database, "edit") == ["edit"]
    assert levels.wanted(held.database, "plan") == ["plan"]
    begun(held, "full")
    assert levels.wanted(held.database, "full") == ["ask"]
    begun(held, "edit")
    assert levels.wanted(held.database, "full") == ["edit", "ask"]
    begun(held, "ask", "ask")
    assert levels.wanted(held.database, "full") == ["ask"]
    assert levels.wanted(held.database, "edit") == ["edit"]
    for damaged in ({"newest": ["all", 7]}, {"newest": 5}, {}):
        notes.note(held.database, "conversations", damaged)
        assert levels.wanted(held.database, "full") == ["edit", "ask"]


def test_one_conversation_of_another_kind_replaces_no_spare(held: Held) -> None:
    assert level(held) == "edit"
    begun(held, "edit", "ask")
    assert level(held) == "edit"
    begun(held, "ask")
    assert level(held) == "ask"
    begun(held, "edit")
    assert level(held) == "ask"
    begun(held, "plan")
    assert level(held) == "plan"


@pytest.mark.parametrize(
    ("newest", "expected"), [((), ["edit", "ask"]), (("full",), ["ask", "ask"]), (("edit", "ask"), ["ask", "edit"])]
)
def test_two_spares_have_both_permissions_that_are_wanted(held: Held, newest: list[str], expected: list[str]) -> None:
    """The last part is one look of each: one that ends its spare ends all other children of this process with it."""
    begun(held, *newest)
    config = replace(held.config, warm_processes=2, keep_seconds=0)
    with contextlib.closing(Launcher(config.cli_environment)) as launcher, contextlib.ExitStack() as stack:
        one, two = Held(config, launcher), Held(config, launcher)
        for each in (one, two):
            stack.enter_context(contextlib.closing(each.database))
            stack.enter_context(contextlib.closing(each.spares))
        assert [level(one), level(two)] == expected
        begun(held, "edit", "ask")
        assert [level(one), level(two)] == [expected[0], "edit" if expected[0] == "ask" else "ask"]


@dataclass(frozen=True)
class Case:
    """An execution that is claimed next, and whether the worker with a spare for `edit` leaves it to another one."""

    permissions: str
    left: bool
    workers: int = 2
    other: str | None = "ask"
    busy: bool = False
    max_turns: int | None = None


@pytest.mark.parametrize(
    "case",
    [
        Case("edit", left=False),
        Case("ask", left=True),
        Case("full", left=True),
        Case("ask", left=True, other=None),
        Case("ask", left=False, other=None, workers=1),
        Case("ask", left=False, other="edit"),
        Case("ask", left=False, busy=True),
        Case("edit", left=False, max_turns=3),
        Case("edit", left=True, workers=3, max_turns=3),
        Case("plan", left=True, workers=3),
        Case("plan", left=False, workers=2, busy=True),
        Case("edit", left=False, workers=9),
    ],
    ids=str,
)
def test_a_worker_leaves_an_execution_to_one_that_is_better_for_it(held: Held, case: Case) -> None:
    config = replace(held.config, warm_processes=2, workers=case.workers)
    rings: list[int] = []
    with contextlib.closing(Launcher(config.cli_environment)) as launcher:
        worker = Held(config, launcher)
        with contextlib.closing(worker.database), contextlib.closing(worker.spares):
            assert level(worker) == "edit"
            if case.other is not None:
                (config.run / "warm/slot-1").write_text(f"1 {case.other}")
            add_execution(worker.database, 1, "running" if case.busy else "failed", owner_pid=1)
            add_execution(worker.database, 2, permissions=case.permissions, max_turns=case.max_turns)

            def ring() -> None:  # the other worker claims it
                rings.append(1)
                with worker.database.write() as connection:
                    connection.execute("UPDATE executions SET state = 'running' WHERE number = 2")

            reader, writer = os.pipe()
            try:
                worker.spares.let_other_claim(reader, ring)
            finally:
                os.close(reader)
                os.close(writer)
    assert rings == [1] * case.left


def add_execution(database: db.Database, number: int, state: str = "queued", **columns: object) -> None:
    """Add the row of an execution, without its workspace."""
    values = {
        "number": number,
        "execution_id": f"e{number}",
        "workspace_id": "work",
        "workspace_generation": number,
        "conversation": number,
        "state": state,
        "request_hash": "",
        "prompt": "",
        "timeout_seconds": 1.0,
        "idle_timeout_seconds": 1.0,
        "created_at": "",
    } | columns
    names, places = ", ".join(values), ", ".join(f":{name}" for name in values)
    with database.write() as connection:
        connection.execute(
            f"INSERT INTO executions ({names}) VALUES ({places})",  # noqa: S608 - names from here
            values,
        )


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
    assert held.spares.take(plain(held)) is None
    wait_until(lambda: held.spares.processes == set(), "the spare to exit")


@pytest.mark.parametrize(
    ("claim", "taken"), [("", True), *((c, False) for c in ("refuse", "exit", "hang", "elsewhere"))]
)
def test_a_spare_is_used_only_once_it_is_in_the_workspace(held: Held, tmp_path: Path, claim: str, taken: bool) -> None:
    stand_in_with_claims(tmp_path, claim)
    note(held)
    held.spares.keep()
    spare = held.spares.take(plain(held))
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
    assert held.spares.take(plain(held)) is None


def test_a_stop_does_not_wait_for_a_spare(held: Held, tmp_path: Path) -> None:
    stand_in_with_claims(tmp_path, "hang")
    note(held)
    held.spares.keep()
    spare = held.spares.take(plain(held))
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
            argv = plain(held)
            spare = held.spares.take(argv)
            assert spare is not None
            try:
                assert other.pid is not None
                assert held.pid is None
            finally:
                spare.child.close(held.spares.processes | other.spares.processes)


@pytest.mark.parametrize(
    "changes",
    [{"warm_processes": 0}, {"sandbox": "bwrap"}, {"trust_workspaces": True}],
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
