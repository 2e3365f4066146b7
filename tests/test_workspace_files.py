"""The files of workspaces and the changes of executions over the API, on one running agent."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from occ_app.errors import NotFound
from occ_app.executions import changes as rows
from occ_app.workspaces import open_files
from tests.conftest import Occ, make_zip, shared_agent, steps, wait_until
from tests.promises import kill


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Occ]:
    with shared_agent(tmp_path_factory.mktemp("files")) as agent:
        yield agent


def sh(command: str) -> str:
    """A prompt that makes the stand-in CLI run a command in the workspace."""
    return steps({"sh": command}, {"say": "done"})


def get(agent: Occ, path: str, **headers: str) -> Any:
    return agent.request("GET", path, **headers)


def changed(agent: Occ, execution_id: str) -> dict[str, Any]:
    reply = get(agent, f"/executions/{execution_id}/changes")
    assert reply.status == 200, reply.data
    found: dict[str, Any] = reply.json()
    return found


def test_an_execution_tells_its_changes(agent: Occ, tmp_path: Path) -> None:
    uploaded = agent.client.upload("told", make_zip({"a.txt": "one\n", "gone.txt": "x\n", "b/c.txt": "c\n"}))
    assert len(uploaded["snapshot"]) == 40
    agent.run(
        sh("echo two > a.txt; rm gone.txt; mkdir n; echo new > n/é.txt; chmod +x b/c.txt"), "told", executionId="told"
    )
    found = changed(agent, "told")
    record = agent.client.execution("told")
    sums = {"files": 4, "additions": 2, "deletions": 2, "truncated": False, "exact": True}
    assert (record["changes"], record["changesReason"]) == (sums, None)
    assert found | sums == found
    assert (found["executionId"], found["workspaceId"], found["base"]) == ("told", "told", uploaded["snapshot"])
    assert [(entry["path"], entry["status"]) for entry in found["entries"]] == [
        ("a.txt", "modified"),
        ("b/c.txt", "modified"),
        ("gone.txt", "deleted"),
        ("n/é.txt", "added"),
    ]
    assert agent.client.workspace("told")["snapshot"] == found["result"]
    reply = get(agent, "/executions/told/diff")
    assert reply.headers["Content-Type"].startswith("text/x-diff")
    folder = tmp_path / "copy"
    (folder / "b").mkdir(parents=True)
    for name, text in {"a.txt": "one\n", "gone.txt": "x\n", "b/c.txt": "c\n"}.items():
        (folder / name).write_text(text)
    subprocess.run(["git", "apply", "--binary", "-"], cwd=folder, input=reply.data, check=True)
    assert (folder / "a.txt").read_text() == "two\n"
    assert (folder / "n/é.txt").read_text() == "new\n"
    assert os.access(folder / "b/c.txt", os.X_OK)
    assert not (folder / "gone.txt").exists()
    only = get(agent, f"/executions/told/diff?path={quote('n/é.txt')}").data
    assert (only.count(b"diff --git"), b"+new" in only) == (1, True)
    assert get(agent, "/executions/told/diff?path=b").json()["code"] == "FILE_NOT_FOUND"


def test_a_file_is_there_as_an_execution_found_and_left_it(agent: Occ) -> None:
    agent.client.upload("sides", make_zip({"a.txt": "one\n", "gone.txt": "x\n"}))
    agent.run(sh("echo two > a.txt; rm gone.txt; ln -s a.txt link"), "sides", executionId="sides")
    changed(agent, "sides")
    assert get(agent, "/executions/sides/files/a.txt?at=start").data == b"one\n"
    reply = get(agent, "/executions/sides/files/a.txt")
    assert (reply.data, reply.headers["OCC-Mode"]) == (b"two\n", "100644")
    assert reply.headers["Content-Disposition"].startswith("attachment")
    assert get(agent, "/executions/sides/files/gone.txt?at=start").data == b"x\n"
    link = get(agent, "/executions/sides/files/link?at=end")
    assert (link.data, link.headers["OCC-Mode"]) == (b"a.txt", "120000")
    for path in ("gone.txt?at=end", "nothing", "a.txt/x"):
        assert get(agent, f"/executions/sides/files/{path}").status == 404
    assert get(agent, "/executions/sides/files/a.txt?at=noon").status == 422


def test_why_there_are_no_changes(agent: Occ) -> None:
    agent.client.upload("why", make_zip({"a.txt": "a"}))
    stream = agent.client.execute("why", steps({"say": "on"}, {"wait": "go"}), executionId="why")
    while next(stream).name != "output":
        pass
    assert agent.client.execution("why")["changesReason"] == "pending"
    reply = get(agent, "/executions/why/changes")
    assert (reply.status, reply.json()["code"], reply.json()["details"]["reason"]) == (
        404,
        "CHANGES_NOT_FOUND",
        "pending",
    )
    (Path(agent.client.workspace("why")["path"]) / "go").touch()
    assert list(stream)[-1].name == "complete"
    assert changed(agent, "why")["files"] == 1
    assert get(agent, "/executions/nobody/changes").json()["code"] == "EXECUTION_NOT_FOUND"
    list(agent.client.execute("why", steps({"sh": "truncate -s 3G huge"}), executionId="large"))
    record = wait_until(
        lambda: (found := agent.client.execution("large"))["changesReason"] != "pending" and found, "the reason"
    )
    assert (record["changes"], record["changesReason"]) == (None, "too large")
    assert agent.client.workspace("why")["snapshot"] is None
    agent.client.upload("why", make_zip({"a.txt": "b"}))  # the workspace is free


def test_the_next_execution_begins_when_the_changes_are_stored(agent: Occ) -> None:
    agent.client.upload("next", make_zip({"a.txt": "0\n"}))
    for number in range(1, 6):
        list(agent.client.execute("next", sh(f"echo {number} > a.txt"), executionId=f"next-{number}"))
    found = [changed(agent, f"next-{number}") for number in range(1, 6)]
    assert all(before["result"] == after["base"] for before, after in itertools.pairwise(found))
    assert not rows.holding(agent.database)


def test_changes_of_an_execution_that_failed(agent: Occ) -> None:
    agent.client.upload("failed", make_zip({"a.txt": "a"}))
    list(agent.client.execute("failed", steps({"write": "new", "text": "n"}, {"exit": 3}), executionId="failed"))
    assert [entry["path"] for entry in changed(agent, "failed")["entries"]] == ["new"]


def test_the_files_of_a_workspace_are_listed_and_fetched(agent: Occ) -> None:
    agent.client.upload("files", make_zip({"a.txt": "0123456789", "b/c.txt": "c", "z": ""}))
    root = Path(agent.client.workspace("files")["path"])
    os.symlink("/etc/hostname", root / "link")
    os.symlink("/etc", root / "out")
    os.mkfifo(root / "pipe")
    found = get(agent, "/workspaces/files/files").json()
    assert [(entry["name"], entry["type"]) for entry in found["entries"]] == [
        ("a.txt", "file"),
        ("b", "folder"),
        ("link", "link"),
        ("out", "link"),
        ("z", "file"),
    ]
    first = found["entries"][0]
    assert (first["size"], first["mode"], found["truncated"]) == (10, "100600", False)
    assert first["modifiedAt"].endswith("Z")
    assert [entry["name"] for entry in get(agent, "/workspaces/files/files?path=b").json()["entries"]] == ["c.txt"]
    whole = get(agent, "/workspaces/files/files/a.txt")
    assert (whole.status, whole.data) == (200, b"0123456789")
    assert whole.headers["X-Content-Type-Options"] == "nosniff"
    assert whole.headers["Content-Disposition"] == "attachment; filename*=UTF-8''a.txt"
    part = get(agent, "/workspaces/files/files/a.txt", Range="bytes=2-4")
    assert (part.status, part.data, part.headers["Content-Range"]) == (206, b"234", "bytes 2-4/10")
    assert get(agent, "/workspaces/files/files/a.txt", Range="bytes=20-").status == 422
    assert get(agent, "/workspaces/files/files/z").data == b""
    for path in ("link", "out/hostname", "pipe", "b", "b//c.txt", "nobody", "a%00b", "x" * 300, "a/"):
        reply = get(agent, f"/workspaces/files/files/{path}")
        assert (reply.status, reply.json()["code"]) == (404, "FILE_NOT_FOUND"), path
    for path in ("out", "link", "a.txt", "..", "b/..", "/", "nobody"):
        assert get(agent, f"/workspaces/files/files?path={path}").json()["code"] == "FILE_NOT_FOUND", path
    for path in ("../../state.json", "..", "b/../a.txt", "./a.txt", "/etc/hostname", "b/", ""):  # clients resolve dots
        with pytest.raises(NotFound):
            open_files.open_file(root, path, project=False)
    assert get(agent, "/workspaces/other/files").json()["code"] == "WORKSPACE_NOT_FOUND"


def test_a_file_over_the_limit_is_sent_in_ranges(agent: Occ) -> None:
    agent.client.upload("large", make_zip({"a.txt": "a"}))
    with (Path(agent.client.workspace("large")["path"]) / "huge").open("wb") as file:
        file.truncate(100_000_001)
    reply = get(agent, "/workspaces/large/files/huge")
    assert (reply.status, reply.json()["code"], reply.json()["details"]["size"]) == (413, "FILE_TOO_LARGE", 100_000_001)
    assert get(agent, "/workspaces/large/files/huge", Range="bytes=100000000-").data == b"\0"


def test_of_a_project_no_ignored_file_and_nothing_of_git_is_shown(agent: Occ, tmp_path: Path) -> None:
    project = tmp_path / "project"
    files = {
        ".gitignore": ".env\nsecret/\n*.key\n",
        ".env": "S",
        "a.txt": "a",
        "secret/x": "S",
        "d/.gitignore": "own\n",
    }
    for name, text in (files | {"d/own": "S", "d/b.key": "S", "d/c.txt": "c", "odd/.GIT/config": "S"}).items():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(text)
    subprocess.run(["git", "init", "-q"], cwd=project, check=True)
    agent.command("projects", "add", str(project), "--name", "shown")
    listed = [entry["name"] for entry in get(agent, "/workspaces/shown/files").json()["entries"]]
    assert listed == [".gitignore", "a.txt", "d", "odd"]
    listed = [entry["name"] for entry in get(agent, "/workspaces/shown/files?path=d").json()["entries"]]
    assert listed == [".gitignore", "c.txt"]
    assert get(agent, "/workspaces/shown/files/d/c.txt").data == b"c"
    for path in (".env", "secret/x", "d/own", "d/b.key", ".git/config", ".git/HEAD", "odd/.GIT/config"):
        reply = get(agent, f"/workspaces/shown/files/{path}")
        assert (reply.status, b"S" in json.dumps(reply.json()["message"]).encode()) == (404, False), path
    for path in ("secret", ".git", "odd/.GIT"):
        assert get(agent, f"/workspaces/shown/files?path={path}").status == 404
    agent.run(sh("echo more >> a.txt; echo S2 > .env"), "shown", executionId="in-project")
    assert [entry["path"] for entry in changed(agent, "in-project")["entries"]] == ["a.txt"]
    assert get(agent, "/executions/in-project/files/.env").status == 404
    assert not (project / ".git/occ-index.json").exists()


def test_an_execution_is_undone_over_the_api(agent: Occ) -> None:
    agent.client.upload("undo", make_zip({"a.txt": "one\n", "b.txt": "b\n"}))
    agent.run(sh("echo two > a.txt; rm b.txt; echo n > new"), "undo", executionId="undo")
    record = changed(agent, "undo")
    root = Path(agent.client.workspace("undo")["path"])

    def restore(**body: Any) -> Any:
        return agent.request(
            "POST", "/workspaces/undo/restore", json_body={"executionId": "undo", "to": "start"} | body
        )

    (root / "a.txt").write_text("mine\n")
    conflict = restore()
    assert (conflict.status, conflict.json()["code"]) == (409, "RESTORE_CONFLICT")
    assert conflict.json()["details"]["files"] == ["a.txt"]
    assert not (root / "b.txt").exists()
    (root / "a.txt").write_text("two\n")
    done = restore().json()
    assert (done["workspaceId"], done["files"]) == ("undo", 3)
    assert (done["base"], done["result"]) == (record["result"], record["base"])
    assert sorted(path.name for path in root.iterdir()) == ["a.txt", "b.txt"]
    assert agent.client.workspace("undo")["snapshot"] == record["base"]
    assert restore(executionId=done["restoreId"]).json()["files"] == 3
    assert (root / "a.txt").read_text() == "two\n"
    for body, status in (({"to": "noon"}, 422), ({"force": 1}, 422), ({"executionId": "told"}, 404), ({"x": 1}, 422)):
        assert restore(**body).status == status


def test_a_deleted_workspace_takes_its_snapshots_with_it(agent: Occ) -> None:
    agent.client.upload("deleted", make_zip({"a.txt": "one\n"}))
    agent.run(sh("echo two > a.txt"), "deleted", executionId="deleted")
    number = agent.client.workspace("deleted")["generation"]
    assert changed(agent, "deleted")["files"] == 1
    assert (agent.home / f"snapshots/{number}.git").exists()
    agent.client.delete_workspace("deleted")
    assert not (agent.home / f"snapshots/{number}.git").exists()
    refused = get(agent, "/executions/deleted/diff")
    assert (refused.status, refused.json()["code"]) == (404, "CHANGES_NOT_FOUND")
    assert agent.client.execution("deleted")["changes"]["files"] == 1
    agent.client.upload("deleted", make_zip({"a.txt": "one\n"}))


@pytest.mark.parametrize("victim", ["a worker", "everything"])
def test_the_changes_of_a_run_that_was_killed_are_recorded(agent: Occ, victim: str) -> None:
    workspace = victim.replace(" ", "-")
    agent.client.upload(workspace, make_zip({"a.txt": "one\n"}))
    prompt = steps({"sh": "echo two > a.txt"}, {"say": "on"}, {"sleep": 600})
    stream = agent.client.execute(workspace, prompt, executionId=workspace)
    while next(stream).name != "output":
        pass
    assert kill(agent, victim)
    if victim == "everything":
        agent.command("start")
        agent.attach()
    over = wait_until(
        lambda: (found := agent.client.execution(workspace))["state"] == "failed" and found, "the run to be over", 60
    )
    assert over["errorCode"] == "WORKER_LOST"
    assert [entry["path"] for entry in changed(agent, workspace)["entries"]] == ["a.txt"]
    agent.client.upload(workspace, make_zip({"a.txt": "three\n"}))


def test_an_agent_without_git_runs_and_says_so(occ: Occ, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    occ.start(PATH=str(tmp_path / "empty"))
    uploaded = occ.client.upload("work", make_zip({"a.txt": "one\n"}))
    assert uploaded["snapshot"] is None
    events = occ.run(steps({"write": "a.txt", "text": "two\n"}), executionId="e1")
    assert events[-1].name == "complete"
    record = occ.client.execution("e1")
    assert (record["changes"], record["changesReason"]) == (None, "no git")
    refused = occ.request("GET", "/executions/e1/diff")
    assert (refused.status, refused.json()["details"]["reason"]) == (404, "no git")
    health = occ.client.health()
    assert health["snapshots"]["git"] is False
    assert [problem for problem in health["problems"] if "git" in problem]
    assert occ.request("GET", "/workspaces/work/files/a.txt").data == b"two\n"
    occ.client.upload("work", make_zip({"a.txt": "three\n"}))
