"""Processes of the CLI that are kept for the next turn, with a stand-in CLI that takes several prompts."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from occ_app.claude import operator_files, transcript_ends
from occ_app.claude import program as claude_cli
from occ_app.client.sse import StreamEvent
from occ_app.config.config import Config
from occ_app.database import database as db
from occ_app.executions import kept as rows
from occ_app.executions.kept import KeptProcess
from occ_app.home import notes
from occ_app.queue import open_queue
from occ_app.system.process_identity import ProcessIdentity, boot_id, own_identity, process_start
from occ_worker.execution.child import Child
from occ_worker.execution.claims import OLDEST_SECONDS, Waiting
from occ_worker.execution.kept import LEAST_MEMORY_BYTES, Kept, Terms, _terminate
from tests.conftest import Occ, is_gone, names, occ_in, output, steps, wait_until
from tests.databases import make_database
from tests.promises import kill
from tests.spare_processes import one_spare, stand_in_with_claims

TURN = steps({"sh": "echo $OCC_EXECUTION_ID >> marks"}, {"say": "done"})


@dataclass
class Talk:
    """A conversation in its own workspace, of an agent whose CLI does as the file `following` says."""

    occ: Occ
    workspace: str
    following: Path
    turns: int = 0

    @property
    def folder(self) -> Path:
        return self.occ.home / "workspaces" / self.workspace

    @property
    def marks(self) -> list[str]:
        """The marks that the processes of the turns had, oldest first."""
        return (self.folder / "marks").read_text().split()

    @property
    def last(self) -> str:
        """The id of the last turn."""
        return f"{self.workspace}-{self.turns}"

    def begin(self, prompt: str = TURN, **options: Any) -> Iterator[StreamEvent]:
        """Send the next turn."""
        former = {"continues": self.last} if self.turns else {}
        self.turns += 1
        return self.occ.client.execute(self.workspace, prompt, executionId=self.last, **former, **options)

    def turn(self, prompt: str = TURN, **options: Any) -> list[StreamEvent]:
        """Run the next turn to its end."""
        return list(self.begin(prompt, **options))

    def first(self, **options: Any) -> psutil.Process:
        """Run a first turn, and return its process, which is kept."""
        assert self.turn(**options)[-1].name == "complete"
        (process,) = kept(self.occ)
        return process

    def await_changes(self) -> Any:
        """Wait until the changes of the last turn are recorded: its workspace is not busy any more then."""
        return wait_until(lambda: self.occ.client.execution(self.last).get("changes"), "its changes")

    @property
    def keeps(self) -> bool:
        """Whether a process is kept for it, or is to exit."""
        sql = "SELECT 1 FROM kept_processes JOIN workspaces USING (generation) WHERE workspace_id = ?"
        return bool(self.query(sql, (self.workspace,)))

    def query(self, sql: str, values: Sequence[object] = ()) -> list[Any]:
        with contextlib.closing(sqlite3.connect(self.occ.home / "occ.db")) as connection, connection:
            return connection.execute(sql, values).fetchall()


@contextlib.contextmanager
def started(folder: Path, **settings: str) -> Iterator[Talk]:
    """A running agent with one worker and a workspace, which may keep one process beside a spare one."""
    settings = {"OCC_WORKERS": "1", "OCC_WARM_PROCESSES": "2", "OCC_PERMISSIONS": "full"} | settings
    with occ_in(folder, **settings) as occ:
        following = folder / "following"
        occ.environment["OCC_CLAUDE_BIN"] = str(stand_in_with_claims(folder, "", following))
        occ.start()
        occ.workspace()
        one_spare(occ)  # from then on the version of the CLI is known
        yield Talk(occ, "work", following)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Talk]:
    with started(tmp_path_factory.mktemp("kept")) as talk:
        yield talk


@pytest.fixture
def talk(shared: Talk) -> Iterator[Talk]:
    """A new conversation in a new workspace; the operator's files, settings and rules are as before afterwards."""
    occ = shared.occ
    one_spare(occ)  # from then on the version of the CLI is known
    shared.turns += 1
    talk = Talk(occ, occ.workspace(f"work-{shared.turns}"), shared.following)
    try:
        yield talk
    finally:
        shared.following.write_text("")
        shutil.rmtree(Path(occ.environment["HOME"], ".claude"), ignore_errors=True)
        talk.query("DELETE FROM rules")
        for client in occ.clients:
            client.close()
        occ.clients.clear()


