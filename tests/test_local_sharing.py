"""Local executions on a hub: shared only when the machine says so, for its owner alone, complete, and never ended."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from occ_app import wsgi
from occ_app.api.request_terms import local_sharing
from occ_app.client.event_checks import RawEvent
from occ_app.client.hub_client import HubClient
from occ_app.config import config as configuration
from occ_app.config.settings import SHARES_LOCAL
from occ_app.database.database import Database
from occ_app.errors import Refused, Unreachable
from occ_app.executions import acceptance, inputs, lifecycle, queries
from occ_app.executions.records import Request
from occ_app.home import state
from occ_app.hub import local_executions, placement
from occ_app.hub import outbox as errands
from occ_app.hub.agents import Agents
from occ_app.system import relayed
from occ_app.system.process_identity import own_identity
from occ_app.system.timestamps import iso_now
from occ_worker.control.local_sharing import LocalSharing
from occ_worker.relay import outcomes
from tests.conftest import make_zip, output, steps, wait_until
from tests.databases import make_database
from tests.hub_app import HubApp, hub_app
from tests.real_hub import hub_in
from tests.test_contracts import served
from tests.test_hub_projects import APP, Machine

LOCAL: dict[str, Any] = {
    "executionId": "local-1",
    "workspaceId": "scratch",
    "workspaceGeneration": 7,
    "conversationId": "local-1",
    "prompt": "sort the photos",
    "permissions": "ask",
    "timeoutSeconds": 1800,
    "idleTimeoutSeconds": 600,
    "createdAt": "2026-01-01T00:00:00.000Z",
    "startedAt": "2026-01-01T00:00:01.000Z",
}


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubApp]:
    with hub_app(tmp_path) as hub:
        yield hub


@pytest.fixture
def keys(hub: HubApp) -> dict[str, str]:
    """A machine's key of ann, and client keys of ann, of bob and of an admin."""
    machine = hub.key("ann", "agent")
    return {
        "machine": machine,
        "ann": hub.key("laptop", "client", owner="ann"),
        "bob": hub.key("bob", "client"),
        "admin": hub.key("root", "client", admin=True),
    }


@pytest.fixture
def box(hub: HubApp, keys: dict[str, str]) -> Machine:
    box = Machine(hub, keys["machine"], "box")
    assert box.register(APP, capabilities=[SHARES_LOCAL]).status_code == 201
    return box


def announce(box: Machine, token: str | None = None, **changes: Any) -> tuple[int, Any]:
    path = f"/api/agents/{box.agent_id}/executions"
    reply = box.hub.call("POST", path, token or box.token, json=LOCAL | changes)
    assert reply.json is not None
    return reply.status_code, reply.json.get("shared", reply.json.get("code"))


def record(hub: HubApp, key: str, execution_id: str = "local-1") -> dict[str, Any]:
    found = hub.call("GET", f"/executions/{execution_id}", key).json
    assert found is not None
    return cast(dict[str, Any], found)


def test_an_announced_execution_is_its_owner_s_and_no_one_else_s(
    hub: HubApp, box: Machine, keys: dict[str, str]
) -> None:
    assert announce(box) == (200, True)
    for who in ("ann", "admin"):
        found = record(hub, keys[who])
        assert (found["state"], found["local"], found["agentId"]) == ("running", True, box.agent_id)
        assert (found["prompt"], found["permissions"]) == ("sort the photos", "ask")
        assert (found["createdAt"], found["startedAt"]) == (LOCAL["createdAt"], LOCAL["startedAt"])
    assert record(hub, keys["bob"])["code"] == "EXECUTION_NOT_FOUND"
    listing = hub.call("GET", "/executions", keys["bob"]).json
    assert listing is not None
    assert listing["executions"] == []
    taken = placement.take_up(hub.database, own_identity())
    assert taken is not None
    assert (taken.execution_id, taken.prompt_sent, taken.last_seq, taken.is_local) == ("local-1", 1, 1, True)


def test_an_announcement_that_comes_again_changes_nothing(hub: HubApp, box: Machine, keys: dict[str, str]) -> None:
    assert announce(box) == (200, True)
    assert announce(box, prompt="other") == (200, True)
    listing = hub.call("GET", "/executions", keys["ann"]).json
    assert listing is not None
    assert [each["prompt"] for each in listing["executions"]] == ["sort the photos"]


