"""Projects on a hub: each machine reports its own; who may use them, and how a run reaches the folder."""

from __future__ import annotations

import io
import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from werkzeug.test import TestResponse

from occ_app.claude import projects as claude_folders
from occ_app.executions import queries as executions
from occ_app.hub import agent_lists, placement
from occ_app.hub.agents import Agents
from occ_app.system.process_identity import own_identity
from occ_app.system.timestamps import iso_now
from tests.conftest import make_zip, names, steps, wait_until
from tests.hub_app import HubApp, hub_app
from tests.real_hub import hub_in

APP: dict[str, Any] = {"name": "app", "path": "/home/ann/app", "generation": 3, "keys": ["ann"]}
LIB: dict[str, Any] = {"name": "lib", "path": "/home/ann/lib", "generation": 4, "keys": []}


@dataclass
class Machine:
    """A machine that registered with the hub, as far as its reports go."""

    hub: HubApp
    key: str
    name: str
    agent_id: str | None = None
    token: str = ""

    def register(self, *projects: dict[str, Any], **more: Any) -> TestResponse:
        body = {"protocol": 1, "agentId": self.agent_id, "name": self.name, "version": "9", "port": 1, "workers": 1}
        reply = self.hub.call("POST", "/api/agents/register", self.key, json=body | {"projects": projects} | more)
        if reply.json is not None and reply.status_code == 201:
            self.agent_id, self.token = reply.json["agentId"], reply.json["token"]
        return reply

    def beat(self, **more: Any) -> TestResponse:
        body = {"seqNum": 1, "status": "healthy"} | more
        return self.hub.call("POST", f"/api/agents/{self.agent_id}/heartbeat", self.token, json=body)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubApp]:
    with hub_app(tmp_path) as hub:
        yield hub


@pytest.fixture
def box(hub: HubApp) -> Machine:
    """A machine with two projects; the key of ann may use one of them."""
    box = Machine(hub, hub.key("machines", "agent"), "box")
    assert box.register(APP, LIB).status_code == 201
    return box


def listed(hub: HubApp, key: str | None = None) -> dict[str, dict[str, Any]]:
    """The projects that a key sees, by alias."""
    reply = hub.call("GET", "/workspaces", key).json
    assert reply is not None
    return {each["alias"]: each for each in reply["workspaces"] if each["source"] == "folder"}


def run(hub: HubApp, workspace: str, key: str | None = None, **more: Any) -> TestResponse:
    body = {"executionId": f"e-{uuid.uuid4()}", "workspaceId": workspace, "prompt": "x"} | more
    # Only the stored events are read; the connection would be needed for those that come later.
    reply = hub.call("POST", "/execute", key, json=body, environ_overrides={"gunicorn.socket": None})
    if reply.status_code == 200:
        reply.close()
    return reply


def code(reply: TestResponse) -> str:
    assert reply.json is not None
    return str(reply.json["code"])


def test_a_machine_s_projects_are_workspaces_of_the_hub_with_opaque_ids(hub: HubApp, box: Machine) -> None:
    found = listed(hub)
    assert set(found) == {"app@box", "lib@box"}
    record = found["app@box"]
    assert (record["agentId"], record["path"], record["name"]) == (box.agent_id, "/home/ann/app", "app")
    assert record["workspaceId"] not in ("app", "app@box")
    for _ in range(2):  # a report that says the same changes nothing
        assert box.beat(projects=[APP, LIB]).status_code == 200
        assert listed(hub) == found
    box.register(LIB, APP)
    assert listed(hub) == found
    for reply in (box.beat(), box.beat(projects=None)):  # an older agent, and one whose database was held
        assert reply.status_code in (200, 422)
        assert listed(hub) == found


def test_a_project_that_is_no_longer_reported_is_gone_and_its_executions_stay(hub: HubApp, box: Machine) -> None:
    workspace_id = listed(hub)["app@box"]["workspaceId"]
    assert run(hub, "app@box", executionId="one").status_code == 200
    box.beat(projects=[LIB])
    assert set(listed(hub)) == {"lib@box"}
    assert hub.call("GET", f"/workspaces/{workspace_id}").status_code == 404
    record = hub.call("GET", "/executions/one").json
    assert record is not None
    assert (record["state"], record["errorCode"], record["workspaceId"]) == (
        "failed",
        "WORKSPACE_MISSING",
        workspace_id,
    )
    box.beat(projects=[LIB, APP])
    assert listed(hub)["app@box"]["workspaceId"] != workspace_id


