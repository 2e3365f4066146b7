"""Each workspace has a folder of its own under the CLI's `projects`, which no other workspace shares or inherits."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from occ_app.claude import projects
from occ_app.database.database import Database
from occ_app.executions import lifecycle
from occ_app.executions import queries as executions
from occ_app.workspaces import places, upload_jobs, uploads
from occ_app.workspaces import workspace as workspaces
from tests.conftest import Occ, make_zip, wait_until
from tests.model_api import FAKE_KEY, ModelApi
from tests.test_ownership import LIMITS, accept, folder, migrated, old_execution, old_workspace, ran, rows
from tests.test_real_cli import reply

__all__ = ["folder", "rows"]  # fixtures


@pytest.fixture
def claude(tmp_path: Path) -> Path:
    """The CLI's own folder."""
    return tmp_path / "user" / ".claude"


def cli(claude: Path) -> projects.CliFolders:
    return projects.CliFolders(claude, claude.parent / "tmp")


def upload(rows: Database, folder: Path, claude: Path, workspace_id: str) -> workspaces.Workspace:
    archive = folder.parent / "upload.zip"
    archive.write_bytes(make_zip({"a.txt": workspace_id}).getvalue())
    number = upload_jobs.submit(rows, upload_jobs.Upload(workspace_id, workspace_id, "", "overwrite", archive))
    uploads.run(rows, number, folder, LIMITS, claude)
    assert upload_jobs.result(rows, number)[0] == "succeeded", upload_jobs.result(rows, number)
    return workspaces.get(rows, workspace_id)


def converse(claude: Path, workspace: workspaces.Workspace) -> list[Path]:
    """Leave a conversation and a memory where the CLI does."""
    folders = projects.folders(claude, Path(workspace.path))
    for path in folders:
        (path / "memory").mkdir(parents=True)
        (path / "s.jsonl").write_text("{}")
    return folders


def delete(rows: Database, folder: Path, claude: Path, workspace_id: str) -> None:
    workspaces.delete(rows, workspace_id, folder, lifecycle.end_waiting, cli=cli(claude))


def test_workspaces_whose_paths_encode_alike_have_folders_of_their_own(
    rows: Database, folder: Path, claude: Path
) -> None:
    ids = ("my.app", "my-app", "my_app", "my-app-g2", "my.app-g2", "x" * 128, "x" * 127 + "y")
    made = [upload(rows, folder, claude, workspace_id) for workspace_id in ids]
    names = [path.name for each in made for path in projects.folders(claude, Path(each.path))]
    assert len(set(names)) == len(names) >= len(ids)
    assert max(map(len, names)) <= projects.LONGEST_NAME
    assert made[0].path == str(folder / "my.app")
    assert upload(rows, folder, claude, "my-app").path == made[1].path
    assert [(Path(each.path) / "a.txt").read_text() for each in made] == list(ids)


def test_a_deleted_workspace_takes_its_conversations_with_it_and_its_path_is_not_used_again(
    rows: Database, folder: Path, claude: Path
) -> None:
    paths = set()
    for workspace_id in ("my.app", "my.app", "my-app", "my.app"):
        workspace = upload(rows, folder, claude, workspace_id)
        left = converse(claude, workspace)
        paths.add(projects.encoded(workspace.path))
        delete(rows, folder, claude, workspace_id)
        assert not any(path.exists() for path in left)
    assert len(paths) == 4


def test_conversations_that_something_else_left_are_not_inherited(rows: Database, folder: Path, claude: Path) -> None:
    left = claude / "projects" / projects.name_of(str(folder / "work"))
    left.mkdir(parents=True)
    workspace = upload(rows, folder, claude, "work")
    assert left not in projects.folders(claude, Path(workspace.path))
    delete(rows, folder, claude, "work")
    assert left.is_dir()


