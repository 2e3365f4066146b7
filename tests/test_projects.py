"""Projects: folders that are on the machine already. Runs work in them, and OCC itself never changes one."""

from __future__ import annotations

import io
import json
import os
import tarfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from werkzeug.test import TestResponse

from occ_app import wsgi
from occ_app.claude import projects as claude_folders
from occ_app.config import config as configuration
from occ_app.config.config import Config
from occ_app.database.database import Database
from occ_app.errors import ConfigError, Conflict, NotFound
from occ_app.executions import lifecycle
from occ_app.executions import queries as executions
from occ_app.executions.records import Outcome, Request
from occ_app.home import backup, state
from occ_app.supervisor import startup
from occ_app.system.process_identity import own_identity
from occ_app.workspaces import archives, folders, projects, upload_jobs, uploads
from occ_app.workspaces import workspace as workspaces
from tests.conftest import Occ, make_zip, names, output, shared_agent, steps, wait_until
from tests.databases import make_database

TREE = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"  # a snapshot's id
LIMITS = archives.Limits(10_000, 100)


@pytest.fixture
def user(tmp_path: Path) -> Path:
    """The home folder of a person, with a project in it."""
    user = tmp_path / "user"
    (user / "code/app/.git/hooks").mkdir(parents=True)
    (user / "code/app/.git/config").write_text("[core]\n")
    (user / "code/app/main.py").write_text("print('hello')\n")
    (user / "code/app/run.sh").write_text("#!/bin/sh\n")
    (user / "code/app/run.sh").chmod(0o755)
    (user / "code/app/latest").symlink_to("main.py")
    return user


@pytest.fixture
def app_folder(user: Path) -> Path:
    return user / "code/app"


@pytest.fixture
def config(user: Path, tmp_path: Path) -> Config:
    """The settings of an agent that never started."""
    found = configuration.load({"HOME": str(user), "OCC_HOME": str(tmp_path / "occ"), "PATH": os.defpath})
    found.make_folders()
    make_database(found.database)
    state.ensure(found.state)
    return found


@pytest.fixture
def rows(config: Config) -> Iterator[Database]:
    rows = Database(config.database)
    yield rows
    rows.close()


@pytest.fixture
def unchanged(app_folder: Path) -> Iterator[None]:
    """The project is exactly the same afterwards: its files, links, modes, times and inodes."""
    before = picture(app_folder)
    yield
    assert picture(app_folder) == before


def picture(folder: Path) -> dict[str, tuple[Any, ...]]:
    found = {}
    for path in [folder, *folder.rglob("*")]:
        status = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        found[str(path)] = (status.st_mode, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, content)
    return found


def add(rows: Database, config: Config, path: Path, name: str = "app", **terms: Any) -> projects.Project:
    return projects.add(rows, config, name, path, **{"trusted": False, "keys": (), **terms})


def accept(rows: Database, execution_id: str, workspace_id: str = "app", **more: Any) -> None:
    request = Request(execution_id, workspace_id, "x", 9, 9, None, None, None, None, "", **more)
    lifecycle.create(rows, request, max_queue=100)


def test_a_project_is_listed_with_its_path_trust_and_keys(rows: Database, config: Config, app_folder: Path) -> None:
    made = add(rows, config, app_folder, trusted=True, keys=["laptop", "ci", "ci"])
    assert (made.name, made.path, made.trusted, made.keys) == ("app", str(app_folder), True, ("ci", "laptop"))
    again = add(rows, config, app_folder)
    assert (again.generation, again.trusted, again.keys) == (made.generation, False, ())
    assert projects.listing(rows) == [again]
    workspace = workspaces.get(rows, "app")
    assert (workspace.is_project, workspace.alias, workspace.path) == (True, None, str(app_folder))


def test_a_link_to_a_folder_is_added_as_that_folder(rows: Database, config: Config, app_folder: Path) -> None:
    (app_folder.parent / "link").symlink_to(app_folder)
    assert add(rows, config, app_folder.parent / "link").path == str(app_folder)


