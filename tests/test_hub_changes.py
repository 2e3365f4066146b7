"""What executions on machines changed, read on their hub: relayed, kept for when a machine is off, and checked."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import pytest

from occ_app.errors import Refused
from occ_app.executions import lifecycle
from occ_app.executions import queries as executions
from occ_app.executions.records import Execution, Outcome, Request
from occ_app.hub import fetched_changes, placement
from occ_app.hub.remote_files import RemoteFiles
from occ_app.system.process_identity import own_identity
from tests.conftest import make_zip, steps, wait_until
from tests.hub_app import HubApp, hub_app
from tests.real_hub import Hub
from tests.test_ownership import on_hub

SUMS = {"files": 1, "additions": 1, "deletions": 1, "truncated": False, "exact": True}
ENTRY = {
    **{"path": "a.txt", "oldPath": None, "status": "modified", "additions": 1, "deletions": 1},
    **{"binary": False, "size": 4, "mode": "100644", "oldMode": "100644"},
}
CHANGES = {"executionId": "e1", "workspaceId": "w", **SUMS, "entries": [ENTRY], "base": "a" * 40, "result": "b" * 40}


def test_changes_are_read_on_the_hub_while_the_machine_is_off(hub: Hub, tmp_path: Path) -> None:
    box = hub.agent("box")
    hub.client.upload("work", make_zip({"a.txt": "one\n", "b.txt": "b\n"}))
    command = "echo two > a.txt; mv b.txt c.txt; echo n > new.txt"
    list(hub.client.execute("work", steps({"sh": command}), executionId="e1"))
    reply = hub.request("GET", "/executions/e1/changes")  # it waits for them
    assert reply.status == 200, reply.data
    direct = box.client.call("GET", "/executions/e1/changes")
    assert reply.json() == direct
    assert hub.client.execution("e1")["changes"] == box.client.execution("e1")["changes"]
    patch = box.request("GET", "/executions/e1/diff").data

    assert hub.request("GET", "/executions/e1/files/a.txt?at=start").data == b"one\n"
    assert hub.request("GET", "/workspaces/work/files/a.txt").data == b"two\n"
    part = hub.request("GET", "/workspaces/work/files/a.txt", Range="bytes=1-2")
    assert (part.status, part.data, part.headers["Content-Range"]) == (206, b"wo", "bytes 1-2/4")
    listed = hub.request("GET", "/workspaces/work/files").json()
    assert [entry["name"] for entry in listed["entries"]] == ["a.txt", "c.txt", "new.txt"]
    assert hub.request("GET", "/workspaces/work/files/nobody").json()["code"] == "FILE_NOT_FOUND"
    undone = hub.request("POST", "/workspaces/work/restore", json_body={"executionId": "e1", "to": "start"}).json()
    assert (undone["files"], undone["result"]) == (4, direct["base"])
    (box.home / "workspaces/work/a.txt").write_text("mine\n")
    refused = hub.request("POST", "/workspaces/work/restore", json_body={"executionId": "e1", "to": "end"})
    assert (refused.status, refused.json()["code"]) == (409, "RESTORE_CONFLICT")
    assert refused.json()["details"]["files"] == ["a.txt"]
    stranger = hub.key("stranger", "client")
    for path in ("executions/e1/changes", "executions/e1/diff", "executions/e1/files/a.txt", "workspaces/work/files"):
        assert hub.request("GET", f"/{path}", Authorization=f"Bearer {stranger}").status == 404

    box.stop()
    assert hub.request("GET", "/executions/e1/changes").json() == direct
    assert hub.request("GET", "/executions/e1/diff").data == patch
    only = hub.request("GET", "/executions/e1/diff?path=c.txt").data
    assert (only.count(b"diff --git"), b"rename to c.txt" in only) == (1, True)
    away = hub.request("GET", "/workspaces/work/files")
    assert (away.status, away.json()["code"]) == (503, "AGENT_UNREACHABLE")
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "a.txt").write_text("one\n")
    (copy / "b.txt").write_text("b\n")
    subprocess.run(["git", "apply", "--binary", "-"], cwd=copy, input=patch, check=True)
    assert (copy / "a.txt").read_text() == "two\n"


class Machine:
    """The client of a machine that answers as it is said here."""

    def __init__(self, replies: Mapping[str, Any], patch: bytes = b"") -> None:
        self._replies = {"": {"changesReason": None}, **replies}
        self._patch = patch

    def call(self, _: str, path: str, seconds: float) -> Any:
        reply = self._replies[path.removeprefix("/executions/e1")]
        if isinstance(reply, Exception):
            raise reply
        return json.loads(json.dumps(reply))

    def download(self, _: str, output: IO[bytes], limit: int) -> None:
        for index in range(0, len(self._patch), 1000):
            output.write(self._patch[index : index + 1000])


@pytest.fixture
def app(tmp_path: Path) -> Iterator[HubApp]:
    with hub_app(tmp_path) as app:
        yield app


@pytest.fixture
def ended(app: HubApp) -> Callable[[], Execution]:
    """An execution that a machine ran and that is over."""
    app.key("mine", "client")
    key_id = next(key["keyId"] for key in app.call("GET", "/keys").json["keys"])  # type: ignore[index]
    on_hub(app.database, "w", key_id)
    lifecycle.create(app.database, Request("e1", "w", "x", 9, 9, None, None, None, None, ""), max_queue=9)
    execution = lifecycle.claim(app.database, own_identity())
    assert execution is not None
    placement.mark_prompt_sent(app.database, execution, "edit")
    lifecycle.finish(app.database, execution.number, Outcome("succeeded", "complete", {"exitCode": 0}))
    return lambda: executions.get(app.database, "e1")


def fetch(app: HubApp, execution: Execution, machine: Machine, limit: int = 10_000) -> bool:
    return fetched_changes.fetch(app.database, machine, execution, limit)  # type: ignore[arg-type]


def test_changes_of_another_execution_of_the_id_are_not_fetched(app: HubApp, ended: Callable[[], Execution]) -> None:
    """The machine had run one under the id before, for somebody else and in another workspace."""
    with app.database.write() as connection:
        connection.execute("UPDATE workspaces SET agent_generation = 7")
    theirs = Machine({"?generation=7": Refused("there is none.", 404), "/changes": CHANGES}, b"x")
    assert fetch(app, ended(), theirs)
    assert (ended().changes, ended().why_no_changes) == (None, "lost")


def test_changes_are_kept_with_a_diff_up_to_the_limit(app: HubApp, ended: Callable[[], Execution]) -> None:
    assert ended().why_no_changes == "pending"
    assert not fetch(app, ended(), Machine({"": {"changesReason": "pending"}}))
    assert [execution.execution_id for execution in fetched_changes.pending(app.database)] == ["e1"]
    assert fetch(app, ended(), Machine({"/changes": CHANGES}, b"x" * 10_001))
    assert ended().changes == SUMS
    assert app.call("GET", "/executions/e1/changes").json == CHANGES
    assert fetched_changes.kept_patch(app.database, ended().number) is None
    assert app.call("GET", "/executions/e1/diff").json["code"] == "AGENT_UNREACHABLE"  # type: ignore[index]
    lifecycle.forget_prompt(app.database, ended().number)
    assert fetched_changes.kept(app.database, ended().number) is None
    assert not fetched_changes.pending(app.database)


def test_a_diff_is_shown_by_file(app: HubApp, ended: Callable[[], Execution]) -> None:
    patch = b"diff --git a/a.txt b/a.txt\n@@\n-diff --git a/x b/x\n+y\ndiff --git a/b.txt b/b.txt\n@@\n"
    assert fetch(app, ended(), Machine({"/changes": CHANGES}, patch))
    assert app.call("GET", "/executions/e1/diff").data == patch
    assert app.call("GET", "/executions/e1/diff?path=a.txt").data == patch[: patch.index(b"diff --git a/b.txt")]


@pytest.mark.parametrize("path", ["%2e%2e/x", "%2e%2e%2f%2e%2e%2fother%2ffiles%2fx", "a/%2e/x", "a//x", "%2e%2e"])
def test_no_path_leads_a_hub_to_another_address_of_a_machine(
    app: HubApp, ended: Callable[[], Execution], path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fetch(app, ended(), Machine({"/changes": CHANGES}))
    monkeypatch.setattr(RemoteFiles, "_downloaded", lambda *_: pytest.fail("the machine was called"))
    for address in ("/workspaces/w/files/", "/executions/e1/files/"):
        reply = app.call("GET", address + path)
        assert (reply.status_code, reply.json["code"]) == (404, "FILE_NOT_FOUND")  # type: ignore[index]


@pytest.mark.parametrize(
    "change",
    [
        {"files": -1},
        {"files": 10**30},
        {"files": True},
        {"files": "1"},
        {"additions": None},
        {"truncated": 1},
        {"base": "z" * 40},
        {"result": "a" * 41},
        {"entries": {}},
        {"entries": [ENTRY] * 10_001},
        {"entries": [ENTRY | {"path": 5}]},
        {"entries": [ENTRY | {"path": "x" * 5000}]},
        {"entries": [ENTRY | {"status": "<b>"}]},
        {"entries": [ENTRY | {"mode": "rwx"}]},
        {"entries": [{"path": "a.txt"}]},
        {"entries": [None]},
    ],
    ids=str,
)
def test_a_machine_s_changes_that_break_their_schema_are_not_kept(
    app: HubApp, ended: Callable[[], Execution], change: dict[str, Any]
) -> None:
    assert fetch(app, ended(), Machine({"/changes": CHANGES | change}))
    assert (ended().changes, ended().why_no_changes) == (None, "invalid")
    refused = app.call("GET", "/executions/e1/changes")
    assert refused.json["details"]["reason"] == "invalid"  # type: ignore[index]


@pytest.mark.parametrize(
    ("replies", "reason"),
    [
        ({"": {}}, "not recorded"),  # a machine of an earlier version
        ({"": {"changesReason": "too large"}}, "too large"),
        ({"": {"changesReason": "<script>"}}, "lost"),
        ({"": {"changesReason": 5}}, "lost"),
        ({"": Refused("no", 404, "EXECUTION_NOT_FOUND")}, "lost"),
        ({"/changes": Refused("no", 404, "CHANGES_NOT_FOUND")}, "lost"),
    ],
    ids=str,
)
def test_why_a_machine_has_no_changes(
    app: HubApp, ended: Callable[[], Execution], replies: dict[str, Any], reason: str
) -> None:
    assert fetch(app, ended(), Machine(replies))
    assert ended().why_no_changes == reason


def test_the_changes_of_a_machine_that_was_away_at_the_end_are_fetched_when_it_is_back(hub: Hub) -> None:
    box = hub.agent("box")
    hub.client.upload("work", make_zip({"a.txt": "a"}))
    stream = hub.client.execute("work", steps({"say": "on"}, {"wait": "go"}), executionId="e1")
    while next(stream).name != "output":
        pass
    # The hub has the end from the machine's rows, and its changes only when it is back.
    (box.home / "workspaces/work/go").touch()
    box.stop()
    box.start()
    assert wait_until(lambda: hub.client.execution("e1")["changes"], "the changes to be fetched", 60)["files"] == 1