def kept(occ: Occ) -> list[psutil.Process]:
    """The processes that are kept, as the rows have them."""
    with contextlib.closing(sqlite3.connect(occ.home / "occ.db")) as connection:
        pids = [pid for (pid,) in connection.execute("SELECT pid FROM kept_processes WHERE revoked = 0")]
    found = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):  # it has just exited
            found.append(psutil.Process(pid))
    return found


def test_the_next_turns_have_the_process_of_the_first_one(talk: Talk) -> None:
    process = talk.first()
    for _ in range(2):
        events = talk.turn()
        assert (names(events), output(events)) == (["queued", "started", "output", "complete"], "done")
        assert kept(talk.occ) == [process]
    assert len(set(talk.marks)) == 1
    assert len(talk.marks) == 3
    assert talk.query("SELECT count(*) FROM process_marks") == [(0,)]


def test_a_follow_up_that_waits_in_the_queue_has_the_process_of_the_turn_before(talk: Talk) -> None:
    stream = talk.begin(steps({"say": "on"}, {"wait": "go"}, {"sh": "echo $OCC_EXECUTION_ID >> marks"}))
    assert any(event.name == "output" for event in stream)
    following = talk.begin()
    assert next(following).name == "queued"
    (talk.folder / "go").touch()
    assert list(stream)[-1].name == "complete"
    assert list(following)[-1].name == "complete"
    assert len(set(talk.marks)) == 1


def test_each_turn_has_its_own_cost_and_changes(talk: Talk) -> None:
    before = talk.occ.client.usage()["total"]["costUsd"]
    for number in (1, 2):
        final = talk.turn(steps({"write": f"made-{number}", "text": "x"}, {"say": "hi"}))[-1].data
        assert (final["costUsd"], final["numTurns"], final["exitCode"]) == (0.25, 1, 0)
        assert talk.await_changes()["files"] == 1
    assert talk.occ.client.usage()["total"]["costUsd"] == before + 0.5


@pytest.mark.parametrize("then", ["edit", "full"])
def test_the_process_of_a_turn_serves_no_turn_with_other_permissions(talk: Talk, then: str) -> None:
    """Those of `ask` and `full` have the same arguments."""
    process = talk.first(permissions="ask")
    assert talk.turn(look_for(process), permissions=then)[-1].final
    assert is_gone(process)
    assert not (talk.folder / "alive").exists()
    (process,) = kept(talk.occ)
    assert talk.turn(look_for(process), permissions="ask")[-1].final
    assert is_gone(process)
    assert not (talk.folder / "alive").exists()


def look_for(process: psutil.Process) -> str:
    """The prompt of a turn that makes a file if a process lives."""
    return steps({"sh": f"kill -0 {process.pid} && touch alive || true"}, {"say": "x"})


@pytest.mark.parametrize(
    "options",
    [
        {"maxTurns": 3},
        {"maxBudgetUsd": 1.0},
        {"permissions": "ask"},
        {"permissions": "plan"},
        {"model": "another"},
        {"fork": True},
        {"rewindTo": True},
    ],
    ids=str,
)
def test_the_process_has_ended_before_a_turn_that_it_cannot_serve(talk: Talk, options: dict[str, object]) -> None:
    process = talk.first()
    options = {"rewindTo": talk.last} if "rewindTo" in options else options
    assert talk.turn(look_for(process), **options)[-1].final
    wait_until(lambda: is_gone(process), "the process to be ended")  # after a turn that could not begin
    assert not (talk.folder / "alive").exists()


def change_memory(talk: Talk) -> None:
    (talk.folder / "CLAUDE.md").write_text("Speak like a pirate.")