def test_an_id_that_the_hub_has_already_is_not_taken_over(hub: HubApp, box: Machine, keys: dict[str, str]) -> None:
    hub.workspace("work")
    limits = (60, 60, None, None, None, None)
    request = Request("e1", "work", "mine", *limits, acceptance.request_hash({}))
    lifecycle.create(hub.database, request, max_queue=10)
    assert announce(box, executionId="e1") == (200, False)
    other = Machine(hub, keys["machine"], "other")
    assert other.register(capabilities=[SHARES_LOCAL]).status_code == 201
    assert announce(box) == (200, True)
    assert announce(other) == (200, False)
    found = queries.get(hub.database, "e1")
    assert (found.prompt, found.is_local) == ("mine", False)


@pytest.mark.parametrize("capabilities", [[], ["permissions"]])
def test_a_machine_that_does_not_share_is_refused(hub: HubApp, keys: dict[str, str], capabilities: list[str]) -> None:
    box = Machine(hub, keys["machine"], "box")
    assert box.register(capabilities=capabilities).status_code == 201
    assert announce(box) == (403, "FORBIDDEN")
    assert announce(box, token="wrong")[0] == 401
    assert announce(box, token=keys["ann"])[0] == 401
    assert queries.listing(hub.database)[0] == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"executionId": "no/id"},
        {"prompt": "\ud800"},
        {"permissions": "root"},
        {"createdAt": "now"},
        {"timeoutSeconds": 0},
    ],
)
def test_a_malformed_announcement_is_refused(box: Machine, wrong: dict[str, Any]) -> None:
    assert announce(box, **wrong)[0] in (400, 422)


def test_a_time_that_is_still_to_come_is_now(hub: HubApp, box: Machine, keys: dict[str, str]) -> None:
    assert announce(box, createdAt="2999-01-01T00:00:00.000Z", startedAt="2999-01-01T00:00:00.000Z") == (200, True)
    found = record(hub, keys["ann"])
    assert found["createdAt"] <= found["startedAt"] <= iso_now()


def test_one_in_a_project_can_be_continued_there(hub: HubApp, box: Machine, keys: dict[str, str]) -> None:
    project = next(each for each in hub.call("GET", "/workspaces", keys["ann"]).json["workspaces"])  # type: ignore[index]
    assert announce(box, workspaceId="app", workspaceGeneration=APP["generation"]) == (200, True)
    assert record(hub, keys["ann"])["workspaceId"] == project["workspaceId"]
    assert announce(box, executionId="local-2", workspaceId="app", workspaceGeneration=99) == (200, True)
    assert record(hub, keys["ann"], "local-2")["workspaceId"] == "app"  # another folder: no workspace of the hub's
    body = {"executionId": "reply", "prompt": "and now", "continues": "local-2"}
    refused = hub.call("POST", "/execute", keys["ann"], json=body)
    assert (refused.status_code, refused.json["code"]) == (404, "WORKSPACE_NOT_FOUND")  # type: ignore[index]


def test_a_turn_joins_only_a_conversation_of_its_owner_and_machine(
    hub: HubApp, box: Machine, keys: dict[str, str]
) -> None:
    assert announce(box) == (200, True)
    assert announce(box, executionId="local-2") == (200, True)
    assert record(hub, keys["ann"], "local-2")["conversationId"] == "local-1"
    other = Machine(hub, hub.key("carl", "agent"), "other")
    assert other.register(capabilities=[SHARES_LOCAL]).status_code == 201
    assert announce(other, executionId="local-3") == (200, True)
    assert record(hub, keys["admin"], "local-3")["conversationId"] == "local-3"
    assert announce(box, executionId="local-4", conversationId="yet-unknown") == (200, True)
    assert record(hub, keys["ann"], "local-4")["conversationId"] == "local-4"


def test_a_machine_cannot_fill_the_hub_with_open_executions(
    hub: HubApp, box: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_executions, "_MAX_OPEN", 1)
    assert announce(box) == (200, True)
    assert announce(box, executionId="local-2") == (503, "BUSY")
    assert announce(box) == (200, True)


def test_the_pages_mark_it_as_local_and_say_where_to_reply(hub: HubApp, box: Machine, keys: dict[str, str]) -> None:
    assert announce(box) == (200, True)
    browser = hub.browser()
    browser.post("/login", data={"key": keys["ann"]}, headers={"Origin": "http://localhost"})
    home = browser.get("/").text
    assert "sort the photos" in home
    assert ">local</span>" in home
    page = browser.get("/runs/local-1").text
    assert ">local</span>" in page
    assert "occ chat --workspace scratch" in page
    assert 'id="reply"' not in page
    assert 'action="/runs/local-1/cancel"' in page
    for path in ("/runs/local-1/changes", "/conversations/local-1/changes", "/runs/local-1?parts", "/machines"):
        assert browser.get(path).status_code in (200, 404), path
    assert browser.get("/runs/local-1/files").status_code == 404
    assert "shown on this hub" in browser.get("/machines").text