@pytest.mark.parametrize("change", [{"path": "/home/ann/other"}, {"generation": 9}])
def test_another_folder_under_the_name_is_another_project(hub: HubApp, box: Machine, change: dict[str, Any]) -> None:
    workspace_id = listed(hub)["app@box"]["workspaceId"]
    run(hub, "app@box", executionId="one")
    box.beat(projects=[APP | change, LIB])
    assert listed(hub)["app@box"]["workspaceId"] != workspace_id
    assert executions.get(hub.database, "one").error_code == "WORKSPACE_MISSING"


def test_a_report_is_bounded_and_checked(hub: HubApp, box: Machine) -> None:
    wrong: list[Any] = [
        *([APP | {"name": "../x"}], [APP | {"name": "a@b"}], [APP | {"generation": 0}], [APP | {"path": "a\nb"}]),
        *([APP | {"path": "/" + "x" * 1024}], [APP | {"keys": ["k"] * 21}], [APP | {"keys": ["a\u202eb"]}], "app", [3]),
        [APP | {"name": f"p{number}"} for number in range(101)],
    ]
    for report in wrong:
        assert code(box.beat(projects=report)) == "INVALID_REQUEST", report
    assert box.register(projects=wrong[0]).status_code == 422
    assert set(listed(hub)) == {"app@box", "lib@box"}
    assert box.beat(projects=[APP, APP, LIB | {"keys": ["ann", "ann"]}]).status_code == 200
    assert set(listed(hub)) == {"app@box", "lib@box"}


def test_only_admins_and_named_keys_use_a_project(hub: HubApp, box: Machine) -> None:
    ann, bob, admin = hub.key("ann", "client"), hub.key("bob", "client"), hub.key("root", "client", admin=True)
    assert set(listed(hub, ann)) == {"app@box"}
    assert listed(hub, bob) == {}
    assert set(listed(hub, admin)) == {"app@box", "lib@box"}
    ids = {alias: record["workspaceId"] for alias, record in listed(hub).items()}
    for key, alias, allowed in (
        *((ann, "app@box", True), (ann, "lib@box", False), (bob, "app@box", False)),
        *((admin, "app@box", True), (admin, "lib@box", True), (None, "lib@box", True)),
    ):
        for name in (alias, ids[alias]):
            reply = run(hub, name, key)
            assert reply.status_code == (200 if allowed else 404), (name, key)
            assert allowed or code(reply) == "WORKSPACE_NOT_FOUND"
        assert (hub.call("GET", f"/workspaces/{ids[alias]}", key).status_code == 200) is allowed
    machines = hub.call("GET", "/agents", ann).json
    assert machines is not None
    assert machines["agents"][0]["projects"] == [{"name": "app", "workspaceId": ids["app@box"], "permissions": None}]
    shown = hub.call("GET", "/agents/box", bob).json
    assert shown is not None
    assert shown["projects"] == []
    box.beat(projects=[APP | {"keys": []}, LIB | {"keys": ["bob"]}])
    assert (set(listed(hub, ann)), set(listed(hub, bob))) == (set(), {"lib@box"})
    assert listed(hub)["app@box"]["workspaceId"] == ids["app@box"]


def test_a_project_is_open_to_the_owners_of_the_named_keys_and_of_the_machine(hub: HubApp, box: Machine) -> None:
    ann, phone = hub.key("ann", "client"), hub.key("phone", "client", owner="ann")
    assert set(listed(hub, phone)) == set(listed(hub, ann)) == {"app@box"}
    own = Machine(hub, hub.key("ann's machines", "agent", owner="ann"), "desk")
    own.register(LIB)
    assert set(listed(hub, phone)) == {"app@box", "lib@desk"}
    assert set(listed(hub, hub.key("bob", "client"))) == set()
    # A revoked key opens nothing to its owner's other keys, and its name may be another person's.
    assert hub.call("POST", "/keys/ann/revoke").status_code == 200
    assert set(listed(hub, phone)) == {"lib@desk"}
    assert run(hub, "app@box", phone).status_code == 404
    later = hub.call("POST", "/keys", json={"name": "ann", "for": "client", "owner": "bob"}).json
    assert later is not None
    assert set(listed(hub, later["key"])) == {"app@box"}
    assert set(listed(hub, phone)) == {"lib@desk"}
    # The name of an agent's key is no client key's.
    box.beat(projects=[APP | {"keys": ["ann's machines"]}])
    assert set(listed(hub, phone)) == {"lib@desk"}


