"""Executions belong to a workspace, not to its id: a freed id never opens the files of another owner."""

from __future__ import annotations

import importlib.util
import io
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlite_utils

from occ_app.database import schema
from occ_app.database.database import Database
from occ_app.errors import Conflict, NotFound, Refused
from occ_app.executions import events, lifecycle, usage
from occ_app.executions import queries as executions
from occ_app.executions.records import Execution, Outcome, Request
from occ_app.hub import outbox, placement
from occ_app.hub import workspaces as hub_workspaces
from occ_app.system.process_identity import own_identity
from occ_app.system.timestamps import iso_now
from occ_app.workspaces import archives, upload_jobs, uploads
from occ_app.workspaces import workspace as workspaces
from tests.conftest import Occ, make_zip, steps, wait_until
from tests.databases import make_database
from tests.real_hub import Hub, hub_in

LIMITS = archives.Limits(10_000, 100)
MIGRATIONS = Path(__file__).parent.parent / "migrations" / "migrations.py"


@pytest.fixture
def rows(tmp_path: Path) -> Iterator[Database]:
    """The rows of an agent that never started."""
    path = tmp_path / "occ.db"
    make_database(path)
    rows = Database(path)
    yield rows
    rows.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "workspaces"
    folder.mkdir()
    return folder


def upload(
    rows: Database,
    folder: Path,
    workspace_id: str,
    expected: int | None = None,
    policy: str = "overwrite",
    **files: str,
) -> workspaces.Workspace:
    """Make or overwrite a workspace as an agent does; raises KeyError with the code of a refusal."""
    archive = folder.parent / "upload.zip"
    archive.write_bytes(make_zip({f"{name}.txt": text for name, text in (files or {"a": "a"}).items()}).getvalue())
    asked = upload_jobs.Upload(workspace_id, workspace_id, "", policy, archive, expected=expected)
    number = upload_jobs.submit(rows, asked)
    uploads.run(rows, number, folder, LIMITS)
    state, reply = upload_jobs.result(rows, number)
    assert reply is not None
    if state != "succeeded":
        raise KeyError(reply["code"])
    found = workspaces.get(rows, workspace_id)
    assert reply["generation"] == found.generation
    return found


def accept(
    rows: Database,
    execution_id: str,
    workspace_id: str,
    *,
    key_id: str | None = None,
    session: str | None = None,
    generation: int | None = None,
) -> Execution:
    request = Request(
        execution_id,
        workspace_id,
        "x",
        9,
        9,
        None,
        None,
        None,
        session,
        "",
        key_id,
        key_id,
        workspace_generation=generation,
    )
    return lifecycle.create(rows, request, max_queue=100)[0]


def delete(rows: Database, folder: Path, workspace_id: str, generation: int | None = None) -> list[int]:
    return workspaces.delete(rows, workspace_id, folder, lifecycle.end_waiting, generation)


def on_hub(rows: Database, workspace_id: str, key_id: str, name: str = "") -> workspaces.Workspace:
    """A workspace on a hub, as its upload leaves it."""
    with rows.write() as connection:
        generation = workspaces.new_generation(connection, workspace_id)
        connection.execute(
            "INSERT INTO workspaces (workspace_id, name, description, path, files, bytes, skipped, created_at,"
            " updated_at, key_id, owner_id, zip, upload, generation)"
            " VALUES (?, ?, '', '', 1, 1, '[]', ?, ?, ?, ?, 'z', ?, ?)",
            (workspace_id, name, iso_now(), iso_now(), key_id, key_id, generation, generation),
        )
    return workspaces.get(rows, workspace_id)


def test_deleting_a_workspace_ends_what_waits_for_it(rows: Database, folder: Path) -> None:
    upload(rows, folder, "work")
    upload(rows, folder, "other")
    waiting = [accept(rows, f"e{number}", "work").number for number in range(3)]
    other = accept(rows, "other", "other")
    assert delete(rows, folder, "work") == waiting
    for number in waiting:
        final = events.final(rows, number)
        assert final is not None
        assert '"code":"WORKSPACE_MISSING"' in final.data
    assert executions.get(rows, "e0").state == "failed"
    assert executions.get(rows, "other").state == "queued"
    claimed = lifecycle.claim(rows, own_identity())
    assert claimed is not None
    assert claimed.number == other.number