def test_a_machine_with_an_open_one_is_forgotten_like_any_other(hub: HubApp, box: Machine) -> None:
    assert announce(box) == (200, True)
    with hub.database.write() as connection:
        connection.execute("UPDATE agents SET last_seen_at = '2026-01-01T00:00:00.000Z'")
    assert Agents(hub.database, 30).listing() == []


def test_an_end_that_was_long_ago_has_its_own_time(hub: HubApp, box: Machine) -> None:
    assert announce(box) == (200, True)
    execution = queries.get(hub.database, "local-1")
    event = RawEvent(2, "complete", '{"exitCode":0,"timestamp":1767225660000}')  # 2026-01-01T00:01:00Z
    assert outcomes.of_final(event, execution).finished_at == "2026-01-01T00:01:00.000Z"
    early = RawEvent(2, "complete", '{"exitCode":0,"timestamp":1}')
    assert outcomes.of_final(early, execution).finished_at == execution.started_at


@pytest.mark.parametrize(
    ("setting", "headers", "marked"),
    [
        ("true", {}, "pending"),
        ("true", relayed.MARK, None),
        ("true", {"OCC-Origin": f"hub-{'0' * 32} key-1"}, None),
        ("false", {}, None),
    ],
)
def test_only_executions_that_no_hub_sends_are_marked_and_only_with_the_setting(
    tmp_path: Path, setting: str, headers: dict[str, str], marked: str | None
) -> None:
    settings = configuration.load(
        {"OCC_HOME": str(tmp_path / "agent"), "HOME": str(tmp_path), "OCC_SHARE_LOCAL": setting}
    )
    for app in served(settings, wsgi.make_app):
        with app.test_request_context("/execute", method="POST", headers=headers):
            assert local_sharing() == marked


@dataclass
class FakeHub:
    """A hub's replies to announcements: a value to return or an error to raise, the last one for good."""

    replies: list[Any]
    announced: list[str] = field(default_factory=list)

    def announce(self, _agent_id: str, _token: str, body: dict[str, Any]) -> bool:
        self.announced.append(body["executionId"])
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        if isinstance(reply, Exception):
            raise reply
        return bool(reply)


@dataclass
class Sender:
    """An agent's database and what announces its executions."""

    database: Database
    hub: FakeHub
    sharing: LocalSharing

    def add(self, execution_id: str, state: str = "running", marked: str | None = "pending") -> int:
        with self.database.write() as connection:
            connection.execute(
                """
                INSERT OR IGNORE INTO workspaces (workspace_id, name, description, path, files, bytes, skipped,
                    created_at, updated_at, generation)
                VALUES ('work', 'work', '', '', 1, 1, '[]', '', '', 1)
                """
            )
        limits = (60, 60, None, None, None, None)
        request = Request(execution_id, "work", "x", *limits, execution_id, local_sharing=marked)
        execution, _ = lifecycle.create(self.database, request, max_queue=10)
        with self.database.write() as connection:
            connection.execute(
                "UPDATE executions SET state = :state WHERE number = :number",
                {"state": state, "number": execution.number},
            )
        return execution.number

    def marks(self) -> dict[str, str | None]:
        return {each.execution_id: each.local_sharing for each in queries.listing(self.database)[0]}


def sender(folder: Path, *replies: Any, **settings: str) -> Sender:
    variables = {"OCC_HOME": str(folder / "home"), "HOME": str(folder), "OCC_SHARE_LOCAL": "true"}
    variables |= {"OCC_REMOTE_URL": "http://127.0.0.1:9", "OCC_API_KEY": "key"} | settings
    config = configuration.load(variables)
    config.make_folders()
    make_database(config.database)
    state.save(config.state, state.State(token="t", agent_id="agent-1", remote_url="http://127.0.0.1:9"))
    database, hub = Database(config.database), FakeHub(list(replies))
    return Sender(database, hub, LocalSharing(config, database, lambda _url, _seconds: cast(HubClient, hub)))


def test_an_execution_is_announced_once_it_runs_and_only_once(tmp_path: Path) -> None:
    agent = sender(tmp_path, True)
    agent.add("waits", "queued")
    assert not agent.sharing.due()
    agent.add("runs")
    agent.add("over", "succeeded")
    agent.add("another", marked=None)
    assert agent.sharing.due()
    agent.sharing.share()
    assert agent.hub.announced == ["runs", "over"]
    assert agent.marks() == {"waits": "pending", "runs": "announced", "over": "announced", "another": None}
    assert not agent.sharing.due()