def test_a_key_sees_its_own_executions_of_a_project_alone(hub: HubApp, box: Machine) -> None:
    ann = hub.key("ann", "client")
    run(hub, "app@box", executionId="of-the-operator")
    run(hub, "app@box", ann, executionId="of-ann")
    reply = hub.call("GET", "/executions", ann).json
    assert reply is not None
    assert [each["executionId"] for each in reply["executions"]] == ["of-ann"]
    assert hub.call("GET", "/executions/of-the-operator", ann).status_code == 404
    assert box.agent_id is not None


def test_an_alias_means_the_machine_that_had_it_when_the_run_was_accepted(hub: HubApp, box: Machine) -> None:
    body = {"executionId": "one", "workspaceId": "app@box"}
    workspace_id = listed(hub)["app@box"]["workspaceId"]
    assert run(hub, **body_of(body)).headers["OCC-Execution"] == "created"
    assert executions.get(hub.database, "one").workspace_id == workspace_id
    box.register(LIB)  # the project is gone, and the same request is still the same execution
    assert run(hub, **body_of(body)).headers["OCC-Execution"] == "existing"
    other = Machine(hub, box.key, "other")
    other.register(APP)
    assert set(listed(hub)) == {"lib@box", "app@other"}
    for name in ("app@box", "nothing@other", "app@other@other", "app@"):
        assert run(hub, name).status_code in (404, 422), name
    assert run(hub, "app@other", agent="box").status_code == 409


def body_of(body: dict[str, str]) -> dict[str, str]:
    return {"workspace": body["workspaceId"], "executionId": body["executionId"]}


def test_no_address_of_the_hub_replaces_deletes_or_archives_a_project(hub: HubApp, box: Machine) -> None:
    ann, bob = hub.key("ann", "client"), hub.key("bob", "client")
    workspace_id = listed(hub)["app@box"]["workspaceId"]
    for key, expected in ((None, "WORKSPACE_IS_FOLDER"), (ann, "WORKSPACE_IS_FOLDER"), (bob, "WORKSPACE_NOT_FOUND")):
        for method, path in (("DELETE", ""), ("DELETE", "?generation=1"), ("GET", "/archive")):
            reply = hub.call(method, f"/workspaces/{workspace_id}{path}", key)
            if "generation" not in path:
                assert code(reply) == expected, (method, path, key)
        if key != bob:  # a control process takes the upload of a key that knows of no such workspace
            form = {"workspaceId": workspace_id, "name": "x", "processPolicy": "overwrite"}
            files = {"zip": (io.BytesIO(make_zip({"a": "a"}).getvalue()), "a.zip")}
            assert code(hub.call("POST", "/workspace/init", key, data=form | files)) == expected
    with hub.database.read() as connection:
        assert connection.execute("SELECT count(*) FROM errands").fetchone()[0] == 0
    assert set(listed(hub)) == {"app@box", "lib@box"}


def test_a_project_stays_bound_to_its_machine(hub: HubApp, box: Machine) -> None:
    agents = Agents(hub.database, hub.config.heartbeat_seconds)
    other = Machine(hub, box.key, "other")
    other.register()
    run(hub, "app@box", executionId="one")
    assert box.agent_id is not None
    box.beat(status="stopping")
    assert placement.claim(hub.database, agents, own_identity()) is None
    assert "box" in str(executions.get(hub.database, "one").waits_for)
    box.register(APP, LIB)
    placed = placement.claim(hub.database, agents, own_identity())
    assert placed is not None
    assert placed.agent_id == box.agent_id
    assert placement.put_back(hub.database, placed)
    assert listed(hub)["app@box"]["agentId"] == box.agent_id


def test_a_removed_or_forgotten_machine_takes_its_projects_with_it(hub: HubApp, box: Machine) -> None:
    run(hub, "app@box", executionId="one")
    hub.call("DELETE", "/agents/box")
    assert listed(hub) == {}
    assert executions.get(hub.database, "one").error_code == "WORKSPACE_MISSING"
    assert code(run(hub, "app@box")) == "AGENT_NOT_FOUND"
    box.agent_id = None
    box.register(APP)
    assert set(listed(hub)) == {"app@box"}
    agents = Agents(hub.database, hub.config.heartbeat_seconds)
    run(hub, "app@box", executionId="two")
    assert agent_lists.remove_forgotten_projects(agents) == []
    with hub.database.write() as connection:
        connection.execute("UPDATE agents SET last_seen_at = '2020-01-01T00:00:00.000Z'")
    ended = agent_lists.remove_forgotten_projects(agents)
    assert ended == [executions.get(hub.database, "two").number]
    assert listed(hub) == {}
    box.beat(projects=[APP])
    assert set(listed(hub)) == {"app@box"}
    assert iso_now() > executions.get(hub.database, "two").created_at