def change_settings(talk: Talk) -> None:
    write_settings(talk, {})


def write_settings(talk: Talk, settings: dict[str, object]) -> None:
    folder = Path(talk.occ.environment["HOME"], ".claude")
    folder.mkdir()
    (folder / "settings.json").write_text(json.dumps(settings))


def change_login(talk: Talk) -> None:
    folder = Path(talk.occ.environment["HOME"], ".claude")
    folder.mkdir()
    (folder / ".credentials.json").write_text("{}")


def change_program(talk: Talk) -> None:
    program = Path(talk.occ.environment["OCC_CLAUDE_BIN"])
    edited = program.with_name(
        "edited-claude"
    )  # a worker may start the program just now: it finds one whole or another
    edited.write_text(program.read_text() + "\n")
    edited.chmod(0o700)
    edited.replace(program)
    with contextlib.closing(talk.occ.database) as database:  # as the daemon does after a while
        file = claude_cli.file_identity(str(program))
        notes.note(database, "claude", {"path": str(program), "version": "2.1.332", "file": file})


def change_rules(talk: Talk) -> None:
    talk.query(
        "INSERT INTO rules (rule_id, scope, decision, tool, actor, created_at)"
        " VALUES ('r', 'agent', 'deny', 'Bash', '', '')"
    )


def change_ceiling(talk: Talk) -> None:
    talk.query("UPDATE workspaces SET permissions = 'plan' WHERE workspace_id = ?", (talk.workspace,))


def restore(talk: Talk) -> None:
    talk.await_changes()
    talk.occ.command("restore", talk.last)


@pytest.mark.parametrize(
    "change",
    [change_memory, change_settings, change_login, change_program, change_rules, change_ceiling, restore],
)
def test_a_change_ends_the_process_before_the_next_turn(talk: Talk, change: Callable[[Talk], None]) -> None:
    process = talk.first()
    change(talk)
    assert talk.turn(look_for(process))[-1].name == "complete"
    assert is_gone(process)
    assert not (talk.folder / "alive").exists()


def test_a_new_server_ends_the_process_before_the_next_turn(talk: Talk) -> None:
    process = talk.first(permissions="full")
    talk.occ.command("mcp-servers", "add", "one", "--", "/bin/true")
    try:
        assert talk.turn(look_for(process), permissions="full")[-1].name == "complete"
    finally:
        talk.occ.command("mcp-servers", "remove", "one")
    assert is_gone(process)
    assert not (talk.folder / "alive").exists()


@pytest.mark.parametrize("replaced", [True, False])
def test_a_process_ends_with_its_workspace(talk: Talk, replaced: bool) -> None:
    process = talk.first()
    talk.await_changes()
    if replaced:
        talk.occ.workspace(talk.workspace, {"other.txt": "x"})
    else:
        talk.occ.client.delete_workspace(talk.workspace)
    wait_until(lambda: is_gone(process), "the process to exit")


@pytest.mark.parametrize(
    "last",
    [
        {"result": {"is_error": True, "subtype": "error_during_execution"}},
        {"tool": "Bash", "input": {"command": "cd sub"}, "result": ""},
        {"tool": "Agent", "input": {}, "result": ""},
        {"spawn": "child"},
        {"spawn": "daemon"},
        {"spawn": "bare"},
    ],
    ids=str,
)
def test_a_turn_that_failed_or_left_something_keeps_no_process(talk: Talk, last: dict[str, object]) -> None:
    assert talk.turn(steps({"say": "x"}, last))[-1].final
    assert not talk.keeps
    spawned = talk.folder / "spawned.pid"
    if spawned.exists():
        with contextlib.suppress(psutil.NoSuchProcess):
            assert is_gone(psutil.Process(int(spawned.read_text())))


