"""A person in a run through a hub, with the real CLI: a real hub, a machine of it, and its link."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import urllib3

from occ_app.client.agent_client import AgentClient
from occ_app.errors import Refused
from tests.conftest import Occ, make_zip, run_occ, wait_until
from tests.model_api import FAKE_KEY, serve
from tests.real_hub import Hub, hub_in
from tests.test_approvals import BASH, results

pytestmark = pytest.mark.real_cli


@pytest.fixture(scope="module")
def asking(real_claude: Path) -> Iterator[dict[str, str]]:
    """The settings of a machine with the real CLI that asks."""
    with serve() as model:
        reach = {"OCC_CLAUDE_BIN": str(real_claude), "ANTHROPIC_BASE_URL": model.url, "ANTHROPIC_API_KEY": FAKE_KEY}
        yield reach | {"OCC_PERMISSIONS": "ask"}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory, asking: dict[str, str]) -> Iterator[Hub]:
    """A hub for each release of the CLI that this run of the tests tries: its machine is called `box` each time."""
    with hub_in(tmp_path_factory.mktemp("hub")) as hub:
        yield hub.start()


@pytest.fixture(scope="module", autouse=True)
def box(hub: Hub, asking: dict[str, str]) -> Occ:
    """The hub's machine, which holds every call that it asks about and shows the hub its own runs."""
    return hub.agent("box", "--share-local", **asking, OCC_HOLD_SECONDS="600")


@pytest.fixture(scope="module")
def keys(hub: Hub) -> dict[str, str]:
    owners = {name: hub.key(name, "client") for name in ("ada", "bob")}
    return owners | {"viewer": hub.key("viewer", "client", "--role", "viewer", "--owner", "ada")}


@pytest.fixture
def ada(hub: Hub, keys: dict[str, str]) -> AgentClient:
    return hub.client_with(keys["ada"])