def test_the_pages_offer_projects_and_show_them_with_their_machine(hub: HubApp, box: Machine) -> None:
    ann = hub.key("ann", "client")
    browser = hub.browser()
    assert browser.post("/login", data={"key": ann}).status_code == 303
    workspace_id = listed(hub)["app@box"]["workspaceId"]
    page = browser.get("/").text
    assert f'value="{workspace_id}" >app@box</option>' in page
    assert "lib" not in page
    assert f'<a href="/?workspace={workspace_id}">app</a>' in page
    run(hub, "app@box", ann, executionId="one")
    assert "app@box" in browser.get("/lists").text
    assert ">app@box</a>" in browser.get("/runs/one").text
    box.beat(status="stopping")
    assert "app@box (offline)" in browser.get("/").text
    box.beat(projects=[])
    assert "app@box" not in browser.get("/").text
    assert browser.get("/runs/one").status_code == 200


def test_a_run_through_a_hub_works_in_the_folder_of_the_machine(tmp_path: Path) -> None:
    with hub_in(tmp_path) as hub:
        hub.start()
        folder = tmp_path / "box-user/code"
        folder.mkdir(parents=True)
        box = hub.agent("box")
        box.command("projects", "add", str(folder), "--name", "app", "--key", "ann")
        ann = hub.key("ann", "client")
        wait_until(lambda: hub.seen("box")["projects"], "the next beat reports the project")
        reach = ["--url", hub.url, "--token", ann]
        prompt = steps({"write": "made.txt", "text": "made"})
        for place in ("--project", "--workspace"):
            done = box.command("run", *reach, place, "app@box", prompt)
            assert "--workspace app@box" in done.stderr
        assert box.command("run", *reach, "--project", "app", "x").returncode == 0
        assert (folder / "made.txt").read_text() == "made"
        shown = box.command("workspaces", "list", *reach).stdout.splitlines()
        assert next(line for line in shown if "app@box" in line).split()[:3] == ["app@box", "box", "project"]
        # A session of a terminal is the admins'; a key resumes those it began.
        session = str(uuid.uuid4())
        kept = claude_folders.folders(Path(box.environment["HOME"], ".claude"), folder)[0]
        kept.mkdir(parents=True)
        (kept / f"{session}.jsonl").write_text(json.dumps({"cwd": str(folder)}) + "\n")
        assert names(list(hub.client.execute("app@box", "go on", sessionId=session)))[-1] == "complete"
        final = list(hub.client_with(ann).execute("app@box", "go on", sessionId=session))[-1]
        assert final.data["code"] == "SESSION_NOT_FOUND"
        unknown = list(hub.client.execute("app@box", "go on", sessionId=str(uuid.uuid4())))[-1]
        assert unknown.data["code"] == "SESSION_NOT_FOUND"
        # The machine took the name for another folder, and the hub has not heard of it yet.
        workspace_id = hub.seen("box")["projects"][0]["workspaceId"]
        box.command("projects", "remove", "app")
        other = tmp_path / "box-user/other"
        other.mkdir()
        box.command("projects", "add", str(other), "--name", "app")
        wait_until(
            lambda: [each["workspaceId"] for each in hub.seen("box")["projects"]] not in ([], [workspace_id]), "new"
        )
        assert not list(other.iterdir())
        # An upload that has the name of a project on its machine is refused there.
        filtered = box.command("jobs", "--workspace", "app@b", "--url", hub.url, "--token", hub.client_key, "--json")
        assert json.loads(filtered.stdout)["executions"] == []  # of the new project; the former one is another
        hub.client.upload("app", make_zip({"a.txt": "a"}))
        assert list(hub.client.execute("app", "x"))[-1].data["code"] == "AGENT_REFUSED"
        hub.client.delete_workspace("app")
        wait_until(lambda: errands(hub.database) == 0, "the deletion is not tried for ever")
        assert other.is_dir()


def errands(database: Any) -> int:
    with database.read() as connection:
        return int(connection.execute("SELECT count(*) FROM errands").fetchone()[0])