def test_a_cancelled_turn_and_one_over_its_time_keep_no_process(talk: Talk) -> None:
    long = steps({"say": "on"}, {"sleep": 600})
    process = talk.first()
    stream = talk.begin(long)
    assert any(event.name == "output" for event in stream)
    talk.occ.client.cancel(talk.last)
    assert list(stream)[-1].data["code"] == "EXECUTION_CANCELLED"
    assert is_gone(process)
    assert talk.turn(long, timeoutSeconds=1)[-1].data["code"] == "EXECUTION_TIMEOUT"
    assert kept(talk.occ) == []


def test_the_process_of_the_newest_turn_is_kept(talk: Talk) -> None:
    first = talk.first()
    other = Talk(talk.occ, talk.occ.workspace(f"other-{talk.workspace}"), talk.following)
    second = other.first()
    wait_until(lambda: is_gone(first), "the first process to exit")
    assert kept(talk.occ) == [second]


@pytest.mark.parametrize("following", ["refuse", "exit", "hang"])
def test_a_turn_whose_process_does_not_answer_runs_once_in_another(talk: Talk, following: str) -> None:
    process = talk.first()
    talk.following.write_text(following)
    events = talk.turn()
    assert (names(events).count("started"), names(events)[-1]) == (1, "complete")
    assert talk.marks[1:] == [talk.last]
    assert is_gone(process)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_turn_whose_process_was_killed_or_stopped_runs_once(talk: Talk, number: signal.Signals) -> None:
    process = talk.first()
    process.send_signal(number)
    assert talk.turn()[-1].name == "complete"
    assert talk.marks[1:] == [talk.last]
    assert is_gone(process)


def test_hooks_in_the_settings_keep_no_process(talk: Talk) -> None:
    write_settings(talk, {"hooks": {"SessionEnd": [{"hooks": [{"type": "command", "command": "true"}]}]}})
    assert talk.turn()[-1].name == "complete"
    assert not talk.keeps
    assert os.listdir(talk.occ.home / "run/memory") == []


def test_a_process_exits_after_its_time_and_a_stop_ends_one(tmp_path: Path) -> None:
    with started(tmp_path, OCC_KEEP_SECONDS="1") as talk:
        assert talk.turn()[-1].name == "complete"
        wait_until(lambda: kept(talk.occ) == [], "the process to be given up")
        assert talk.turn()[-1].name == "complete"
        assert len(set(talk.marks)) == 2
    other = tmp_path / "other"
    other.mkdir()
    with started(other) as talk:
        process = talk.first()
        talk.occ.stop()
        assert is_gone(process)


def test_a_kept_process_dies_with_the_daemon(tmp_path: Path) -> None:
    with started(tmp_path) as talk:
        for victim in ("a worker", "its whole group", "the supervisor"):
            assert talk.turn()[-1].name == "complete"
            (process,) = kept(talk.occ)
            wait_until(lambda victim=victim: kill(talk.occ, victim), "it to be killed")
            wait_until(lambda process=process: is_gone(process), "the process to end")
        wait_until(lambda: not talk.occ.processes(), "nothing of the daemon to be left")


def test_strays_of_a_kept_process_are_ended_by_the_next_start(tmp_path: Path) -> None:
    with started(tmp_path) as talk:
        talk.first()
        following = talk.begin(steps({"spawn": "daemon"}, {"write": "on", "text": ""}, {"sleep": 600}))
        assert next(following).name == "queued"
        wait_until((talk.folder / "on").exists, "the turn to be under way")
        assert wait_until(lambda: kill(talk.occ, "everything"), "everything to be killed")
        wait_until(lambda: not talk.occ.processes(), "nothing of the daemon to be left")
        stray = psutil.Process(int((talk.folder / "spawned.pid").read_text()))
        assert talk.marks[0].encode() in Path(f"/proc/{stray.pid}/environ").read_bytes()
        talk.occ.start()
        assert list(talk.occ.client.events(talk.last))[-1].data["code"] == "WORKER_LOST"
        assert is_gone(stray)


@contextlib.contextmanager
def sleeping() -> Iterator[tuple[subprocess.Popen[bytes], ProcessIdentity]]:
    with subprocess.Popen(["sleep", "600"]) as process:
        try:
            start = process_start(process.pid)
            assert start is not None
            yield process, ProcessIdentity(boot_id(), process.pid, start)
        finally:
            process.kill()