def test_an_upload_under_a_freed_id_is_another_workspace(rows: Database, folder: Path) -> None:
    former = upload(rows, folder, "work")
    overwritten = upload(rows, folder, "work", b="b")
    assert (overwritten.generation, overwritten.path) == (former.generation, former.path)
    delete(rows, folder, "work")
    latter = upload(rows, folder, "work")
    assert latter.generation > former.generation
    assert workspaces.numbered(rows, former.generation) is None
    with pytest.raises(NotFound):
        delete(rows, folder, "work", former.generation)
    assert Path(latter.path).is_dir()
    delete(rows, folder, "work", latter.generation)
    with pytest.raises(NotFound):
        workspaces.get(rows, "work")


def test_a_call_that_names_a_number_reaches_no_later_workspace_of_the_id(rows: Database, folder: Path) -> None:
    former = upload(rows, folder, "work")
    assert accept(rows, "former", "work", generation=former.generation).workspace_generation == former.generation
    delete(rows, folder, "work")
    latter = upload(rows, folder, "work", expected=0)
    with pytest.raises(NotFound):
        accept(rows, "latter", "work", generation=former.generation)
    with pytest.raises(NotFound):
        workspaces.get(rows, "work", generation=former.generation)
    accept(rows, "latter", "work", generation=latter.generation)
    with pytest.raises(NotFound):
        lifecycle.cancel(rows, "latter", "EXECUTION_CANCELLED", "", generation=former.generation)
    assert executions.get(rows, "latter").state == "queued"
    lifecycle.cancel(rows, "latter", "EXECUTION_CANCELLED", "", generation=latter.generation)
    assert executions.get(rows, "latter").state == "cancelled"


@pytest.mark.parametrize("policy", ["overwrite", "reuse"])
def test_an_upload_that_expects_another_workspace_changes_nothing(rows: Database, folder: Path, policy: str) -> None:
    with pytest.raises(KeyError, match="WORKSPACE_CONFLICT"):
        upload(rows, folder, "work", 7, policy)
    former = upload(rows, folder, "work", 0, policy)
    assert upload(rows, folder, "work", former.generation, policy).generation == former.generation
    delete(rows, folder, "work")
    latter = upload(rows, folder, "work")
    for expected in (0, former.generation):
        with pytest.raises(KeyError, match="WORKSPACE_CONFLICT"):
            upload(rows, folder, "work", expected, policy, mine="x")
    assert workspaces.get(rows, "work") == latter
    assert {path.name for path in Path(latter.path).iterdir()} == {"a.txt"}


def test_a_workspace_in_use_is_not_deleted_and_its_queue_stays(rows: Database, folder: Path) -> None:
    upload(rows, folder, "work")
    accept(rows, "runs", "work")
    accept(rows, "waits", "work")
    lifecycle.claim(rows, own_identity())
    with pytest.raises(Conflict):
        delete(rows, folder, "work")
    assert executions.get(rows, "waits").state == "queued"
    assert workspaces.get(rows, "work").generation == executions.get(rows, "waits").workspace_generation


def test_a_number_is_not_given_again_after_the_newest_workspace_was_deleted(rows: Database, folder: Path) -> None:
    numbers = []
    for _ in range(3):
        numbers.append(upload(rows, folder, "work").generation)
        delete(rows, folder, "work")
    assert numbers == sorted(set(numbers))


def test_what_runs_in_a_former_workspace_blocks_no_later_one(rows: Database) -> None:
    former = on_hub(rows, "work", "mallory")
    accept(rows, "former", "work", key_id="mallory")
    lifecycle.claim(rows, own_identity())
    with rows.write() as connection:  # as when its row was lost in a restored copy
        connection.execute("DELETE FROM workspaces WHERE generation = ?", (former.generation,))
    on_hub(rows, "work", "victim")
    accept(rows, "latter", "work", key_id="victim")
    assert executions.claimable(rows) == 1
    claimed = lifecycle.claim(rows, own_identity())
    assert claimed is not None
    assert claimed.execution_id == "latter"