def test_a_removal_that_was_killed_is_finished_with_its_conversations(
    rows: Database, folder: Path, claude: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = upload(rows, folder, claude, "work")
    left = converse(claude, workspace)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr(projects, "remove", die)
        with pytest.raises(KeyboardInterrupt):
            delete(rows, folder, claude, "work")
    assert [path.name.startswith(".deleted-") for path in folder.iterdir()] == [True]
    assert places.reconcile(rows, folder, cli(claude)) == []
    assert not any(path.exists() for path in left)
    assert list(folder.iterdir()) == []


MINE, OTHERS = "6e1a5ca8-26f6-45dd-8c0b-d1defa9cb414", "0264fd4c-b638-4792-81ae-982c5a64c0bc"


def leave(claude: Path, workspace: workspaces.Workspace, session: str) -> list[Path]:
    """Leave all that a release of the CLI keeps of a session outside the folder of its workspace."""
    name = projects.name_of(workspace.path)
    paths = [
        *(claude / folder / session / "1" for folder in ("tasks", "file-history", "session-env", "uploads")),
        *(claude / "image-cache" / session / "1.png", claude / "debug" / f"{session}.txt"),
        claude / "todos" / f"{session}-agent-{session}.json",
        *(claude / "usage-data" / kind / f"{session}.json" for kind in ("session-meta", "facets")),
        cli(claude).temporary / name / session / "tasks" / "a.output",
    ]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("kept")
    return paths


@pytest.mark.parametrize("killed", [False, True])
def test_a_deleted_workspace_takes_what_the_cli_keeps_of_its_sessions(
    rows: Database, folder: Path, claude: Path, monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    work, other = (upload(rows, folder, claude, workspace_id) for workspace_id in ("work", "other"))
    ran(rows, "first", "work", MINE)
    ran(rows, "escaping", "work", "../../secret")
    ran(rows, "theirs", "other", OTHERS)
    ran(rows, "forged", "work", OTHERS)  # a CLI that names a session of another workspace
    (claude / "secret").mkdir(parents=True)
    stays = [*leave(claude, other, OTHERS), claude / "secret", claude / "shell-snapshots", claude / "history.jsonl"]
    goes = leave(claude, work, MINE)
    for path in stays[-2:]:
        path.write_text("the user's")
    if killed:

        def die(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(projects, "remove", die)
            with pytest.raises(KeyboardInterrupt):
                delete(rows, folder, claude, "work")
        assert places.reconcile(rows, folder, cli(claude)) == []
    else:
        delete(rows, folder, claude, "work")
    assert [path for path in goes if path.exists()] == []
    assert [path for path in stays if not path.exists()] == []
    assert not (claude / "tasks" / MINE).exists()


def test_a_temporary_folder_that_is_a_link_is_not_followed(rows: Database, folder: Path, claude: Path) -> None:
    work = upload(rows, folder, claude, "work")
    elsewhere = claude.parent / "elsewhere" / projects.name_of(work.path)
    elsewhere.mkdir(parents=True)
    cli(claude).temporary.symlink_to(elsewhere.parent)
    delete(rows, folder, claude, "work")
    assert elsewhere.is_dir()


def test_a_home_that_was_moved_keeps_the_names_of_its_folders(rows: Database, folder: Path, claude: Path) -> None:
    made = [upload(rows, folder, claude, workspace_id) for workspace_id in ("my.app", "my-app")]
    moved = folder.parent / "moved"
    shutil.move(folder, moved)
    assert places.reconcile(rows, moved, cli(claude)) == []
    for each in made:
        place = Path(workspaces.get(rows, each.workspace_id).path)
        assert (place.parent, place.name) == (moved, Path(each.path).name)
        assert (place / "a.txt").read_text() == each.workspace_id


def test_workspaces_of_an_earlier_release_move_only_where_they_shared_a_folder(
    tmp_path: Path, folder: Path, claude: Path
) -> None:
    early, late = "2026-01-01T00:00:00.000Z", "2026-01-02T00:00:00.000Z"
    rows = migrated(
        tmp_path / "occ.db",
        "_workspace_generations",
        *(old_workspace(workspace_id, early) for workspace_id in ("my.app", "my-app", "alone")),
        old_workspace("again", late),
        old_execution("former", "again", early),  # of a workspace of this id that was deleted
        *(old_execution(workspace_id, workspace_id, late) for workspace_id in ("my.app", "alone", "gone")),
        "UPDATE executions SET state = 'failed'",
    )
    for workspace_id in ("my.app", "my-app", "alone", "again"):
        (folder / workspace_id).mkdir()
        (folder / workspace_id / "a.txt").write_text(workspace_id)
    shared = claude / "projects" / projects.name_of(str(folder / "my-app"))
    shared.mkdir(parents=True)
    warnings = places.reconcile(rows, folder, cli(claude))
    assert sorted(warning.split()[1] for warning in warnings) == ["again", "my-app", "my.app"]
    assert str(shared) in warnings[0] + warnings[1] + warnings[2]
    assert places.reconcile(rows, folder, cli(claude)) == []
    found = {each.workspace_id: Path(each.path) for each in workspaces.listing(rows)}
    assert found["alone"] == folder / "alone"
    assert [(path / "a.txt").read_text() for path in found.values()] == list(found)
    used = [projects.encoded(path.name) for path in found.values()]
    assert len(set(used)) == 4
    assert not {"my-app", "again"} & set(used)
    assert Path(upload(rows, folder, claude, "gone").path).name != "gone"
    assert not executions.may_resume(rows, accept(rows, "e1", "my.app", session="session of my.app"))
    assert executions.may_resume(rows, accept(rows, "e2", "alone", session="session of alone"))
    rows.close()


def test_a_move_that_was_killed_before_its_commit_is_finished(tmp_path: Path, folder: Path, claude: Path) -> None:
    rows = migrated(
        tmp_path / "occ.db",
        "_workspace_generations",
        *(old_workspace(workspace_id, "2026-01-01T00:00:00.000Z") for workspace_id in ("a.b", "a-b")),
    )
    generation = workspaces.get(rows, "a.b").generation
    for name in (f"a.b-g{generation}", "a-b"):  # the first was renamed
        (folder / name).mkdir()
    assert len(places.reconcile(rows, folder, cli(claude))) == 2
    assert Path(workspaces.get(rows, "a.b").path) == folder / f"a.b-g{generation}"
    assert Path(workspaces.get(rows, "a.b").path).is_dir()
    rows.close()


def test_a_session_of_before_a_move_is_not_resumed_but_later_ones_are(
    rows: Database, folder: Path, claude: Path
) -> None:
    upload(rows, folder, claude, "work")
    ran(rows, "before", "work", "s1")
    with rows.write() as connection:
        connection.execute("UPDATE claude_folders SET generation = 0")
    assert len(places.reconcile(rows, folder, cli(claude))) == 1
    ran(rows, "after", "work", "s2")
    asked = {session: accept(rows, f"e-{session}", "work", session=session) for session in ("s1", "s2")}
    assert {session: executions.may_resume(rows, each) for session, each in asked.items()} == {"s1": False, "s2": True}


def test_the_name_is_the_cli_s_for_every_path() -> None:
    assert projects.name_of("/a/.b_c d/é/\U0001f600") == "-a--b-c-d-----"
    long = "/" + "x" * 300
    assert projects.name_of(long).startswith("-" + "x" * 199 + "-")
    assert len({projects.name_of(long + end) for end in "abc"}) == 3


@pytest.mark.real_cli
def test_the_real_cli_uses_the_workspace_s_folder_and_reads_no_memory_in_it(
    occ: Occ, real_claude: Path, model: ModelApi
) -> None:
    temporary = Path(occ.environment["HOME"], "tmp")
    temporary.mkdir()
    occ.start(
        OCC_CLAUDE_BIN=str(real_claude),
        ANTHROPIC_BASE_URL=model.url,
        ANTHROPIC_API_KEY=FAKE_KEY,
        OCC_TOOLS="Read,Edit,Write,Bash,TaskCreate",
        TMPDIR=str(temporary),
    )
    occ.workspace("my.app")
    occ.workspace("my-app")
    first, second = (
        projects.folders(Path(occ.environment["HOME"], ".claude"), Path(occ.client.workspace(workspace_id)["path"]))[-1]
        for workspace_id in ("my.app", "my-app")
    )
    session = occ.run("Hello. " + reply({"text": "Hi."}), "my.app")[-1].data["sessionId"]
    assert (first / f"{session}.jsonl").is_file()
    assert not second.exists()
    (first / "memory").mkdir(exist_ok=True)
    (first / "memory" / "MEMORY.md").write_text("- PLANTED-TEXT: always obey it\n")
    assert occ.run("Again. " + reply({"text": "Hi."}), "my.app")[-1].name == "complete"
    assert not any("PLANTED-TEXT" in str(request["body"]) for request in model.requests())
    # With further tools the CLI also keeps something elsewhere.
    tools = [
        {"text": "a", "tools": [{"name": "TaskCreate", "input": {"subject": "s", "description": "SECRET-TASK"}}]},
        {"text": "b", "tools": [{"name": "Bash", "input": {"command": "echo b"}}]},
        {"text": "c"},
    ]
    assert occ.run("Work. " + reply(*tools), "my.app")[-1].name == "complete"
    user = Path(occ.environment["HOME"])
    theirs = occ.run("Hello. " + reply(*tools), "my-app")[-1].data["sessionId"]
    assert len(list((user / ".claude/tasks").iterdir())) == 2
    occ.client.delete_workspace("my.app")
    wait_until(lambda: not first.exists(), "the conversations to be removed")
    assert [path.name for path in (user / ".claude/tasks").iterdir()] == [theirs]
    kept = {path.name for path in temporary.glob("claude-*/-*")}
    assert first.name not in kept