def test_a_process_of_another_worker_has_ended_before_the_next_turn(talk: Talk) -> None:
    with sleeping() as (other, identity), sleeping() as (_, owner):
        process = talk.first()
        talk.query(
            "UPDATE kept_processes SET mark = 'x', pid = ?, start = ?, owner_pid = ?, owner_start = ?"
            " WHERE revoked = 0",
            (identity.pid, identity.start, owner.pid, owner.start),
        )
        assert talk.turn()[-1].name == "complete"  # its worker waits for the other one, for a moment
        assert other.wait() == -signal.SIGTERM
        assert is_gone(process)
        assert len(set(talk.marks)) == 2


def test_two_workers_and_many_turns(tmp_path: Path) -> None:
    """Whichever worker is woken, each turn runs once, and at most one process is kept."""
    with started(tmp_path, OCC_WORKERS="2") as talk:
        other = Talk(talk.occ, talk.occ.workspace("other"), talk.following)
        for each in (talk, other, talk, other, talk, talk, other, talk):
            assert each.turn()[-1].name == "complete"
            assert len(kept(talk.occ)) <= 1
        assert (len(talk.marks), len(other.marks)) == (5, 3)


def test_a_process_is_ended_only_if_its_start_is_the_known_one() -> None:
    with sleeping() as (process, identity):
        _terminate(ProcessIdentity(identity.boot_id, identity.pid, identity.start - 1))
        assert process.poll() is None
        _terminate(identity)
        assert process.wait() == -signal.SIGTERM


def test_a_row_is_taken_once_and_the_oldest_are_revoked(tmp_path: Path) -> None:
    make_database(tmp_path / "occ.db")
    with contextlib.closing(db.Database(tmp_path / "occ.db")) as database:
        own = own_identity()
        for number in (1, 2, 3):
            rows.add(database, KeptProcess(number, f"s{number}", f"m{number}", own, own), 2)
        assert rows.living(database) == 2
        taken = rows.remove(database, 1)
        assert taken is not None
        assert taken.revoked
        assert rows.remove(database, 1) is None
        dead = ProcessIdentity(own.boot_id, own.pid, own.start - 1)
        rows.add(database, KeptProcess(4, "s4", "m4", dead, dead), 9)
        assert rows.living(database) == 2
        rows.add(database, KeptProcess(5, "s5", "m5", own, own), 9)
        assert rows.remove(database, 4) is None


def test_a_transcript_that_has_turns_of_another_process_has_grown(tmp_path: Path) -> None:
    session = "508503ce-706b-4630-94da-e74af1f69814"
    folder = tmp_path / "projects" / "-ws"
    folder.mkdir(parents=True)
    path = folder / f"{session}.jsonl"
    path.write_text('{"type":"user"}\n')
    end = transcript_ends.end(tmp_path, Path("/ws"), session)
    assert end is not None
    assert not transcript_ends.has_grown(end)
    with path.open("a") as file:
        file.write('{"type":"last-prompt"}\n')
    assert not transcript_ends.has_grown(end)
    with path.open("a") as file:
        file.write('{"parentUuid":null,"type":"user"}\n')
    assert transcript_ends.has_grown(end)
    path.unlink()
    assert transcript_ends.has_grown(end)
    assert transcript_ends.end(tmp_path, Path("/ws"), "../" + session[3:]) is None


@pytest.mark.parametrize(
    ("text", "more"),
    [
        ("{}", False),
        ('{"hooks": {}}', False),
        ('{"hooks": {"SessionEnd": []}}', True),
        ('{"enabledPlugins": {"a": true}}', True),
        ("{", True),
        ("[]", True),
    ],
)
def test_hooks_and_plugins_of_the_operator_need_a_new_process(tmp_path: Path, text: str, more: bool) -> None:
    (tmp_path / ".claude").mkdir()
    (tmp_path / ".claude/settings.json").write_text(text)
    assert operator_files.run_more_at_start({"HOME": str(tmp_path)}) is more