@pytest.mark.parametrize("error", [Unreachable("away"), *(Refused("no", status) for status in (401, 403, 404, 503))])
def test_a_hub_that_cannot_take_it_now_gets_it_later(tmp_path: Path, error: Exception) -> None:
    agent = sender(tmp_path, error, True)
    agent.add("runs")
    agent.sharing.share()
    assert agent.marks() == {"runs": "pending"}
    assert not agent.sharing.due()  # after a pause
    agent.sharing.share()
    assert agent.marks() == {"runs": "announced"}


@pytest.mark.parametrize("reply", [False, *(Refused("no", status) for status in (409, 413, 422))])
def test_one_that_the_hub_will_never_show_is_not_sent_again(tmp_path: Path, reply: Any) -> None:
    agent = sender(tmp_path, reply, True)
    agent.add("first")
    agent.add("second")
    agent.sharing.share()
    assert agent.marks() == {"first": "refused", "second": "announced"}


def test_nothing_is_announced_once_sharing_is_switched_off(tmp_path: Path) -> None:
    agent = sender(tmp_path, True, OCC_SHARE_LOCAL="false")
    agent.add("runs")
    assert not agent.sharing.due()


def test_a_text_that_becomes_a_follow_up_is_shared_as_its_turn_is(tmp_path: Path) -> None:
    agent = sender(tmp_path, True)
    for name, marked in (("shared", "announced"), ("kept", None)):
        agent.add(name, marked=marked)
        inputs.accept(agent.database, name, inputs.Given(f"{name}-next", "go on", "queue"), max_queue=10)
    assert agent.marks() == {"shared": "announced", "kept": None, "shared-next": "pending", "kept-next": None}


WAITING = [{"say": "begun "}, {"wait": "go"}, {"say": "done"}]


def test_local_executions_come_to_the_hub_without_gap_or_repeat_and_are_not_ended_by_it(tmp_path: Path) -> None:
    with hub_in(tmp_path) as hub, contextlib.ExitStack() as stack:
        hub.start()
        box = hub.agent("box", "--share-local")
        assert SHARES_LOCAL in hub.seen("box")["capabilities"]
        box.client.upload("here", make_zip({"a.txt": "a"}))
        hub.client.upload("there", make_zip({"a.txt": "a"}))
        assert output(list(hub.client.execute("there", steps({"say": "hub's"}), executionId="sent"))) == "hub's"
        stream = stack.enter_context(contextlib.closing(box.client.execute("here", steps(*WAITING), executionId="own")))
        next(stream)

        def on_hub(execution_id: str) -> dict[str, Any]:
            try:
                return hub.client.execution(execution_id)
            except Refused:  # not there yet
                return {"state": "", "lastSeq": 0}

        wait_until(lambda: on_hub("own")["lastSeq"] >= 3, "the hub has its text")
        assert (on_hub("own")["state"], on_hub("own")["local"], on_hub("sent")["local"]) == ("running", True, False)
        hub.stop()
        hub.start()
        (box.home / "workspaces" / "here" / "go").touch()
        assert output(list(stream)) == "begun done"
        wait_until(lambda: on_hub("own")["state"] == "succeeded", "the hub has its end")
        of_box, of_hub = ([*client.events("own", follow=False)] for client in (box.client, hub.client))
        assert of_hub[1:] == of_box[1:]
        assert [each.seq for each in of_hub] == list(range(1, len(of_box) + 1))
        assert [each["executionId"] for each in hub.client.executions()["executions"]] == ["own", "sent"]

        (box.home / "workspaces" / "here" / "go").unlink()
        again = stack.enter_context(contextlib.closing(box.client.execute("here", steps(*WAITING), executionId="stop")))
        next(again)
        wait_until(lambda: on_hub("stop")["state"] == "running", "the hub has the second one")
        hub.client.cancel("stop")
        assert list(again)[-1].data["code"] == "EXECUTION_CANCELLED"
        wait_until(lambda: on_hub("stop")["state"] == "cancelled", "the hub has its end")

        last = stack.enter_context(contextlib.closing(box.client.execute("here", steps(*WAITING), executionId="last")))
        next(last)
        wait_until(lambda: on_hub("last")["lastSeq"] >= 3, "the hub has the third one")
        hub.client.call("DELETE", "/agents/box")
        wait_until(lambda: on_hub("last")["state"] == "failed", "the hub gave it up")
        assert on_hub("last")["errorCode"] == "AGENT_LOST"
        (box.home / "workspaces" / "here" / "go").touch()
        assert output(list(last)) == "begun done"  # the machine goes on
        assert errands.waiting(hub.database) == []
