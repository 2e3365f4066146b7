"""Uploads with the policy update: changed files and deletions, on the snapshot that the caller knows."""

from __future__ import annotations

import io
import os
import signal
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from occ_app.client.agent_client import AgentClient
from occ_app.config.config import Config
from occ_app.database.database import Database
from occ_app.errors import Refused
from occ_app.snapshots import scan
from occ_app.snapshots.store import Snapshots
from occ_app.system import kernel
from occ_app.workspaces import archives, unfinished, updates, upload_jobs, uploads
from tests.conftest import Occ, make_zip, steps, wait_until
from tests.databases import make_database
from tests.real_hub import Hub

FILES: dict[str, str | bytes] = {"kept": "k\n", "edited": "old\n", "gone/only": "g\n", ".gitignore": "build/\n"}


def update(agent: Occ, base: str, files: dict[str, str | bytes], deletions: tuple[str, ...] = ()) -> dict[str, Any]:
    archive = make_zip(files) if files else io.BytesIO()
    return agent.client.upload("mine", archive, base=base, deletions=deletions)


@pytest.fixture
def made(agent: Occ) -> dict[str, Any]:
    """The reply to the upload of the workspace `mine`."""
    return agent.client.upload("mine", make_zip(FILES))


def content(agent: Occ) -> dict[str, bytes]:
    root = agent.home / "workspaces" / "mine"
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_an_update_changes_and_removes_files_and_keeps_the_rest(agent: Occ, made: dict[str, Any]) -> None:
    agent.run(steps({"write": "ignored", "text": ""}), "mine")
    root = agent.home / "workspaces/mine"
    (root / "build").mkdir()
    (root / "build/cache").write_bytes(b"slow to make")
    (run,) = agent.client.executions(workspaceId="mine")["executions"]
    base = agent.client.call("GET", f"/executions/{run['executionId']}/changes")["result"]  # waits for it
    reply = update(agent, base, {"edited": "new\n", "sub/new": "n\n"}, ("gone/only",))
    assert reply["generation"] == made["generation"]
    assert reply["path"] == made["path"]
    assert content(agent) == {
        **{"kept": b"k\n", "edited": b"new\n", "sub/new": b"n\n", "ignored": b""},
        **{".gitignore": b"build/\n", "build/cache": b"slow to make"},
    }
    assert not (root / "gone").exists()
    assert agent.client.workspace("mine")["snapshot"] == reply["snapshot"] != base
    # The former tree is removed after the answer.
    wait_until(lambda: not list((agent.home / "workspaces").glob(".incoming-*")), "no more to be there")


def test_an_update_without_files_only_deletes(agent: Occ, made: dict[str, Any]) -> None:
    reply = update(agent, made["snapshot"], {}, ("gone/only", "never there"))
    assert set(content(agent)) == {"kept", "edited", ".gitignore"}
    again = update(agent, reply["snapshot"], {"gone/only": "g\n"})
    assert again["snapshot"] == made["snapshot"]


def test_an_update_of_another_state_is_refused_and_changes_nothing(agent: Occ, made: dict[str, Any]) -> None:
    agent.run(steps({"write": "edited", "text": "run's\n"}), "mine")
    before = content(agent)
    for base in (made["snapshot"], "0" * 40):
        with pytest.raises(Refused) as refused:
            update(agent, base, {"edited": "mine\n"})
        assert (refused.value.status, refused.value.code) == (409, "WORKSPACE_CHANGED")
    assert content(agent) == before