@pytest.mark.parametrize(
    "settings",
    [{"keep_seconds": 0}, {"warm_processes": 1}, {"warm_processes": 0}, {"sandbox": "bwrap"}],
    ids=str,
)
def test_settings_under_which_no_process_is_kept(tmp_path: Path, settings: dict[str, Any]) -> None:
    config = Config(home=tmp_path, **settings)
    make_database(config.database)
    with contextlib.closing(db.Database(config.database)) as database:
        assert not Kept(config, database, own_identity(), lambda: None, lambda: False).enabled


def test_a_process_has_time_to_exit_however_often_its_worker_looks(tmp_path: Path) -> None:
    config = Config(home=tmp_path / "home", cli_environment={"HOME": str(tmp_path)})
    config.make_folders()
    make_database(config.database)
    terms = Terms("edit", ("program",), (), operator_files.state_of(config.cli_environment), "", (), False, None, None)
    ended = tmp_path / "ended"
    with contextlib.closing(db.Database(config.database)) as database:
        kept = Kept(config, database, own_identity(), lambda: None, lambda: False, lambda: LEAST_MEMORY_BYTES)
        child = Child({"PATH": os.defpath})
        child.become(
            ["/bin/sh", "-c", f"cat; until [ -e {tmp_path}/go ]; do sleep 0.01; done; touch {ended}"], tmp_path, "m"
        )
        with contextlib.closing(kept):
            execution: Any = SimpleNamespace(workspace_generation=1)
            assert kept.keep(Waiting(child, "m"), terms, execution, "s", tmp_path)
            for _ in range(9):
                kept.look()
            assert kept.processes == {child.pid}
            assert rows.remove(database, 1) is not None
            (tmp_path / "go").touch()
            wait_until(ended.exists, "it to exit by itself")
            wait_until(lambda: kept.look() or not kept.processes, "it to be gone")


def test_an_old_process_serves_no_further_turn(tmp_path: Path) -> None:
    config = Config(home=tmp_path / "home", cli_environment={"HOME": str(tmp_path)})
    config.make_folders()
    make_database(config.database)
    terms = Terms("edit", ("program",), (), operator_files.state_of(config.cli_environment), "", (), False, None, None)
    execution: Any = SimpleNamespace(workspace_generation=1, resume_session_id="s", execution_id="e")
    with contextlib.closing(db.Database(config.database)) as database:
        kept = Kept(config, database, own_identity(), lambda: None, lambda: False, lambda: LEAST_MEMORY_BYTES)
        child = Child({"PATH": os.defpath})
        with contextlib.ExitStack() as stack:
            stack.callback(child.close_alone)
            stack.enter_context(contextlib.closing(kept))
            child.become(["/bin/cat"], tmp_path, "m")
            process = Waiting(child, "m")
            wait_until(lambda: process.is_in(tmp_path), "it to be in the folder")
            for age, served in ((OLDEST_SECONDS - 600, True), (OLDEST_SECONDS + 1, False)):
                child.began = time.monotonic() - age
                assert kept.keep(process, terms, execution, "s", tmp_path)
                kept.settle(execution)
                assert kept.take(execution, terms, tmp_path) is (process if served else None)
            assert not process.alive


def test_a_ring_for_a_job_comes_before_a_call_of_the_worker(tmp_path: Path) -> None:
    """A worker that is rung for both takes the job: the ring has woken no other one."""
    config = Config(home=tmp_path)
    config.make_folders()
    queue = open_queue(config, "executions")
    reader, writer = os.pipe()
    calls: list[str] = []
    try:
        queue.storage.called = (reader, lambda: calls.append("call"))
        os.write(writer, b"1")
        queue.storage.idle = lambda: queue.storage.enqueue(b"job")  # after the look at the jobs that are there
        assert queue.storage.dequeue() == b"job"
        assert calls == []
        queue.storage.idle = None
        assert queue.storage.dequeue() is None
        assert calls == ["call"]
    finally:
        os.close(reader)
        os.close(writer)
        queue.storage.close()