def test_a_folder_that_is_not_the_person_s_own_is_refused(
    rows: Database, config: Config, user: Path, tmp_path: Path
) -> None:
    (user / ".claude/plans").mkdir(parents=True)
    (user / "to-home").symlink_to(user)
    (user / "a\nb").mkdir()
    (user / "a\u202eb").mkdir()
    (user / os.fsdecode(b"a\xff")).mkdir()
    long = user
    for _ in range(6):
        long = long / ("x" * 200)
    long.mkdir(parents=True)
    alike = Path(f"{config.home}-workspaces-x")
    alike.mkdir()
    refused = [
        *(Path("/"), tmp_path, user, user / "to-home", config.home, config.home / "workspaces", config.home / "logs"),
        *(user / ".claude", user / ".claude/plans", user / "a\nb", user / "a\u202eb", user / os.fsdecode(b"a\xff")),
        *(long, alike, user / "missing", user / "code/app/main.py"),
    ]
    for path in refused:
        with pytest.raises(ConfigError):
            add(rows, config, path)
    assert projects.listing(rows) == []


def test_a_folder_of_another_user_is_refused(
    rows: Database, config: Config, app_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4_000_000)
    with pytest.raises(ConfigError, match="another user"):
        add(rows, config, app_folder)


def test_the_home_of_a_hub_and_the_usual_homes_are_refused(
    rows: Database, config: Config, user: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(user))
    monkeypatch.setenv("OCC_HUB_HOME", str(user / "code/hub"))
    for home in ("code/hub", ".occ/x", ".occ-hub"):
        (user / home).mkdir(parents=True)
        with pytest.raises(ConfigError):
            add(rows, config, user / home)
    with pytest.raises(ConfigError):
        add(rows, config, user / "code")


def test_projects_do_not_overlap(rows: Database, config: Config, user: Path, app_folder: Path) -> None:
    add(rows, config, app_folder)
    (user / "code/app-2").mkdir()
    for path in (app_folder, app_folder / ".git", user / "code"):
        with pytest.raises(ConfigError, match="the project app"):
            add(rows, config, path, "other")
    add(rows, config, user / "code/app-2", "other")


def test_a_name_in_use_is_refused(rows: Database, config: Config, user: Path, app_folder: Path) -> None:
    upload(rows, config, "work")
    (user / "code/other").mkdir()
    with pytest.raises(ConfigError, match="uploaded workspace"):
        add(rows, config, app_folder, "work")
    add(rows, config, app_folder)
    with pytest.raises(ConfigError, match="another project"):
        add(rows, config, user / "code/other", "app")