def test_usage_names_no_workspace_that_has_the_id_now(rows: Database, folder: Path) -> None:
    on_hub(rows, "work", "client", "its own name")
    accept(rows, "mine", "work", key_id="client")
    assert [group.name for group in usage.report(rows, "workspace", visible_to="client").groups] == ["its own name"]
    hub_workspaces.delete(rows, "work", "client")
    on_hub(rows, "work", "victim", "a secret project")
    report = usage.report(rows, "workspace", visible_to="client")
    assert [(group.group, group.name) for group in report.groups] == [("work", None)]
    accept(rows, "theirs", "work", key_id="victim")
    report = usage.report(rows, "workspace", visible_to="victim")
    assert [(group.group, group.name) for group in report.groups] == [("work", "a secret project")]


def test_a_hub_deletes_a_workspace_of_its_agent_by_its_number_there(rows: Database) -> None:
    former = on_hub(rows, "work", "client")
    with rows.write() as connection:
        connection.execute("UPDATE workspaces SET agent_id = 'agent-1'")
    hub_workspaces.reserve_on(rows, former, "agent-1")
    hub_workspaces.note_placed(rows, former, "agent-1", "/there", 7)
    waiting = accept(rows, "waits", "work", key_id="client")
    assert hub_workspaces.delete(rows, "work", "client") == [waiting.number]
    assert [errand.path for errand in outbox.deletions(rows, "agent-1", "work")] == ["/workspaces/work?generation=7"]
    assert outbox.deletions(rows, "agent-2", "work") == outbox.deletions(rows, "agent-1", "wor") == []
    latter = on_hub(rows, "work", "victim")
    hub_workspaces.reserve_on(rows, former, "agent-1")  # a relay that was late
    hub_workspaces.note_placed(rows, former, "agent-1", "/there", 7)
    assert workspaces.get(rows, "work") == latter


def test_a_hub_cancels_by_the_number_of_the_workspace_there(rows: Database) -> None:
    workspace = on_hub(rows, "work", "client")
    with rows.write() as connection:
        connection.execute("UPDATE workspaces SET agent_id = 'agent-1', agent_generation = 7")
    accept(rows, "gone", "work", key_id="client")
    number = accept(rows, "waits", "work", key_id="client").number
    lifecycle.claim(rows, own_identity())
    with rows.write() as connection:
        connection.execute("UPDATE executions SET agent_id = 'agent-1' WHERE execution_id = 'gone'")
    outbox.cancel(rows, "agent-1", "gone")
    assert [errand.path for errand in outbox.waiting(rows)] == ["/executions/gone/cancel?generation=7"]
    lifecycle.finish(rows, executions.get(rows, "gone").number, Outcome.failure("EXECUTION_CANCELLED", ""))
    with rows.read() as connection:  # the workspace is held until the machine confirms
        assert placement._first_of_each_workspace(connection) == []
    outbox.done(rows, outbox.waiting(rows)[0])
    with rows.read() as connection:
        assert placement._first_of_each_workspace(connection) == [(number, "agent-1")]
    assert workspace.agent_generation is None


def ran(rows: Database, execution_id: str, workspace_id: str, session: str, key_id: str | None = None) -> None:
    """An execution that is over and began a session."""
    number = accept(rows, execution_id, workspace_id, key_id=key_id).number
    lifecycle.claim(rows, own_identity())
    said = json.dumps({"sessionId": session, "model": "m", "claudeVersion": "2"})
    events.append(rows, number, 2, [("started", said)])
    lifecycle.finish(rows, number, Outcome("succeeded", "complete", {}))


def test_a_session_is_resumed_in_its_workspace_and_by_its_owner_alone(rows: Database) -> None:
    with rows.write() as connection:
        connection.execute(
            "INSERT INTO keys (key_id, name, kind, admin, hash, created_at) VALUES"
            " ('a', 'a', 'client', 0, '1', ''), ('b', 'b', 'client', 0, '2', ''), ('admin', 'c', 'client', 1, '3', '')"
        )
    on_hub(rows, "alpha", "a")
    on_hub(rows, "beta", "b")
    ran(rows, "first", "alpha", "session-a", "a")
    ran(rows, "admins", "alpha", "session-admin", "admin")
    asked = {
        ("alpha", "a", "session-a"): True,
        ("alpha", "admin", "session-a"): True,
        ("alpha", None, "session-a"): True,
        ("alpha", "a", None): True,
        ("alpha", "b", "session-a"): False,
        ("alpha", "a", "session-admin"): False,
        ("beta", "b", "session-a"): False,
        ("beta", "admin", "session-a"): False,
        ("alpha", "a", "unheard-of"): False,
    }
    found = {
        case: executions.may_resume(rows, accept(rows, f"e{number}", case[0], key_id=case[1], session=case[2]))
        for number, case in enumerate(asked)
    }
    assert found == asked


