"""Workspaces over the API and by command: made, kept, replaced, listed, fetched, removed."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import sqlite3
import stat
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from occ_app.errors import Refused
from occ_app.executions import lifecycle
from occ_app.workspaces import archives, upload_jobs, uploads
from occ_app.workspaces import workspace as workspaces
from tests.conftest import Occ, make_zip, steps, wait_until


def tree(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def place(agent: Occ, workspace_id: str = "work") -> Path:
    return agent.home / "workspaces" / workspace_id


def await_removal(agent: Occ) -> None:
    """Wait until the tree that an upload replaced is gone: it is removed after the answer."""
    wait_until(lambda: [path.name for path in (agent.home / "workspaces").iterdir()] == ["work"], "no more to be there")


def test_an_upload_becomes_a_folder_and_says_what_is_in_it(agent: Occ) -> None:
    files = {"a.txt": "one", "deep/er/b.txt": "two"}
    reply = agent.client.upload("new", make_zip(files), name="A name", description="words")
    assert len(reply.pop("snapshot")) == 40
    reply.pop("generation", None)
    assert reply == {
        "status": "success",
        "workspaceId": "new",
        "path": str(place(agent, "new")),
        "reused": False,
        "files": 2,
        "bytes": 6,
        "skipped": [],
        "stripped": None,
    }
    assert tree(place(agent, "new")) == files
    record = agent.client.workspace("new")
    assert (record["name"], record["description"], record["files"], record["bytes"]) == ("A name", "words", 2, 6)
    assert [each["workspaceId"] for each in agent.client.workspaces()] == ["new", "work"]


def test_overwrite_replaces_the_whole_tree_at_the_same_path(agent: Occ) -> None:
    agent.client.upload("work", make_zip({"old.txt": "x", "both.txt": "old"}))
    reply = agent.client.upload("work", make_zip({"new.txt": "y", "both.txt": "new"}))
    assert not reply["reused"]
    assert tree(place(agent)) == {"new.txt": "y", "both.txt": "new"}
    await_removal(agent)


def test_reuse_keeps_what_is_there_and_only_checks_the_zip(agent: Occ) -> None:
    before = tree(place(agent))
    reply = agent.client.upload("work", make_zip({"other.txt": "y"}), policy="reuse")
    assert reply["reused"] is True
    assert tree(place(agent)) == before
    with pytest.raises(Refused) as refusal:
        agent.client.upload("work", make_zip({"../x": "y"}), policy="reuse")
    assert refusal.value.code == "ZIP_PATH"
    assert agent.client.upload("fresh", make_zip({"other.txt": "y"}), policy="reuse")["reused"] is False


def test_a_failed_overwrite_leaves_the_old_tree(agent: Occ) -> None:
    before = tree(place(agent))
    broken = make_zip({"good.txt": "fine", "b.txt": "x" * 5000}).read()
    broken = broken.replace(b"b.txt", b"c.txt", 1)  # the two names of an entry differ
    with pytest.raises(Refused) as refusal:
        agent.client.upload("work", io.BytesIO(broken))
    assert refusal.value.code.startswith("ZIP_")
    assert tree(place(agent)) == before
    await_removal(agent)


def test_a_workspace_in_use_is_neither_replaced_nor_removed(agent: Occ, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    stream = agent.client.execute("work", steps({"say": "on"}, {"wait": str(gate)}))
    wait_until(lambda: next(stream).name == "output", "it to be under way")
    for attempt in (
        lambda: agent.client.upload("work", make_zip({"a": "b"})),
        lambda: agent.client.delete_workspace("work"),
    ):
        with pytest.raises(Refused) as refusal:
            attempt()
        assert (refusal.value.status, refusal.value.code) == (409, "WORKSPACE_BUSY")
    assert agent.client.upload("work", make_zip({"a": "b"}), policy="reuse")["reused"] is True
    gate.touch()
    assert list(stream)[-1].name == "complete"
    agent.client.delete_workspace("work")
    assert not place(agent).exists()


def test_a_single_top_folder_is_left_out_when_the_form_asks_for_it(agent: Occ) -> None:
    files = {"repo-main/a.txt": "x", "repo-main/.mcp.json": "{}"}
    reply = agent.client.upload("work", make_zip(files), strip_root=True)
    assert (reply["stripped"], reply["files"]) == ("repo-main", 1)
    assert (place(agent) / "a.txt").read_text() == "x"
    assert [entry["path"] for entry in reply["skipped"]] == [".mcp.json"]
    reply = agent.client.upload("work", make_zip(files))
    assert reply["stripped"] is None
    assert (place(agent) / "repo-main/a.txt").read_text() == "x"


def test_what_would_run_something_is_left_out_and_named(agent: Occ) -> None:
    files = {
        "CLAUDE.md": "text",
        ".claude/CLAUDE.md": "text",
        ".claude/rules/a.md": "text",
        ".claude/settings.json": "{}",
        "sub/.CLAUDE/commands/x.md": "!id",
        ".mcp.json": "{}",
        "sub/.Mcp.JSON": "{}",
        ".git/config": "[core]",
        ".git/HEAD": "ref: refs/heads/main",
        "vendor/.git/hooks/pre-commit": "#!/bin/sh",
    }
    reply = agent.client.upload("work", make_zip(files))
    left_out = {entry["path"] for entry in reply["skipped"]}
    assert left_out == {
        ".claude/settings.json",
        "sub/.CLAUDE/commands/x.md",
        ".mcp.json",
        "sub/.Mcp.JSON",
        ".git/config",
        "vendor/.git/hooks/pre-commit",
    }
    assert set(tree(place(agent))) == set(files) - left_out
    assert agent.client.workspace("work")["skipped"] == reply["skipped"]


def test_the_archive_is_the_workspace_as_it_is_now(agent: Occ) -> None:
    agent.run(steps({"write": "made.txt", "text": "by Claude"}))
    (place(agent) / "empty").mkdir()
    (place(agent) / "run.sh").write_text("#!/bin/sh\n")
    (place(agent) / "run.sh").chmod(0o755)
    (place(agent) / "outside").symlink_to("/etc/hostname")
    received = io.BytesIO()
    agent.client.archive("work", received)
    with zipfile.ZipFile(received) as zipped:
        assert zipped.testzip() is None
        assert set(zipped.namelist()) == {"README.md", "made.txt", "empty/", "run.sh", "outside"}
        assert zipped.read("made.txt") == b"by Claude"
        assert zipped.read("outside") == b"/etc/hostname"  # the link itself, not what it points to
        assert (zipped.getinfo("run.sh").external_attr >> 16) & 0o111
    wait_until(lambda: list((agent.home / "run/uploads").iterdir()) == [], "the copy that was sent to be removed")


def test_an_archive_without_links_can_be_uploaded_again(agent: Occ) -> None:
    agent.client.upload("work", make_zip({"a/b.txt": "x", "ü/é.txt": "y"}))
    received = io.BytesIO()
    agent.client.archive("work", received)
    received.seek(0)
    agent.client.upload("copy", received)
    assert tree(place(agent, "copy")) == tree(place(agent))


def test_a_removed_workspace_is_gone_and_may_be_made_again(agent: Occ) -> None:
    agent.client.delete_workspace("work")
    with pytest.raises(Refused) as refusal:
        agent.client.workspace("work")
    assert refusal.value.code == "WORKSPACE_NOT_FOUND"
    wait_until(lambda: list((agent.home / "workspaces").iterdir()) == [], "its files to be removed")
    agent.workspace()
    assert agent.run("hello")[-1].name == "complete"


def test_what_is_stored_is_closed_to_others(agent: Occ) -> None:
    agent.client.upload("work", make_zip({"a/b.txt": "x"}))
    await_removal(agent)
    for path in place(agent).parent.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_uploads_of_one_workspace_at_once_leave_one_whole_tree(agent: Occ) -> None:
    def upload(number: int) -> None:
        agent.client.upload("work", make_zip({f"{number}-{i}.txt": str(number) for i in range(50)}))

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(upload, range(12)))
    assert len({name.partition("-")[0] for name in tree(place(agent))}) == 1
    assert len(tree(place(agent))) == 50
    await_removal(agent)


def test_a_large_upload_does_not_hold_up_health(agent: Occ) -> None:
    content = {f"{i}.bin": os.urandom(1_000_000) for i in range(40)}
    with ThreadPoolExecutor(1) as pool:
        uploading = pool.submit(agent.client.upload, "big", make_zip(content))
        while not uploading.done():
            assert agent.client.health()["status"] == "healthy"
        assert uploading.result()["bytes"] == 40_000_000


def test_the_command_lists_fetches_and_removes(agent: Occ, tmp_path: Path) -> None:
    agent.run(steps({"write": "made.txt", "text": "by Claude"}), executionId="kept")
    listed = agent.command("workspaces", "list").stdout
    assert re.search(r"^work +1 +6 B ", listed, re.MULTILINE)
    assert json.loads(agent.command("workspaces", "list", "--json").stdout) == {"workspaces": agent.client.workspaces()}
    assert "Wrote work.zip" in agent.command("workspaces", "fetch", "work").stdout
    with zipfile.ZipFile(tmp_path / "work.zip") as fetched:
        assert fetched.read("made.txt") == b"by Claude"
    assert (tmp_path / "work.zip").stat().st_mode & 0o077 == 0
    again = agent.command("workspaces", "fetch", "work", check=False)
    assert (again.returncode, "exists already" in again.stderr) == (1, True)
    assert agent.command("workspaces", "fetch", "work", "now.zip").returncode == 0
    assert "is removed" in agent.command("workspaces", "remove", "work").stdout
    assert agent.command("workspaces", "list").stdout == "No workspaces.\n"
    assert not (agent.home / "workspaces/work").exists()
    assert agent.client.execution("kept")["state"] == "succeeded"


def test_a_workspace_that_is_not_there_leaves_no_file(agent: Occ, tmp_path: Path) -> None:
    before = set(tmp_path.iterdir())
    for action in ("fetch", "remove"):
        missing = agent.command("workspaces", action, "other", check=False)
        assert (missing.returncode, "no workspace other" in missing.stderr) == (4, True)
    assert agent.command("workspaces", "fetch", "work", "nowhere/work.zip", check=False).returncode == 1
    assert set(tmp_path.iterdir()) == before


def test_the_command_asks_a_url_or_says_that_nothing_runs(agent: Occ) -> None:
    there = ("--url", agent.url, "--token", agent.token)
    agent.workspace("second")
    assert "second" in agent.command("workspaces", "list", *there).stdout
    agent.command("workspaces", "remove", "second", *there)
    agent.stop()
    for away, code in (((), 3), (there, 5)):
        assert agent.command("workspaces", "list", *away, check=False).returncode == code


def test_a_commit_that_fails_leaves_the_old_workspace(agent: Occ) -> None:
    agent.workspace(files={"old.txt": "old"})
    agent.stop()
    with closing(sqlite3.connect(agent.home / "occ.db")) as connection:  # a COMMIT that fails, as on a full disk
        connection.executescript(
            """
            CREATE TABLE parent (id INTEGER PRIMARY KEY);
            CREATE TABLE child (id REFERENCES parent (id) DEFERRABLE INITIALLY DEFERRED);
            CREATE TRIGGER made AFTER INSERT ON workspaces BEGIN INSERT INTO child VALUES (1); END;
            CREATE TRIGGER replaced AFTER UPDATE ON workspaces BEGIN INSERT INTO child VALUES (1); END;
            CREATE TRIGGER removed AFTER DELETE ON workspaces BEGIN INSERT INTO child VALUES (1); END;
            """
        )
    folder = agent.home / "workspaces"
    database = agent.database
    for workspace_id in ("work", "new"):
        archive = agent.home / "upload.zip"
        archive.write_bytes(make_zip({"new.txt": "new"}).getvalue())
        number = upload_jobs.submit(database, upload_jobs.Upload(workspace_id, "", "", "overwrite", archive, None))
        with pytest.raises(sqlite3.IntegrityError):
            uploads.run(database, number, folder, archives.Limits(1000, 10))
    with pytest.raises(sqlite3.IntegrityError):
        workspaces.delete(database, "work", folder, lifecycle.end_waiting)
    database.close()
    assert tree(folder) == {"work/old.txt": "old"}


@pytest.mark.parametrize(
    ("change", "left"), [("upload", {"work/old.txt": "old"}), ("removal", {"work/old.txt": "old"})]
)
def test_what_is_killed_before_it_is_written_down_is_undone_at_the_next_start(
    agent: Occ, change: str, left: dict[str, str]
) -> None:
    agent.workspace(files={"old.txt": "old"})
    agent.stop()
    folder = agent.home / "workspaces"
    archive = agent.home / "upload.zip"
    archive.write_bytes(make_zip({"new.txt": "new"}).getvalue())
    number = upload_jobs.submit(agent.database, upload_jobs.Upload("work", "", "", "overwrite", archive, None))
    dies = {
        "upload": f"uploads.run(rows, {number}, folder, archives.Limits(1000, 10))",
        "removal": "workspaces.delete(rows, 'work', folder, lifecycle.end_waiting)",
    }
    program = (
        "import os\nfrom pathlib import Path\nfrom occ_app.database import database as db\n"
        "from occ_app.executions import lifecycle\nfrom occ_app.workspaces import archives, upload_jobs, uploads\n"
        "from occ_app.workspaces import workspace as workspaces\n"
        "uploads.sync_folder = workspaces.sync_folder = lambda _: os._exit(9)\n"  # between the folder and the rows
        f"rows, folder = db.Database(Path({str(agent.home / 'occ.db')!r})), Path({str(folder)!r})\n{dies[change]}\n"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 9
    assert tree(folder / "work") != left
    agent.start()
    assert tree(folder) == left
    assert agent.run("hello")[-1].name == "complete"


def test_names_and_links_that_are_not_utf_8_are_fetched(agent: Occ) -> None:
    (place(agent) / os.fsdecode(b"caf\xe9.txt")).write_text("kept")
    os.symlink(b"caf\xe9", place(agent) / "link")
    output = io.BytesIO()
    agent.client.archive("work", output)
    with zipfile.ZipFile(output) as fetched:
        assert fetched.read("caf\ufffd.txt") == b"kept"
        assert fetched.read("link") == b"caf\xe9"


def test_a_workspace_whose_folder_is_gone_is_not_fetched_as_an_empty_one(agent: Occ) -> None:
    shutil.rmtree(place(agent))
    with pytest.raises(Refused, match="is gone"):
        agent.client.archive("work", io.BytesIO())
