"""Restores of workspaces: exactly the files of an execution, all or none, and each can be undone."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from occ_app.config.config import Config
from occ_app.database.database import Database
from occ_app.errors import Conflict, NotFound
from occ_app.executions import changes as rows
from occ_app.executions import lifecycle
from occ_app.executions import queries as executions
from occ_app.executions.records import Execution, Outcome, Request
from occ_app.home import notes
from occ_app.snapshots import restoring
from occ_app.snapshots.scan import Limits
from occ_app.snapshots.store import Snapshots
from occ_app.system.process_identity import ProcessIdentity, boot_id, own_identity
from occ_app.workspaces import archives, restores, upload_jobs, uploads
from occ_app.workspaces import workspace as workspaces
from occ_worker import changes
from occ_worker.control import snapshot_upkeep
from occ_worker.control.snapshot_upkeep import SnapshotUpkeep
from tests.conftest import make_zip
from tests.databases import make_database
from tests.test_changes import state

DEAD = ProcessIdentity(boot_id(), 1 << 30, 1)


@dataclass
class Agent:
    """The rows, the folders and the snapshots of an agent that never started, with one workspace, `work`."""

    db: Database
    snapshots: Snapshots
    folder: Path

    @property
    def workspace(self) -> workspaces.Workspace:
        return workspaces.get(self.db, "work")

    @property
    def root(self) -> Path:
        return Path(self.workspace.path)

    def upload(self, files: dict[str, str | bytes]) -> None:
        archive = self.folder.parent / "upload.zip"
        archive.write_bytes(make_zip(files).getvalue())
        number = upload_jobs.submit(self.db, upload_jobs.Upload("work", "work", "", "overwrite", archive))
        limits = archives.Limits(1_000_000, 100)
        uploads.run(self.db, number, self.folder, limits, snapshots=self.snapshots)
        assert upload_jobs.result(self.db, number)[0] == "succeeded", upload_jobs.result(self.db, number)

    def begin(self, execution_id: str, owner: ProcessIdentity | None = None) -> tuple[Execution, str]:
        """Claim an execution and take the snapshot before it."""
        request = Request(execution_id, "work", "x", 9, 9, None, None, None, None, "")
        lifecycle.create(self.db, request, max_queue=100)
        execution = lifecycle.claim(self.db, owner or own_identity())
        assert execution is not None
        start = changes.record_start(self.db, self.snapshots, execution, self.root, lambda: False)
        assert start is not None
        return execution, start

    def end(self, execution: Execution, start: str) -> None:
        lifecycle.finish(self.db, execution.number, Outcome("succeeded", "complete", {"exitCode": 0}))
        changes.record_end(self.db, self.snapshots, execution, start)

    def run(self, execution_id: str, command: str) -> None:
        """Run a command as an execution does its tools."""
        execution, start = self.begin(execution_id)
        subprocess.run(["sh", "-ec", command], cwd=self.root, check=True)
        self.end(execution, start)

    def source(self, execution_id: str, to: str) -> restores.Source:
        found = restores.source(self.db, self.workspace.generation, execution_id, to)
        if found is not None:
            return found
        execution = executions.get(self.db, execution_id)
        assert execution.start_tree is not None
        assert execution.end_tree is not None
        trees = (
            (execution.end_tree, execution.start_tree) if to == "start" else (execution.start_tree, execution.end_tree)
        )
        return restores.Source(execution_id, *trees, exact=execution.changes["exact"])

    def restore(self, execution_id: str, to: str = "start", *, force: bool = False) -> dict[str, object]:
        source = self.source(execution_id, to)
        return restores.restore(self.db, self.snapshots, self.workspace, source, own_identity(), force=force)

    def refused(self, execution_id: str, to: str = "start", *, force: bool = False) -> list[str]:
        """The files that keep a restore from being made."""
        before = state(self.root)
        with pytest.raises(Conflict) as refusal:
            self.restore(execution_id, to, force=force)
        assert refusal.value.code == "RESTORE_CONFLICT"
        assert state(self.root) == before
        assert not rows.held(self.db)
        files: list[str] = refusal.value.details["files"]
        return files


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    path, folder = tmp_path / "occ.db", tmp_path / "workspaces"
    make_database(path)
    folder.mkdir()
    db = Database(path)
    agent = Agent(db, Snapshots(tmp_path / "snapshots", os.environ["PATH"], Limits(1000, 10_000_000)), folder)
    agent.upload({"a.txt": "a\n", "b/c.txt": "c\n", "run.sh": "#!/bin/sh\n", ".gitignore": "*.log\n"})
    yield agent
    db.close()


EVERYTHING = (
    "echo changed > a.txt; rm -r b; chmod +x run.sh; mkdir -p n/m; echo new > n/m/new.txt; ln -s a.txt link;"
    " mv .gitignore moved; printf '*.log\\n' > .gitignore; printf '\\0\\1' > bin"
)


def test_what_an_execution_did_is_undone_and_made_again(agent: Agent) -> None:
    before = state(agent.root)
    agent.run("one", EVERYTHING)
    after = state(agent.root)
    undone = agent.restore("one")
    assert state(agent.root) == before
    assert not (agent.root / "n").exists()
    assert undone["result"] == executions.get(agent.db, "one").start_tree == agent.workspace.snapshot
    agent.restore("one", "end")
    assert state(agent.root) == after
    assert agent.restore("one", "end")["files"] == 0
    again = agent.restore(str(undone["restore_id"]))  # the first restore, undone
    assert (state(agent.root), again["files"]) == (after, 0)


def test_a_restore_is_undone_with_the_edits_that_it_overwrote(agent: Agent) -> None:
    agent.run("one", EVERYTHING)
    (agent.root / "a.txt").write_text("mine\n")
    edited = state(agent.root)
    assert agent.refused("one") == ["a.txt"]
    done = agent.restore("one", force=True)
    assert (agent.root / "a.txt").read_text() == "a\n"
    agent.restore(str(done["restore_id"]))
    assert state(agent.root) == edited


def test_other_files_and_later_executions_are_left_alone(agent: Agent) -> None:
    agent.run("one", "echo 1 > one.txt; echo 1 > a.txt")
    agent.run("two", "echo 2 > two.txt; echo 2 >> b/c.txt")
    (agent.root / "mine.txt").write_text("mine\n")
    agent.restore("one")
    assert set(state(agent.root)) == {".gitignore", "a.txt", "b/c.txt", "mine.txt", "run.sh", "two.txt"}
    assert (agent.root / "a.txt").read_text() == "a\n"
    assert (agent.root / "b/c.txt").read_text() == "c\n2\n"
    agent.run("three", "echo 3 > a.txt")
    assert agent.refused("one", "end") == ["a.txt"]


@pytest.mark.parametrize(
    ("edit", "files", "forced"),
    [
        ("echo mine > a.txt", ["a.txt"], True),
        ("rm a.txt", ["a.txt"], True),
        ("chmod +x a.txt", ["a.txt"], True),
        ("ln -sf /etc/hostname a.txt", ["a.txt"], True),
        ("rm a.txt; mkdir a.txt; echo x > a.txt/x", ["a.txt"], False),
        ("mkdir b; echo mine > b/c.txt", ["b/c.txt"], True),
        ("mkdir -p b/c.txt; echo x > b/c.txt/x.log", ["b/c.txt"], False),
        ("echo mine > b", ["b/c.txt"], False),
        ("ln -s /tmp b", ["b/c.txt"], False),
        ("mkfifo gone", ["gone"], False),
        ("echo mine > new", ["new"], True),
        ("rm a.txt; mkfifo a.txt", ["a.txt"], False),
    ],
)
def test_files_that_are_not_as_the_execution_left_them_are_named(
    agent: Agent, edit: str, files: list[str], forced: bool
) -> None:
    agent.upload({"a.txt": "a\n", "b/c.txt": "c\n", "gone": "g\n"})
    agent.run("one", "echo one > a.txt; rm -r b gone; echo n > new")
    subprocess.run(["sh", "-ec", edit], cwd=agent.root, check=True)
    assert agent.refused("one") == files
    if forced:
        agent.restore("one", force=True)
        assert (agent.root / "a.txt").read_text() == "a\n"
        assert (agent.root / "b/c.txt").read_text() == "c\n"
        assert not (agent.root / "new").exists()
    else:
        agent.refused("one", force=True)


def test_ignored_files_are_never_touched(agent: Agent) -> None:
    agent.run("one", "mkdir n; echo n > n/new.txt; echo l > n/x.log; echo l > y.log; rm a.txt")
    (agent.root / "a.txt").mkdir()
    (agent.root / "a.txt/z.log").write_text("l")
    assert agent.refused("one", force=True) == ["a.txt"]
    shutil.rmtree(agent.root / "a.txt")
    agent.restore("one")
    assert sorted(state(agent.root)) == [".gitignore", "a.txt", "b/c.txt", "n/x.log", "run.sh", "y.log"]


def test_an_execution_that_changed_the_ignore_file_is_undone(agent: Agent) -> None:
    before = state(agent.root)
    agent.run("one", "echo '*.txt' > .gitignore; echo changed > a.txt; echo new > new.txt")
    agent.restore("one")
    assert state(agent.root) == before


def test_a_folder_in_place_of_a_file_and_the_other_way_round(agent: Agent) -> None:
    before = state(agent.root)
    agent.run("one", "rm a.txt; mkdir -p a.txt/deep; echo x > a.txt/deep/x; rm -r b; echo b > b")
    after = state(agent.root)
    agent.restore("one")
    assert state(agent.root) == before
    agent.restore("one", "end")
    assert state(agent.root) == after


def test_permissions_are_those_of_the_file_or_its_folder(agent: Agent) -> None:
    agent.root.chmod(0o755)
    (agent.root / "a.txt").chmod(0o640)
    agent.run("one", "echo x > a.txt; rm run.sh; rm -r b")
    agent.restore("one")
    modes = {name: (agent.root / name).stat().st_mode & 0o777 for name in ("a.txt", "run.sh", "b", "b/c.txt")}
    assert modes == {"a.txt": 0o640, "run.sh": 0o644, "b": 0o755, "b/c.txt": 0o644}


def test_a_workspace_in_use_is_busy(agent: Agent) -> None:
    agent.run("one", "echo x > a.txt")
    execution, start = agent.begin("two")
    with pytest.raises(Conflict) as busy:
        agent.restore("one")
    assert busy.value.code == "WORKSPACE_BUSY"
    agent.end(execution, start)
    agent.restore("one")
    assert restores.source(agent.db, agent.workspace.generation, "restore-0", "start") is None
    with pytest.raises(NotFound):
        executions.get(agent.db, "restore-0")


def test_changes_that_are_not_exact_want_force(agent: Agent) -> None:
    agent.run("one", "echo x > a.txt")
    with agent.db.write() as connection:
        connection.execute("UPDATE executions SET changes = json_set(changes, '$.exact', json('false'))")
    assert agent.refused("one") == []
    agent.restore("one", force=True)
    assert (agent.root / "a.txt").read_text() == "a\n"


def test_without_a_complete_snapshot_nothing_is_restored(agent: Agent) -> None:
    agent.run("one", "echo x > a.txt")
    with (agent.root / "huge").open("wb") as file:
        file.truncate(10_000_001)
    assert agent.refused("one", force=True) == []
    (agent.root / "huge").unlink()
    agent.restore("one")


def test_a_file_that_cannot_be_put_in_place_undoes_the_rest(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    agent.run("one", EVERYTHING)
    after = state(agent.root)
    real, calls = restoring._place, 0

    def place(*arguments: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise PermissionError(13, "made up")
        real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(restoring, "_place", place)
    with pytest.raises(Exception, match="made up"):
        agent.restore("one")
    assert calls > 3
    assert state(agent.root) == after
    assert not rows.held(agent.db)


@pytest.mark.parametrize("instant", range(10))
def test_a_restore_that_is_killed_is_finished_by_the_next(
    agent: Agent, monkeypatch: pytest.MonkeyPatch, instant: int
) -> None:
    before = state(agent.root)
    agent.run("one", EVERYTHING)
    after = state(agent.root)
    steps = 0

    class Killed(BaseException):
        pass

    def dying(name: str) -> None:
        real = getattr(restoring, name)

        def step(*arguments: object) -> object:
            nonlocal steps
            steps += 1
            if steps > instant:
                raise Killed
            return real(*arguments)

        monkeypatch.setattr(restoring, name, step)

    for name in ("_write", "_remove", "_place"):
        dying(name)
    monkeypatch.setattr(restores, "_set_state", lambda *_: None)  # a killed process writes nothing
    monkeypatch.setattr(restoring.shutil, "rmtree", lambda *_, **__: None)
    with pytest.raises(Killed):
        restores.restore(agent.db, agent.snapshots, agent.workspace, agent.source("one", "start"), DEAD, force=False)
    monkeypatch.undo()
    assert state(agent.root) != before
    assert rows.held(agent.db)
    with pytest.raises(Conflict):
        agent.restore("one")
    assert len(restores.recover(agent.db, agent.snapshots)) == 1
    assert state(agent.root) == before
    assert not rows.held(agent.db)
    assert restores.recover(agent.db, agent.snapshots) == []
    with agent.db.read() as connection:
        restore_id = connection.execute("SELECT restore_id FROM restores").fetchone()["restore_id"]
    agent.restore(restore_id)
    assert state(agent.root) == after


def test_nothing_is_restored_in_a_folder_that_a_link_put_in_a_project_s_place(agent: Agent) -> None:
    """Neither when asked, with force, nor in finishing a restore that was killed."""
    with agent.db.write() as connection:
        connection.execute("UPDATE workspaces SET source = 'folder'")
    agent.run("one", EVERYTHING)
    source = agent.source("one", "start")
    other = agent.folder.with_name("other")
    shutil.copytree(agent.folder, other / "workspaces", symlinks=True)
    begun = restores._begin(agent.db, agent.workspace, source, DEAD, None)
    restores._prepare(agent.db, agent.snapshots, agent.root, begun, force=False)
    agent.folder.rename(agent.folder.with_name("moved"))
    agent.folder.symlink_to(other / "workspaces")
    before = state(other)
    (sentence,) = restores.recover(agent.db, agent.snapshots)
    assert "link" in sentence
    assert not rows.held(agent.db)
    with pytest.raises(NotFound, match="link"):
        restores.restore(agent.db, agent.snapshots, agent.workspace, source, own_identity(), force=True)
    assert state(other) == before


# -- executions whose worker is lost


def test_an_execution_whose_worker_is_lost_has_its_changes(agent: Agent) -> None:
    execution, _ = agent.begin("lost", DEAD)
    (agent.root / "a.txt").write_text("changed\n")
    changes.record_lost(agent.db, agent.snapshots, lambda _: None)  # it is not over yet
    assert rows.held(agent.db)
    lifecycle.finish(agent.db, execution.number, Outcome.failure("WORKER_LOST", "x"))
    assert lifecycle.claim(agent.db, own_identity()) is None
    told = list[str]()
    changes.record_lost(agent.db, agent.snapshots, lambda lost: told.append(lost.execution_id))
    found = executions.get(agent.db, "lost")
    assert (told, found.changes["files"], found.changes["exact"]) == (["lost"], 1, True)
    assert not rows.held(agent.db)


def test_in_a_project_the_changes_of_a_lost_execution_are_not_exact(agent: Agent) -> None:
    with agent.db.write() as connection:
        connection.execute("UPDATE workspaces SET source = 'folder'")
    execution, _ = agent.begin("lost", DEAD)
    (agent.root / "a.txt").write_text("changed\n")
    lifecycle.finish(agent.db, execution.number, Outcome.failure("WORKER_LOST", "x"))
    changes.record_lost(agent.db, agent.snapshots, lambda _: None)
    assert executions.get(agent.db, "lost").changes["exact"] is False
    assert agent.refused("lost") == []


def test_a_workspace_waits_for_the_snapshot_after_an_execution(agent: Agent) -> None:
    execution, start = agent.begin("one")
    lifecycle.create(agent.db, Request("two", "work", "x", 9, 9, None, None, None, None, ""), max_queue=9)
    lifecycle.finish(agent.db, execution.number, Outcome("succeeded", "complete", {"exitCode": 0}))
    assert lifecycle.claim(agent.db, own_identity()) is None
    assert executions.claimable(agent.db) == 0
    with pytest.raises(Conflict) as busy, agent.db.read() as connection:
        workspaces.refuse_busy(connection, "work", agent.workspace.generation)
    assert busy.value.details["reason"] == "ends"
    changes.record_end(agent.db, agent.snapshots, execution, start)
    following = lifecycle.claim(agent.db, own_identity())
    assert following is not None
    assert following.execution_id == "two"


def test_a_cancelled_execution_gives_its_first_snapshot_up(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "_LOOK_SECONDS", 0.0)
    lifecycle.create(agent.db, Request("one", "work", "x", 9, 9, None, None, None, None, ""), max_queue=9)
    execution = lifecycle.claim(agent.db, own_identity())
    assert execution is not None
    lifecycle.cancel(agent.db, "one", "EXECUTION_CANCELLED", "x")
    assert changes.record_start(agent.db, agent.snapshots, execution, agent.root, lambda: False) is None
    lifecycle.finish(agent.db, execution.number, Outcome.failure("EXECUTION_CANCELLED", "x"))
    assert executions.get(agent.db, "one").why_no_changes == "interrupted"
    assert not rows.held(agent.db)


def test_a_stop_leaves_the_last_snapshot_to_the_next_start(agent: Agent) -> None:
    execution, start = agent.begin("one", DEAD)
    (agent.root / "a.txt").write_text("changed\n")
    lifecycle.finish(agent.db, execution.number, Outcome.failure("DAEMON_STOPPED", "x"))
    interrupt = changes.interrupts_when(lambda: True)
    with pytest.raises(changes.Interrupted):
        changes.record_end(agent.db, agent.snapshots, execution, start, interrupt=interrupt)
    assert executions.get(agent.db, "one").why_no_changes == "pending"
    changes.record_lost(agent.db, agent.snapshots, lambda _: None)
    assert executions.get(agent.db, "one").changes["files"] == 1


# -- the end of snapshots


def upkeep(agent: Agent, tmp_path: Path, disk_bytes: int = 5_000_000_000) -> SnapshotUpkeep:
    return SnapshotUpkeep(replace(Config(home=tmp_path), snapshot_disk_bytes=disk_bytes), agent.db, agent.snapshots)


def test_snapshots_go_with_the_output_and_the_sums_stay(agent: Agent, tmp_path: Path) -> None:
    agent.run("one", "head -c 300000 /dev/urandom > big")
    agent.run("two", "rm big")
    agent.run("three", "echo 3 > a.txt")
    keeper = upkeep(agent, tmp_path)
    keeper.keep()
    used = agent.snapshots.used_bytes()
    for execution_id in ("one", "two"):
        lifecycle.forget_prompt(agent.db, executions.get(agent.db, execution_id).number)
    keeper.keep()
    assert agent.snapshots.used_bytes() < used - 250_000
    assert executions.get(agent.db, "one").changes["files"] == 1
    agent.restore("three")
    assert (agent.root / "a.txt").read_text() == "a\n"


def test_over_the_limit_on_the_disk_the_oldest_snapshots_go(agent: Agent, tmp_path: Path) -> None:
    for number in range(4):
        agent.run(f"run-{number}", "head -c 300000 /dev/urandom > big")
    upkeep(agent, tmp_path, 700_000).keep()
    assert agent.snapshots.used_bytes() <= 700_000
    assert all(executions.get(agent.db, f"run-{number}").changes["files"] == 1 for number in range(4))
    assert notes.noted(agent.db, "snapshots")["bytes"] == agent.snapshots.used_bytes()
    agent.run("last", "echo x > a.txt")
    agent.restore("last")


def test_the_snapshots_of_a_deleted_workspace_go(agent: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agent.run("one", "echo x > a.txt")
    generation = agent.workspace.generation
    workspaces.delete(agent.db, "work", agent.folder, lifecycle.end_waiting)
    keeper = upkeep(agent, tmp_path)
    keeper.keep()
    assert agent.snapshots.generations() == [generation]  # it could be an upload's that has no row yet
    monkeypatch.setattr(snapshot_upkeep, "_YOUNG_SECONDS", -1.0)
    keeper.keep()
    assert agent.snapshots.generations() == []