def test_a_session_ends_with_its_workspace(rows: Database, folder: Path) -> None:
    upload(rows, folder, "work")
    ran(rows, "first", "work", "s")
    upload(rows, folder, "work", b="overwritten")
    assert executions.may_resume(rows, accept(rows, "second", "work", session="s"))
    delete(rows, folder, "work")
    upload(rows, folder, "work")
    assert not executions.may_resume(rows, accept(rows, "third", "work", session="s"))


def test_a_session_of_another_workspace_is_not_resumed(agent: Occ) -> None:
    agent.workspace("beta")
    first = agent.run("hello")[-1].data["sessionId"]
    final = agent.run("hello", "beta", sessionId=first)[-1]
    assert (final.name, final.data["code"]) == ("error", "SESSION_NOT_FOUND")
    assert agent.run("hello", sessionId=first)[-1].name == "complete"
    agent.client.delete_workspace("work")
    agent.workspace()
    assert agent.run("hello", sessionId=first)[-1].data["code"] == "SESSION_NOT_FOUND"


def test_placement_looks_at_the_workspace_an_execution_was_accepted_for(rows: Database) -> None:
    on_hub(rows, "work", "client")
    first = accept(rows, "first", "work", key_id="client")
    with rows.write() as connection:
        connection.execute("DELETE FROM workspaces")  # without ending what waits, as releases before numbers did
    on_hub(rows, "work", "victim")
    with rows.write() as connection:
        connection.execute("UPDATE workspaces SET agent_id = 'agent-1'")
    second = accept(rows, "second", "work", key_id="victim")
    with rows.read() as connection:
        assert placement._first_of_each_workspace(connection) == [(first.number, None), (second.number, "agent-1")]


def migrated(path: Path, step: str, *statements: str) -> Database:
    """A database as it was before a migration, with these rows, brought to this release."""
    spec = importlib.util.spec_from_file_location("migrations", MIGRATIONS)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    connection = sqlite3.connect(path)
    earlier = sqlite_utils.Database(connection)
    names = [migration.name for migration in module.occ.pending(earlier)]
    before = next(number for number, name in enumerate(names) if name.endswith(step))
    module.occ.apply(earlier, stop_before=names[before])
    for statement in statements:
        connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {before}")
    connection.commit()
    connection.close()
    schema.ensure_schema(path, path.with_name("lock"))
    return Database(path)


def old_workspace(workspace_id: str, created_at: str, key_id: str | None = None) -> str:
    key = "NULL" if key_id is None else f"'{key_id}'"
    return (
        "INSERT INTO workspaces (workspace_id, name, description, path, files, bytes, skipped, created_at, updated_at,"  # noqa: S608 - literals of the tests
        f" key_id) VALUES ('{workspace_id}', '', '', '/old/{workspace_id}', 1, 1, '[]', '{created_at}', '{created_at}',"
        f" {key})"
    )


def old_execution(execution_id: str, workspace_id: str, created_at: str, key_id: str | None = None) -> str:
    key = "NULL" if key_id is None else f"'{key_id}'"
    return (
        "INSERT INTO executions (execution_id, workspace_id, state, request_hash, prompt, timeout_seconds,"  # noqa: S608 - literals of the tests
        f" idle_timeout_seconds, created_at, key_id, session_id) VALUES ('{execution_id}', '{workspace_id}', 'queued',"
        f" '', 'x', 9, 9, '{created_at}', {key}, 'session of {execution_id}')"
    )


def test_executions_of_an_earlier_release_get_the_workspace_they_were_accepted_for(tmp_path: Path) -> None:
    rows = migrated(
        tmp_path / "occ.db",
        "_workspace_generations",
        old_workspace("b", "2026-01-03T00:00:00.000Z", "victim"),
        old_workspace("a", "2026-01-01T00:00:00.000Z"),
        old_execution("before", "b", "2026-01-02T00:00:00.000Z", "mallory"),
        old_execution("after", "b", "2026-01-04T00:00:00.000Z", "victim"),
        old_execution("foreign", "b", "2026-01-04T00:00:00.000Z", "mallory"),
        old_execution("gone", "c", "2026-01-04T00:00:00.000Z"),
        old_execution("own", "a", "2026-01-04T00:00:00.000Z"),
    )
    found = {name: executions.get(rows, name).workspace_generation for name in ("before", "after", "foreign", "gone")}
    assert [workspaces.get(rows, name).generation for name in "ab"] == [1, 2]
    assert found == {"before": 0, "after": 2, "foreign": 0, "gone": 0}
    assert executions.get(rows, "own").workspace_generation == 1
    rows.close()