def test_what_an_agent_reports_is_bounded(
    rows: Database, config: Config, user: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert projects.MAX_REPORT_BYTES < 1 << 19  # half of the largest registration that a hub reads
    monkeypatch.setattr(projects, "MAX_PROJECTS", 3)
    monkeypatch.setattr(projects, "MAX_REPORT_BYTES", 20_000)
    for number in range(projects.MAX_PROJECTS):
        (user / f"p{number}").mkdir()
        add(rows, config, user / f"p{number}", f"p{number}")
    (user / "more").mkdir()
    with pytest.raises(ConfigError, match="limit"):
        add(rows, config, user / "more", "more")
    with pytest.raises(ConfigError, match="keys"):
        add(rows, config, user / "p0", "p0", keys=[f"k{number}" for number in range(projects.MAX_KEYS + 1)])
    keys = [f"{key}".rjust(100, "\u2603") for key in range(projects.MAX_KEYS)]
    refused = 0
    for number in range(projects.MAX_PROJECTS):
        try:
            add(rows, config, user / f"p{number}", f"p{number}", keys=keys)
        except ConfigError:
            refused += 1
    assert 0 < refused < projects.MAX_PROJECTS
    assert len(json.dumps(projects.report(rows))) <= projects.MAX_REPORT_BYTES


def upload(rows: Database, config: Config, workspace_id: str, policy: str = "overwrite") -> dict[str, Any]:
    """An upload as the control process makes it; returns its result."""
    archive = config.run / "upload.zip"
    archive.write_bytes(make_zip({"a.txt": "a"}).getvalue())
    change = {"base": TREE, "deleted": ("main.py",)} if policy == "update" else {}
    number = upload_jobs.submit(rows, upload_jobs.Upload(workspace_id, workspace_id, "", policy, archive, **change))
    uploads.run(rows, number, config.workspaces, LIMITS, claude_folders.claude_folder(config.cli_environment))
    return upload_jobs.result(rows, number)[1] or {}


@pytest.mark.usefixtures("unchanged")
def test_nothing_that_makes_or_removes_workspaces_touches_a_project(
    rows: Database, config: Config, app_folder: Path
) -> None:
    made = add(rows, config, app_folder)
    sessions = claude_folders.folders(claude_folders.claude_folder(config.cli_environment), app_folder)[0]
    sessions.mkdir(parents=True)
    with rows.write() as connection:  # so that an update would begin where the project is
        connection.execute("UPDATE workspaces SET snapshot = :tree", {"tree": TREE})
    for policy in ("overwrite", "reuse", "update"):
        assert upload(rows, config, "app", policy)["code"] == "WORKSPACE_IS_FOLDER"
    claude = claude_folders.claude_folder(config.cli_environment)
    for generation in (None, made.generation):
        with pytest.raises(Conflict, match="project"):
            workspaces.delete(rows, "app", config.workspaces, lifecycle.end_waiting, generation, claude)
    projects.remove(rows, "app", lifecycle.end_waiting)
    assert sessions.is_dir()
    assert list(config.workspaces.iterdir()) == []


@pytest.mark.usefixtures("unchanged")
def test_a_start_touches_no_project(rows: Database, config: Config, app_folder: Path, tmp_path: Path) -> None:
    """Also with remains of an upload of the same id, in a home that was moved, and with a workspace of its name."""
    upload(rows, config, "other")
    archive = config.run / "upload.zip"
    numbers = [upload_jobs.submit(rows, upload_jobs.Upload("app", "app", "", "overwrite", archive)) for _ in range(2)]
    add(rows, config, app_folder)
    with rows.write() as connection:  # a workspace of another id in a folder of the project's name
        connection.execute("UPDATE workspaces SET path = ? WHERE workspace_id = 'other'", (f"{config.workspaces}/app",))
    (config.workspaces / "other").rename(config.workspaces / "app")
    inode = (config.workspaces / "app").stat().st_ino
    (config.workspaces / f".incoming-{numbers[0]}-1").mkdir()
    (config.workspaces / f".aside-{numbers[1]}-1").mkdir()
    (config.workspaces / ".deleted-app-1234abcd").mkdir()
    moved = replace(config, home=tmp_path / "moved")
    config.home.rename(moved.home)
    with startup.lock(moved):
        startup.clean(moved, 0.0)
        assert startup.prepare_database(moved, lambda: None) == []
    assert workspaces.get(Database(moved.database), "app").path == str(app_folder)
    assert (moved.workspaces / "app").stat().st_ino == inode
    assert not list(moved.workspaces.glob("app-g*"))


@pytest.mark.usefixtures("unchanged")
def test_a_backup_holds_no_file_of_a_project_and_its_restore_touches_none(
    rows: Database, config: Config, app_folder: Path, tmp_path: Path
) -> None:
    add(rows, config, app_folder)
    backup.write(config, tmp_path / "backup.tar.gz")
    restored = replace(config, home=tmp_path / "restored")
    with tarfile.open(tmp_path / "backup.tar.gz") as archive:
        assert not [name for name in archive.getnames() if "main.py" in name]
        archive.extractall(restored.home, filter="data")
    restored.make_folders()
    assert startup.prepare_database(restored, lambda: None) == []
    found = Database(restored.database)
    assert [project.path for project in projects.listing(found)] == [str(app_folder)]


def test_removing_a_project_ends_what_waits_and_waits_for_what_runs(
    rows: Database, config: Config, app_folder: Path
) -> None:
    add(rows, config, app_folder, keys=["laptop"])
    accept(rows, "first")
    running = lifecycle.claim(rows, own_identity())
    assert running is not None
    with pytest.raises(Conflict, match="first"):
        projects.remove(rows, "app", lifecycle.end_waiting)
    accept(rows, "second")
    assert lifecycle.claim(rows, own_identity()) is None  # one at a time
    lifecycle.finish(rows, running.number, Outcome.failure("INTERNAL", "x"))
    ended = projects.remove(rows, "app", lifecycle.end_waiting)
    second = executions.get(rows, "second")
    assert (ended, second.state, second.error_code) == ([second.number], "failed", "WORKSPACE_MISSING")
    assert executions.get(rows, "first").prompt == "x"
    with pytest.raises(NotFound):
        projects.remove(rows, "app", lifecycle.end_waiting)
    again = add(rows, config, app_folder)
    assert (again.keys, again.generation > running.workspace_generation) == ((), True)


def test_a_request_can_name_the_number_of_the_workspace_it_means(
    rows: Database, config: Config, app_folder: Path
) -> None:
    made = add(rows, config, app_folder)
    accept(rows, "one", workspace_generation=made.generation)
    with pytest.raises(NotFound):
        accept(rows, "two", workspace_generation=made.generation + 1)


def test_a_folder_that_was_replaced_or_moved_is_refused_at_each_run(config: Config, app_folder: Path) -> None:
    assert folders.problem(app_folder, config) is None
    app_folder.rename(app_folder.with_name("moved"))
    assert "gone" in str(folders.problem(app_folder, config))
    app_folder.symlink_to(app_folder.with_name("moved"))
    assert "link" in str(folders.problem(app_folder, config))
    inner = app_folder.parent.with_name("elsewhere")
    app_folder.unlink()
    app_folder.with_name("moved").rename(app_folder)
    app_folder.parent.rename(inner)
    app_folder.parent.symlink_to(inner)
    assert "link" in str(folders.problem(app_folder, config))


@pytest.fixture
def agent(config: Config) -> Iterator[Flask]:
    """The agent's application, without a server."""
    app = wsgi.make_app(config)
    yield app
    app.occ_on_stop()  # type: ignore[attr-defined]  # the server calls it
    app.occ_on_end()  # type: ignore[attr-defined]  # the server calls it


@pytest.fixture
def call(agent: Flask, config: Config) -> Callable[..., TestResponse]:
    known = state.load(config.state)
    assert known is not None

    def call(method: str, path: str, **options: Any) -> TestResponse:
        headers = {"Authorization": f"Bearer {known.token}"}
        return agent.test_client().open(path, method=method, headers=headers, **options)

    return call


@pytest.mark.usefixtures("unchanged")
def test_the_api_lists_a_project_and_refuses_to_replace_delete_or_archive_it(
    rows: Database, config: Config, app_folder: Path, call: Callable[..., TestResponse]
) -> None:
    add(rows, config, app_folder)
    record = call("GET", "/workspaces/app").json
    assert record is not None
    assert (record["source"], record["path"], record["alias"]) == ("folder", str(app_folder), None)
    assert call("GET", "/workspaces").json == {"workspaces": [record]}
    form = {"workspaceId": "app", "name": "app", "processPolicy": "overwrite"}
    for policy in ("overwrite", "reuse", "update"):
        files = {"zip": (io.BytesIO(make_zip({"a": "a"}).getvalue()), "a.zip")}
        change = {"base": TREE, "deletions": '["main.py"]'} if policy == "update" else {}
        refused = call("POST", "/workspace/init", data=form | {"processPolicy": policy} | files | change)
        assert (refused.status_code, (refused.json or {})["code"]) == (409, "WORKSPACE_IS_FOLDER")
    for method, path in (
        ("DELETE", "/workspaces/app"),
        ("DELETE", f"/workspaces/app?generation={record['generation']}"),
        ("GET", "/workspaces/app/archive"),
    ):
        refused = call(method, path)
        assert (refused.status_code, (refused.json or {})["code"]) == (409, "WORKSPACE_IS_FOLDER"), (method, path)
    assert len(projects.listing(rows)) == 1


def test_nothing_of_the_api_adds_or_removes_a_project(agent: Flask) -> None:
    assert not [rule.rule for rule in agent.url_map.iter_rules() if "project" in rule.rule]


def test_a_session_belongs_to_the_folder_that_its_transcript_names(app_folder: Path, tmp_path: Path) -> None:
    claude = tmp_path / "claude"
    session = str(uuid.uuid4())
    kept = claude_folders.folders(claude, app_folder)[0]
    kept.mkdir(parents=True)
    (kept / f"{session}.jsonl").write_text(
        'no json\n["cwd"]\n' + json.dumps({"type": "queue-operation"}) + "\n" + json.dumps({"cwd": str(app_folder)})
    )
    assert claude_folders.has_session(claude, app_folder, session)
    assert not claude_folders.has_session(claude, app_folder, str(uuid.uuid4()))
    alike = app_folder.parent / "app."  # which the CLI keeps in the same folder as `app-`
    (claude / "projects" / claude_folders.name_of(str(alike))).mkdir(parents=True)
    other = claude / "projects" / claude_folders.name_of(str(alike)) / f"{session}.jsonl"
    other.write_text(json.dumps({"cwd": f"{app_folder}-"}))
    assert not claude_folders.has_session(claude, alike, session)


# With a running agent ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Occ]:
    """An agent that runs all the time; each test makes its own project."""
    folder = tmp_path_factory.mktemp("agent")
    user = folder / "user"
    user.mkdir()
    with shared_agent(folder, HOME=str(user)) as occ:
        yield occ


@pytest.fixture
def project(running: Occ, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder that the running agent has as the project `app`."""
    folder = Path(running.environment["HOME"]) / f"{request.node.name}"
    folder.mkdir()
    running.command("projects", "add", str(folder), "--name", "app")
    yield folder
    running.command("projects", "remove", "app", check=False)


def test_runs_work_in_the_folder_itself(running: Occ, project: Path) -> None:
    done = running.command("run", "--project", "app", steps({"write": "made.txt", "text": "made"}))
    assert "--workspace app" in done.stderr
    assert (project / "made.txt").read_text() == "made"
    listed = json.loads(running.command("projects", "list", "--json").stdout)["projects"]
    assert [(each["name"], each["path"], each["trusted"]) for each in listed] == [("app", str(project), False)]
    shown = running.command("workspaces", "list").stdout
    assert "project" in next(line for line in shown.splitlines() if line.startswith("app"))
    refused = running.command("workspaces", "remove", "app", check=False)
    assert (refused.returncode, "project" in refused.stderr) == (4, True)


def test_a_name_that_is_no_project_is_refused_before_anything_runs(running: Occ) -> None:
    running.workspace("work")
    for name in ("work", "nothing"):
        done = running.command("run", "--project", name, "x", check=False)
        assert (done.returncode, "project" in done.stderr) == (4, True)
    for more in (["--dir", "."], ["--workspace", "work"]):
        assert running.command("run", "--project", "app", *more, "x", check=False).returncode == 2


def test_a_folder_that_is_gone_or_a_link_ends_the_execution(running: Occ, project: Path) -> None:
    moved = project.with_name("moved-away")
    project.rename(moved)
    assert running.run("x", "app")[-1].data["code"] == "WORKSPACE_MISSING"
    project.symlink_to(moved)
    final = running.run(steps({"write": "made.txt", "text": "x"}), "app")[-1].data
    assert (final["code"], "link" in final["message"]) == ("WORKSPACE_MISSING", True)
    assert not (moved / "made.txt").exists()
    project.unlink()
    moved.rename(project)
    assert names(running.run("x", "app"))[-1] == "complete"


def test_a_folder_that_a_link_replaces_during_a_run_is_not_read_after_it(running: Occ, tmp_path: Path) -> None:
    """Neither its changes nor its files are those of the folder that the link leads to."""
    parent = Path(running.environment["HOME"]) / "replaced"
    (parent / "app").mkdir(parents=True)
    running.command("projects", "add", str(parent / "app"), "--name", "replaced")
    execution_id, flag = f"r-{uuid.uuid4()}", tmp_path / "go"
    prompt = steps({"say": "x"}, {"wait": str(flag)})
    stream = running.client.execute("replaced", prompt, executionId=execution_id)
    while next(stream).name != "output":
        pass
    parent.rename(tmp_path / "was-there")
    (tmp_path / "other/app").mkdir(parents=True)
    (tmp_path / "other/app/secret.txt").write_text("SECRET")
    parent.symlink_to(tmp_path / "other")
    flag.touch()
    assert names(list(stream))[-1] == "complete"
    record = wait_until(
        lambda: found if (found := running.client.execution(execution_id))["changesReason"] != "pending" else None,
        "the changes are looked for",
    )
    assert (record["changes"], record["changesReason"]) == (None, "gone")
    for path in ("/files", "/files/secret.txt"):
        reply = running.request("GET", f"/workspaces/replaced{path}")
        assert (reply.status, b"SECRET" in reply.data) == (404, False), path
    running.command("projects", "remove", "replaced")


def test_a_session_that_began_in_a_terminal_is_resumed_in_its_project_alone(running: Occ, project: Path) -> None:
    session = str(uuid.uuid4())
    claude = Path(running.environment["HOME"], ".claude")
    kept = claude_folders.folders(claude, project)[0]
    kept.mkdir(parents=True)
    (kept / f"{session}.jsonl").write_text(json.dumps({"cwd": str(project)}) + "\n")
    assert names(running.run("go on", "app", sessionId=session))[-1] == "complete"
    assert running.run("go on", "app", sessionId=str(uuid.uuid4()))[-1].data["code"] == "SESSION_NOT_FOUND"
    running.workspace("work")
    assert running.run("go on", "work", sessionId=session)[-1].data["code"] == "SESSION_NOT_FOUND"


def test_removing_a_project_tells_the_followers_of_what_waits(running: Occ, project: Path) -> None:
    flag = project / "go"
    running.client.upload("busy", make_zip({"a": "a"}))
    with running.database.read() as connection:
        assert connection.execute("SELECT count(*) FROM executions WHERE state = 'running'").fetchone()[0] == 0
    first = running.client.execute("busy", steps({"say": "x"}, {"wait": str(flag)}), executionId=f"b-{uuid.uuid4()}")
    while next(first).name != "output":
        pass
    waiting = running.client.execute("app", "x", executionId=f"w-{uuid.uuid4()}")
    assert next(waiting).name == "queued"
    running.command("projects", "remove", "app")
    assert [event.data.get("code") for event in waiting] == ["WORKSPACE_MISSING"]
    flag.touch()
    assert output(list(first)) == ""
    assert project.is_dir()


def test_a_project_is_trusted_by_its_own_flag_alone(occ: Occ, tmp_path: Path) -> None:
    """An agent that trusts uploads does not trust a project, and one that does not can trust one."""
    program = tmp_path / "claude"
    program.write_text(
        '#!/bin/sh\necho "$CLAUDE_CODE_DISABLE_AUTO_MEMORY $@" > args.txt\n'
        f'exec {occ.environment["OCC_CLAUDE_BIN"]} "$@"\n'
    )
    program.chmod(0o755)
    occ.start("--trust-workspaces", OCC_CLAUDE_BIN=str(program))
    for name in ("plain", "trusted"):
        (tmp_path / "user" / name).mkdir()
    occ.command("projects", "add", str(tmp_path / "user/plain"))
    occ.command("projects", "add", str(tmp_path / "user/trusted"), "--trust")
    occ.workspace("upload")
    for name, folder in (
        ("plain", tmp_path / "user"),
        ("trusted", tmp_path / "user"),
        ("upload", occ.home / "workspaces"),
    ):
        assert names(occ.run("x", name))[-1] == "complete"
        flags = (folder / name / "args.txt").read_text()
        assert ("--strict-mcp-config" in flags, "--setting-sources user" in flags, flags.startswith("1 ")) == (
            (name == "plain",) * 3
        )


def test_projects_are_managed_without_a_daemon(occ: Occ, tmp_path: Path) -> None:
    """Before the first start, too."""
    folder = tmp_path / "user/app"
    folder.mkdir()
    assert occ.command("projects", "list").stdout.startswith("No projects")
    occ.command("projects", "add", str(folder), "--trust", "--key", "laptop")
    line = occ.command("projects", "list").stdout.splitlines()[1].split()
    assert line == ["app", "yes", "-", "laptop", str(folder)]
    refused = occ.command("projects", "add", str(tmp_path / "user"), check=False)
    assert (refused.returncode, "home folder" in refused.stderr) == (2, True)
    (occ.home / "config.toml").write_text("http_port = 'many'\n")
    refused = occ.command("projects", "add", str(folder), check=False)
    assert (refused.returncode, "http_port" in refused.stderr) == (2, True)
    occ.command("projects", "remove", "app")
    assert occ.command("projects", "remove", "app", check=False).returncode == 4
    assert wait_until(folder.is_dir, "the folder stays")