def test_an_update_waits_for_no_run_and_is_refused_while_one_works(agent: Occ, made: dict[str, Any]) -> None:
    stream = agent.client.execute("mine", steps({"say": "on"}, {"sleep": 60}), executionId="busy")
    wait_until(lambda: next(stream).name == "output", "it to be under way")
    with pytest.raises(Refused) as refused:
        update(agent, made["snapshot"], {"edited": "mine\n"})
    assert refused.value.code == "WORKSPACE_BUSY"
    agent.client.cancel("busy")
    assert list(stream)[-1].final


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"processPolicy": "update"}, 422),
        ({"processPolicy": "update", "base": "xyz"}, 422),
        ({"processPolicy": "update", "base": "0" * 40, "stripRoot": "true"}, 422),
        ({"processPolicy": "update", "base": "0" * 40, "deletions": "{}"}, 422),
        ({"processPolicy": "update", "base": "0" * 40, "deletions": '["../x"]'}, 422),
        ({"processPolicy": "update", "base": "0" * 40, "deletions": '["/etc/x", 1]'}, 422),
        ({"processPolicy": "overwrite", "base": "0" * 40}, 422),
        ({"processPolicy": "reuse", "deletions": '["x"]'}, 422),
        ({"processPolicy": "overwrite"}, 422),
        ({"processPolicy": "update", "base": "0" * 40, "workspaceId": "none"}, 404),
    ],
)
def test_fields_that_do_not_fit_are_refused(
    agent: Occ, made: dict[str, Any], fields: dict[str, str], code: int
) -> None:
    boundary = "x"
    form = {"workspaceId": "mine", "name": "mine"} | fields
    parts = [f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{form[name]}\r\n' for name in form]
    body = ("".join(parts) + "--x--\r\n").encode()
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    reply = agent.request("POST", "/workspace/init", body=body, **headers)
    assert reply.status in (code, 400), reply.data


def test_a_tree_is_merged_without_leaving_it(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    for path in ("a/kept", "a/gone", "file", "folder/inner", "b/c/d"):
        (old / path).parent.mkdir(parents=True, exist_ok=True)
        (old / path).write_text(path)
    (old / "link").symlink_to("/etc")
    (old / "a/link").symlink_to("kept")
    os.mkfifo(old / "pipe")
    for path in ("a/new", "file/now-a-folder", "folder"):
        (new / path).parent.mkdir(parents=True, exist_ok=True)
        (new / path).write_text("new")
    updates.keep(old, new, ("a/gone", "b/c/d", "link"))
    found = sorted(path.relative_to(new).as_posix() for path in new.rglob("*"))
    assert found == ["a", "a/kept", "a/link", "a/new", "file", "file/now-a-folder", "folder", "pipe"]
    assert (new / "a/link").readlink() == Path("kept")
    assert (new / "a/kept").stat().st_ino == (old / "a/kept").stat().st_ino
    assert (old / "a/gone").read_text() == "a/gone"


def test_a_run_between_the_copy_and_the_exchange_is_noticed(agent: Occ, made: dict[str, Any]) -> None:
    seen = updates.begin(agent.database, "mine", made["snapshot"])
    agent.run(steps({"say": "changes nothing that a snapshot has"}), "mine")
    wait_until(lambda: agent.client.workspace("mine")["snapshot"] == made["snapshot"], "its end to be recorded")
    with agent.database.read() as connection, pytest.raises(uploads.errors.Conflict):
        updates.check(connection, "mine", made["snapshot"], seen)


def test_a_hub_updates_the_machine_and_its_stored_zip(hub_with_box: Hub) -> None:
    hub = hub_with_box
    box = hub.agent("box")
    client = AgentClient(hub.url, hub.key("me", "client"))
    client.upload("mine", make_zip({"top/a": "a\n", "top/sub/gone": "g\n"}), strip_root=True)
    with pytest.raises(Refused) as refused:  # no machine has it yet
        client.upload("mine", make_zip({"a": "x"}), base="0" * 40)
    assert refused.value.code == "WORKSPACE_CHANGED"
    list(client.execute("mine", steps({"write": "made", "text": "m\n"}), executionId="first"))
    base = box.client.call("GET", "/executions/first/changes")["result"]
    with pytest.raises(Refused) as refused:
        client.upload("mine", make_zip({"a": "x"}), base="0" * 40)
    assert (refused.value.status, refused.value.code) == (409, "WORKSPACE_CHANGED")
    reply = client.upload("mine", make_zip({"a": "mine\n", "b": "b\n"}), base=base, deletions=["sub/gone"])
    assert reply["snapshot"] == box.client.workspace("mine")["snapshot"] != base
    assert content(box) == {"a": b"mine\n", "b": b"b\n", "made": b"m\n"}
    newest = max(hub.home.glob("zips/*.zip"), key=lambda path: path.stat().st_mtime_ns)
    assert zipfile.ZipFile(newest).namelist() == ["a", "b"]
    list(client.execute("mine", steps({"say": "x"}), executionId="second"))
    assert content(box) == {"a": b"mine\n", "b": b"b\n", "made": b"m\n"}, "the machine has the newest upload already"
    box.client.call("GET", "/executions/second/changes")
    again = client.upload("mine", io.BytesIO(), base=reply["snapshot"], deletions=["a"])
    assert again["snapshot"]
    assert content(box) == {"b": b"b\n", "made": b"m\n"}
    client.close()


def test_an_update_that_is_killed_at_any_point_is_undone_or_done(tmp_path: Path) -> None:
    before = {"kept": b"k\n", "edited": b"old\n", "gone/only": b"g\n", ".gitignore": b"build/\n", "build/x": b"b"}
    after = {"kept": b"k\n", "edited": b"new\n", "sub/new": b"n\n", ".gitignore": b"build/\n", "build/x": b"b"}
    seen = set()
    for point in range(40):
        config = Config(home=tmp_path / str(point))
        config.make_folders()
        make_database(config.database)
        place = config.workspaces / "mine"
        base = _upload(config, FILES, None)
        (place / "build").mkdir()
        (place / "build/x").write_bytes(b"b")
        child = os.fork()
        if child == 0:
            _update_and_die(config, base, point)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        database = Database(config.database)
        upload_jobs.abandon_all(database)
        unfinished.undo(database, config.workspaces)
        state, _ = upload_jobs.result(database, 2)
        database.close()
        found = {path.relative_to(place).as_posix(): path.read_bytes() for path in place.rglob("*") if path.is_file()}
        assert found == (after if state == "succeeded" else before), point
        assert [path.name for path in config.workspaces.iterdir()] == ["mine"]
        seen.add(state)
        if ended == 0:
            break
    assert ended == 0
    assert seen == {"abandoned", "succeeded"}


def _upload(config: Config, files: dict[str, str | bytes], base: str | None, deleted: tuple[str, ...] = ()) -> str:
    """Make or update the workspace `mine`; returns its snapshot."""
    database = Database(config.database)
    path = config.run / ("first.zip" if base is None else "second.zip")
    path.write_bytes(make_zip(files).read())
    policy = "overwrite" if base is None else "update"
    upload = upload_jobs.Upload("mine", "mine", "", policy, path, base=base, deleted=deleted)
    number = upload_jobs.submit(database, upload)
    snapshots = Snapshots(config.home / "snapshots", os.environ["PATH"], scan.Limits(1000, 1_000_000))
    uploads.run(database, number, config.workspaces, archives.Limits(1_000_000, 100), None, snapshots)
    state, reply = upload_jobs.result(database, number)
    database.close()
    assert state == "succeeded", reply
    assert reply is not None
    return str(reply["snapshot"])


def _update_and_die(config: Config, base: str, point: int) -> None:
    """Update a workspace in this process, a child, that is killed before its call of the system of this number."""
    left = [point]

    def counted(real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        return call

    try:
        for name in ("rename", "link", "mkdir", "symlink", "rmdir"):
            setattr(os, name, counted(getattr(os, name)))
        kernel.exchange = counted(kernel.exchange)
        _upload(config, {"edited": "new\n", "sub/new": "n\n"}, base, ("gone/only",))
    except BaseException:
        os._exit(1)
    os._exit(0)