class Visitor:
    """A browser without scripts that is logged in as the hub's admin."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._cookie = ""
        reply = self._call("POST", "/login", {"key": hub.client_key})
        self._cookie = reply.headers["Set-Cookie"].partition(";")[0]

    def page(self, path: str) -> str:
        return self._call("GET", path).data.decode()

    def send(self, path: str, **fields: str) -> None:
        """Send a form with the token of the login."""
        found = re.search('name="csrf" value="([^"]+)"', self.page("/"))
        assert found is not None
        reply = self._call("POST", path, {"csrf": found[1], **fields})
        assert reply.status == 303, reply.data

    def _call(self, method: str, path: str, fields: dict[str, str] | None = None) -> urllib3.BaseHTTPResponse:
        headers = {"Cookie": self._cookie, "Content-Type": "application/x-www-form-urlencoded"}
        body = urlencode(fields) if fields else None
        with urllib3.PoolManager(retries=False) as pool:
            return pool.request(method, self._hub.url + path, body=body, headers=headers, redirect=False, timeout=30)


def prompt(*turns: dict[str, Any]) -> str:
    return "Do it. @reply" + json.dumps({"turns": turns}).replace("@reply", "\\u0040reply")


def question(events: Iterator[Any], client: AgentClient) -> dict[str, Any]:
    """Read events up to the next approval; returns it as the hub has it, the moment its event came."""
    event = next(event for event in events if event.name == "approval")
    return client.call("GET", f"/approvals/{event.data['approvalId']}")


def test_a_run_through_a_hub_asks_its_owner_and_goes_on_with_the_answer(
    hub: Hub, ada: AgentClient, keys: dict[str, str]
) -> None:
    ada.upload("asks", make_zip({"a.txt": "a\n"}))
    asked = prompt({"tools": [BASH]}, {"text": "Done."})
    events = ada.execute("asks", asked, executionId="asks", permissions="ask")
    found = question(events, ada)
    assert (found["state"], found["input"], found["truncated"]) == ("open", BASH["input"], False)
    for name, code in (("bob", "APPROVAL_NOT_FOUND"), ("viewer", "FORBIDDEN")):
        body = {"decision": "allow", "inputHash": found["inputHash"]}
        with pytest.raises(Refused) as refused:
            hub.client_with(keys[name]).call("POST", f"/approvals/{found['approvalId']}", body)
        assert refused.value.code == code
    folder = hub.place / "box" / "workspaces" / "asks"
    assert not (folder / "made-by-bash").exists()
    environment = hub.environment | {"OCC_URL": hub.url, "OCC_TOKEN": keys["ada"]}
    listed = run_occ(("approvals",), environment, hub.place, 60)
    assert found["approvalId"] in listed.stdout
    assert " box " in listed.stdout
    done = run_occ(("approve", found["approvalId"]), environment, hub.place, 60)
    assert "touch made-by-bash && echo done" in done.stdout, done.stderr
    assert "is allowed" in done.stderr
    rest = list(events)
    assert rest[-1].name == "complete", rest[-1].data
    (resolved,) = [event.data for event in rest if event.name == "approval_resolved"]
    assert (resolved["state"], resolved["actor"]) == ("allowed", "ada")
    assert (folder / "made-by-bash").exists()
    closed = ada.call("GET", f"/approvals/{found['approvalId']}")
    assert (closed["actor"], closed["surface"], closed["pending"]) == ("ada", "terminal", None)
    assert closed["deliveredAt"] is not None
    assert ada.execution("asks")["permissions"] == "ask"


def test_a_denial_over_the_hub_reaches_the_model_with_its_reason(hub: Hub, ada: AgentClient) -> None:
    ada.upload("denied", make_zip({"a.txt": "a\n"}))
    asked = prompt({"tools": [BASH]}, {"text": "Done."})
    events = ada.execute("denied", asked, executionId="denied", permissions="ask")
    found = question(events, ada)
    operator = {"decision": "deny", "message": "Use the other tool."}
    hub.client.call("POST", f"/approvals/{found['approvalId']}", operator)
    rest = list(events)
    assert "Use the other tool." in results(rest)[0][0]
    assert not (hub.place / "box" / "workspaces" / "denied" / "made-by-bash").exists()


def test_a_local_run_of_the_machine_asks_on_the_hub_and_its_next_turn_comes_there(hub: Hub, box: Occ) -> None:
    box.client.upload("local", make_zip({"a.txt": "a\n"}))
    asked = prompt({"tools": [BASH]}, {"text": "Done."})
    events = box.client.execute("local", asked, executionId="local-1", permissions="ask")
    here = next(event for event in events if event.name == "approval").data["approvalId"]

    def open_ones() -> list[dict[str, Any]]:
        listed = hub.client.call("GET", "/approvals?state=open")["approvals"]
        return [each for each in listed if each["executionId"] == "local-1"]

    (found,) = wait_until(open_ones, "the question on the hub")
    assert found["approvalId"] == here
    visitor = Visitor(hub)
    shown = visitor.page("/runs/local-1")
    assert BASH["input"]["command"] in re.sub("<[^>]+>", "", html.unescape(shown))
    visitor.send(f"/runs/local-1/approvals/{here}", hash=found["inputHash"], decision="allow")
    rest = list(events)
    (resolved,) = [event.data for event in rest if event.name == "approval_resolved"]
    assert (rest[-1].name, resolved["state"], resolved["actor"]) == ("complete", "allowed", "tester")
    assert (box.home / "workspaces" / "local" / "made-by-bash").exists()
    list(box.client.execute(None, prompt({"text": "Two."}), executionId="local-2", continues="local-1"))
    wait_until(
        lambda: (
            {each["executionId"]: each["state"] for each in hub.client.executions()["executions"]}.get("local-2")
            == "succeeded"
        ),
        "the next turn on the hub",
    )
    shown = visitor.page("/runs/local-1")
    assert shown.count("data-turn=") == 2
    assert "Two." in shown
    assert 'id="reply"' not in shown  # its workspace is on the machine alone


def test_a_cut_input_is_fetched_whole(ada: AgentClient) -> None:
    ada.upload("long", make_zip({"a.txt": "a\n"}))
    call = {"name": "Bash", "input": {"command": "echo " + "x" * 100_000, "description": "d"}}
    events = ada.execute("long", prompt({"tools": [call]}, {"text": "Done."}), executionId="long", permissions="ask")
    found = question(events, ada)
    assert (found["input"], found["truncated"]) == (call["input"], False)
    ada.call("POST", f"/approvals/{found['approvalId']}", {"decision": "deny"})
    assert list(events)[-1].name == "complete"


def test_a_follow_up_through_a_hub_goes_on_in_the_session_and_its_owner_alone_sees_it(
    hub: Hub, ada: AgentClient, keys: dict[str, str]
) -> None:
    ada.upload("talk", make_zip({"a.txt": "a\n"}))
    first = ada.execute("talk", prompt({"text": "One."}), executionId="first")
    assert next(first).name == "queued"
    second = ada.execute(None, prompt({"text": "Two."}), executionId="second", continues="first")  # before its session
    assert [list(events)[-1].name for events in (first, second)] == ["complete", "complete"]
    found = ada.call("GET", "/conversations/first")
    assert [turn["executionId"] for turn in found["turns"]] == ["first", "second"]
    assert len({turn["sessionId"] for turn in found["turns"]}) == 1
    assert "first" in [each["conversationId"] for each in ada.call("GET", "/conversations")["conversations"]]
    bob = hub.client_with(keys["bob"])
    assert bob.call("GET", "/conversations")["conversations"] == []
    with pytest.raises(Refused) as refused:
        bob.call("GET", "/conversations/first")
    assert refused.value.code == "CONVERSATION_NOT_FOUND"
    with pytest.raises(Refused) as refused:
        next(bob.execute(None, "x", executionId="third", continues="first"))
    assert refused.value.code == "EXECUTION_NOT_FOUND"


def test_an_answer_that_waited_is_delivered_once_the_machine_is_back(hub: Hub, ada: AgentClient) -> None:
    ada.upload("away", make_zip({"a.txt": "a\n"}))
    asked = prompt({"tools": [BASH]}, {"text": "Done."})
    events = ada.execute("away", asked, executionId="away", permissions="ask")
    found = question(events, ada)
    sockets = hub.home / "run" / "links"
    (socket,) = sockets.iterdir()
    hidden = socket.rename(sockets.parent / "hidden")  # the hub has no way to the machine
    try:
        reply = ada.call(
            "POST", f"/approvals/{found['approvalId']}", {"decision": "allow", "inputHash": found["inputHash"]}
        )
        assert (reply["state"], reply["pending"]["actor"]) == ("open", "ada")
    finally:
        if not socket.exists():
            hidden.rename(socket)
    assert list(events)[-1].name == "complete"
    assert (hub.place / "box" / "workspaces" / "away" / "made-by-bash").exists()
    wait_until(lambda: ada.call("GET", f"/approvals/{found['approvalId']}")["state"] == "allowed", "it is closed")


def test_a_run_of_this_machine_s_hub_is_answered_with_the_hub_s_commands(hub: Hub) -> None:
    folder = hub.place / "sent"
    folder.mkdir()
    (folder / "a.txt").write_text("a\n")
    asked = prompt({"tools": [BASH]}, {"text": "Done."})
    arguments = ("run", "--hub", "--permissions", "ask", "--detach", "--dir", str(folder), asked)
    begun = run_occ(arguments, hub.environment, hub.place, 60)
    assert begun.returncode == 0, begun.stderr
    assert f"{begun.stdout.strip()} --url local-hub" in begun.stderr
    listed = wait_until(lambda: hub.client.call("GET", "/approvals?state=open")["approvals"], "the question")
    denied = run_occ(("deny", "--hub", "--last", "not that"), hub.environment, hub.place, 60)
    assert f"{listed[0]['approvalId']} is denied" in denied.stderr
    tail = ("jobs", "tail", "--follow", begun.stdout.strip(), "--url", "local-hub")
    shown = run_occ(tail, hub.environment, hub.place, 60).stderr
    assert "not that" in shown
    assert f"occ approve {listed[0]['approvalId']} --url local-hub" in shown
    assert hub.client.call("GET", f"/approvals/{listed[0]['approvalId']}")["actor"] == "operator"


def test_a_parked_run_of_a_machine_that_was_off_goes_on_with_the_answer_of_its_owner(
    hub: Hub, ada: AgentClient, asking: dict[str, str], release: str
) -> None:
    rig = hub.agent("rig", **asking, OCC_HOLD_SECONDS="0.3")
    wait_until(lambda: rig.client.health()["claude"]["version"], "the version to be known")
    ada.upload("parked", make_zip({"a.txt": "a\n"}))
    asked = prompt({"tools": [BASH]}, {"text": "Done."})
    events = ada.execute("parked", asked, executionId="parked", permissions="ask", agent="rig")
    found = question(events, ada)
    hub.client.call("POST", "/agents/rig/drain")  # other tests run on box
    if release == "2.1.197":  # which cannot be parked
        rest = list(events)
        assert rest[-1].name == "complete", rest[-1].data
        assert [event.data["state"] for event in rest if event.name == "approval_resolved"] == ["expired"]
        assert not (rig.home / "workspaces" / "parked" / "made-by-bash").exists()
        return
    next(event for event in events if event.name == "parked")
    assert ada.execution("parked")["state"] == "parked"
    rig.command("stop")
    wait_until(lambda: hub.seen("rig")["state"] == "offline", "the machine to be off")
    body = {"decision": "allow", "inputHash": found["inputHash"]}
    reply = ada.call("POST", f"/approvals/{found['approvalId']}", body)
    assert (reply["state"], reply["pending"]["decision"]) == ("open", "allow")
    assert not (rig.home / "workspaces" / "parked" / "made-by-bash").exists()
    rig.start()
    rest = list(events)
    assert rest[-1].name == "complete", rest[-1].data
    assert (rig.home / "workspaces" / "parked" / "made-by-bash").exists()
    closed = ada.call("GET", f"/approvals/{found['approvalId']}")
    assert (closed["state"], closed["actor"], closed["pending"]) == ("allowed", "ada", None)