def test_a_reader_of_what_waits_is_sent_the_end_when_its_workspace_is_deleted(agent: Occ, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    others = [agent.client.execute(agent.workspace(name), steps({"wait": str(gate)})) for name in ("one", "two")]
    started = [next(stream) for stream in others]
    wait_until(lambda: executions.counts(agent.database)[0] == 2, "both workers to be busy")
    waiting = agent.client.execute("work", "hello")
    assert next(waiting).name == started[0].name == "queued"
    agent.client.delete_workspace("work")
    assert [event.data.get("code") for event in waiting] == ["WORKSPACE_MISSING"]
    gate.touch()
    assert {list(stream)[-1].name for stream in others} == {"complete"}


def test_a_prompt_never_runs_in_the_workspace_of_another_key(tmp_path: Path) -> None:
    with hub_in(tmp_path) as hub:
        _freed_id(hub.start())


def _freed_id(hub: Hub) -> None:
    mallory, victim = (hub.client_with(hub.key(name, "client")) for name in ("mallory", "victim"))
    mallory.upload("payroll", make_zip({"a.txt": "x"}))
    queued = mallory.execute("payroll", steps({"write": "backdoor.py", "text": "evil"}), executionId="e1")
    assert next(queued).name == "queued"
    mallory.delete_workspace("payroll")
    victim.upload("payroll", make_zip({"salaries.csv": "ceo,900000"}))
    assert [event.data.get("code") for event in queued] == ["WORKSPACE_MISSING"]
    box = hub.agent("box")
    assert list(victim.execute("payroll", "hello"))[-1].name == "complete"
    assert not (box.home / "workspaces" / "payroll" / "backdoor.py").exists()
    # The id is freed once more, while its machine is away; the next owner's first execution comes before the errand.
    former = box.client.workspace("payroll")["generation"]
    box.stop()
    victim.delete_workspace("payroll")
    mallory.upload("payroll", make_zip({"mine.txt": "x"}))
    box.start()
    assert list(mallory.execute("payroll", "hello"))[-1].name == "complete"
    assert not (Path(box.client.workspace("payroll")["path"]) / "salaries.csv").exists()
    assert box.client.workspace("payroll")["generation"] > former
    # A user of the machine frees the id there and takes it.
    _taken(box)
    with pytest.raises(Refused):
        mallory.archive("payroll", io.BytesIO())
    assert list(mallory.execute("payroll", steps({"write": "backdoor.py"})))[-1].data["code"] == "AGENT_REFUSED"
    assert _entries(box) == {"theirs.txt"}
    box.client.delete_workspace("payroll")
    assert list(mallory.execute("payroll", "hello"))[-1].name == "complete"
    _taken(box)
    mallory.upload("payroll", make_zip({"mine.txt": "y"}))
    assert list(mallory.execute("payroll", "hello"))[-1].data["code"] == "AGENT_REFUSED"
    mallory.delete_workspace("payroll")
    assert _entries(box) == {"theirs.txt"}
    # They also ran something, whose id becomes known.
    secret = steps({"write": "salaries.csv", "text": "a secret"})
    assert list(box.client.execute("payroll", secret, executionId="known"))[-1].name == "complete"
    mallory.upload("mine", make_zip({"a.txt": "x"}))
    assert list(mallory.execute("mine", secret, executionId="known"))[-1].data["code"] == "AGENT_REFUSED"

    def why() -> Any:
        return mallory.execution("known")["changesReason"]

    assert wait_until(lambda: why() != "pending" and why(), "the hub to look for changes") == "lost"
    for path in ("changes", "diff"):
        with pytest.raises(Refused):
            mallory.call("GET", f"/executions/known/{path}")


def _taken(box: Occ) -> None:
    box.client.delete_workspace("payroll")
    box.client.upload("payroll", make_zip({"theirs.txt": "x"}))


def _entries(box: Occ) -> set[str]:
    return {path.name for path in Path(box.client.workspace("payroll")["path"]).iterdir()}
