"""Approvals on a hub: the rows of its machines, who may answer, and whose answer counts.

A hub's and an agent's application live in the test's own process; the hub's calls of the agent are made on it directly.
"""

from __future__ import annotations

import html
import json
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from flask import Flask

from occ_app import errors, wsgi
from occ_app.cli.approval_prompts import asking
from occ_app.client.agent_client import AgentClient
from occ_app.client.event_checks import RawEvent, checked
from occ_app.client.sse import StreamEvent
from occ_app.config import config
from occ_app.database.database import Database
from occ_app.executions import answers, lifecycle, queries, rules
from occ_app.executions import approvals as rows
from occ_app.executions.answers import Answer, Approval, Person
from occ_app.executions.records import Execution, Outcome, Request
from occ_app.hub import approval_rows
from occ_app.hub.agent_clients import Calls
from occ_app.hub.approvals import HubApprovals
from occ_app.system.compact_json import to_json
from occ_worker.relay.context import RelayContext
from occ_worker.relay.patience import Patience
from occ_worker.relay.sending import request_body
from tests.hub_app import HubApp, hub_app
from tests.test_contracts import served, token
from tests.test_ownership import on_hub

HASH = "a" * 64
ASKED = {
    "kind": "tool",
    "tool": "Bash",
    "input": {"command": "make"},
    "inputHash": HASH,
    "askedAt": "2026-01-01T00:00:00.000Z",
    "expiresAt": "2099-01-01T00:00:00.000Z",
}


@dataclass
class Machine:
    """An agent's application as the hub's client of it; `away` is how long it does not answer, in calls."""

    app: Flask
    away: bool = False
    calls: list[str] = field(default_factory=list)
    lie: Mapping[str, Any] | None = None

    def call(self, method: str, path: str, content: Any = None, seconds: float = 60) -> Any:
        self.calls.append(f"{method} {path}")
        if self.away:
            raise errors.Unreachable("The machine does not answer.")
        if self.lie is not None:
            return self.lie
        reply = self.app.test_client().open(path, method=method, headers=token(self.app), json=content)
        body = reply.get_json()
        if reply.status_code >= 400:
            raise errors.Refused(body["message"], reply.status_code, body["code"], None, body["details"])
        return body

    @property
    def database(self) -> Database:
        found: Database = self.app.extensions["occ"].db
        return found

    def ask(self, execution: int, command: str = "make", approval_kind: str = "tool") -> Approval:
        asked = answers.Request(approval_kind, "Bash", {"command": command}, HASH)
        return rows.ask(self.database, execution, asked, 600)


@dataclass
class Setting:
    """A hub with the owners ada and bob, and a machine on which an execution of ada runs."""

    hub: HubApp
    machine: Machine
    keys: dict[str, str]
    execution: int
    on_machine: int

    @property
    def approvals(self) -> HubApprovals:
        found: HubApprovals = self.hub.app.extensions["occ"].approvals
        return found

    def asked(self, **more: Any) -> str:
        """An approval that the machine asks and reports; returns its id."""
        approval = self.machine.ask(self.on_machine)
        self.report(ASKED | {"approvalId": approval.approval_id} | more)
        return approval.approval_id

    def report(self, data: Mapping[str, Any], execution: int | None = None) -> Approval | None:
        sound = checked(RawEvent(7, "approval", to_json(dict(data))))
        assert sound is not None
        return approval_rows.note_asked(
            self.hub.database, self.execution if execution is None else execution, json.loads(sound.data)
        )

    def post(self, approval_id: str, who: str = "ada", decision: str = "allow", **more: Any) -> Any:
        body = {"decision": decision, "inputHash": HASH, **more}
        return self.hub.call("POST", f"/approvals/{approval_id}", self.keys[who], json=body)

    def seen(self, approval_id: str, who: str = "ada") -> dict[str, Any]:
        found: dict[str, Any] = self.hub.call("GET", f"/approvals/{approval_id}", self.keys[who]).get_json()
        return found

    def on_agent(self, approval_id: str) -> Approval:
        return rows.get(self.machine.database, approval_id)


@pytest.fixture(scope="module")
def apps(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[HubApp, Flask]]:
    folder = tmp_path_factory.mktemp("apps")
    settings = config.load({"OCC_HOME": str(folder / "agent"), "HOME": str(folder)})
    with hub_app(folder) as hub:
        for agent in served(settings, wsgi.make_app):
            yield hub, agent


@pytest.fixture
def setting(apps: tuple[HubApp, Flask], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Setting:
    hub, agent = apps
    name = request.node.name[:60]
    machine = Machine(agent)
    monkeypatch.setattr(Calls, "client", lambda *_: machine)
    owners = {who: hub.key(f"{who}-{name}", "client") for who in ("ada", "bob")}
    keys = owners | {
        "admin": hub.key(f"admin-{name}", "client", admin=True),
        "viewer": hub.key(f"viewer-{name}", "client", role="viewer", owner=f"ada-{name}"),
    }
    agent_id = hub.register(hub.key(f"machines-{name}", "agent"), name).get_json()["agentId"]
    owner = {key["name"]: key["ownerId"] for key in hub.call("GET", "/keys").get_json()["keys"]}
    number = add(hub.database, name, owner[f"ada-{name}"], agent_id)
    return Setting(hub, machine, keys, number, add(machine.database, name, None, None))


def add(database: Database, execution_id: str, owner_id: str | None, agent_id: str | None) -> int:
    """Add a running execution; returns its number."""
    on_hub(database, execution_id, "")
    request = Request(execution_id, execution_id, "x", 600, 9, None, None, None, None, "", owner_id=owner_id)
    execution, _ = lifecycle.create(database, request, max_queue=1000)
    with database.write() as connection:
        connection.execute(
            "UPDATE executions SET state = 'running', agent_id = :agent_id WHERE number = :number",
            {"agent_id": agent_id, "number": execution.number},
        )
    return execution.number


def test_the_owner_answers_over_the_hub_and_the_machine_keeps_who_it_was(setting: Setting) -> None:
    approval_id = setting.asked()
    listed = setting.hub.call("GET", "/approvals?state=open", setting.keys["ada"]).get_json()["approvals"]
    assert [each["approvalId"] for each in listed] == [approval_id]
    assert (listed[0]["input"], listed[0]["inputHash"], listed[0]["pending"]) == ({"command": "make"}, HASH, None)
    reply = setting.post(approval_id, surface="terminal")
    assert (reply.status_code, reply.get_json()["state"]) == (200, "allowed")
    found = setting.on_agent(approval_id)
    assert found.actor is not None
    assert found.actor.startswith("ada-")
    assert (found.state, found.surface) == ("allowed", "terminal")
    record = setting.seen(approval_id)
    assert (record["state"], record["actor"], record["surface"]) == ("allowed", found.actor, "terminal")
    assert setting.post(approval_id).status_code == 200  # the same again
    other = setting.post(approval_id, decision="deny")
    assert (other.status_code, other.get_json()["code"]) == (409, "APPROVAL_CLOSED")
    assert other.get_json()["details"]["actor"] == found.actor


def test_others_do_not_see_an_approval_and_a_viewer_only_reads_it(setting: Setting) -> None:
    approval_id = setting.asked()
    assert setting.seen(approval_id, "bob")["code"] == "APPROVAL_NOT_FOUND"
    assert setting.hub.call("GET", "/approvals", setting.keys["bob"]).get_json() == {"approvals": []}
    assert setting.post(approval_id, "bob").status_code == 404
    assert setting.seen(approval_id, "viewer")["approvalId"] == approval_id
    assert setting.post(approval_id, "viewer").status_code == 403
    with pytest.raises(errors.Forbidden):
        setting.approvals.answer(approval_id, Answer("deny"), Person("ada", None, "slack", viewer=True))
    assert setting.on_agent(approval_id).state == "open"
    assert setting.post(approval_id, "admin", "deny", message="no").status_code == 200
    assert setting.on_agent(approval_id).message == "no"


def test_an_answer_waits_for_a_machine_that_is_away(setting: Setting) -> None:
    approval_id = setting.asked()
    setting.machine.away = True
    for _ in range(2):
        reply = setting.post(approval_id, decision="deny", message="no")
        assert reply.status_code == 202
    record = reply.get_json()
    assert (record["state"], record["pending"]["decision"], record["pending"]["surface"]) == ("open", "deny", "api")
    assert approval_id not in [each.approval_id for each in setting.approvals.waiting(None)]
    other = setting.post(approval_id, "admin", "allow")
    assert (other.status_code, other.get_json()["details"]["actor"]) == (409, record["pending"]["actor"])
    setting.machine.away = False
    agent_id = setting.approvals.get(approval_id, None).agent_id or ""
    assert approval_rows.undelivered(setting.hub.database, ["agent-of-another"]) == []
    assert approval_rows.any_undelivered(setting.hub.database)
    (waiting,) = approval_rows.undelivered(setting.hub.database, [agent_id])
    assert setting.approvals.deliver(waiting).state == "denied"
    assert setting.on_agent(approval_id).message == "no"
    assert (setting.seen(approval_id)["pending"], setting.seen(approval_id)["problem"]) == (None, None)


def test_the_machine_decides_when_somebody_answered_there_first(setting: Setting) -> None:
    approval_id = setting.asked()
    rows.decide(setting.machine.database, approval_id, Answer("deny"), Person("token", surface="terminal"))
    reply = setting.post(approval_id)
    assert (reply.status_code, reply.get_json()["code"]) == (409, "APPROVAL_CLOSED")
    details = reply.get_json()["details"]
    assert (details["state"], details["actor"], details["surface"]) == ("denied", "token", "terminal")
    assert setting.seen(approval_id)["state"] == "denied"
    same = setting.asked()
    rows.decide(setting.machine.database, same, Answer("allow", HASH), Person("token"))
    assert setting.post(same).status_code == 200  # exactly this answer
    assert setting.seen(same)["actor"] == "token"


def test_a_late_answer_is_shown_with_who_was_first(setting: Setting) -> None:
    approval_id = setting.asked()
    setting.machine.away = True
    assert setting.post(approval_id).status_code == 202
    resolved = {"approvalId": approval_id, "state": "expired", "actor": None, "message": "Nobody answered."}
    approval_rows.note_resolved(setting.hub.database, setting.execution, resolved)
    record = setting.seen(approval_id)
    assert (record["state"], record["message"], record["pending"]) == ("expired", "Nobody answered.", None)
    assert record["problem"]["code"] == "APPROVAL_CLOSED"


def test_of_many_answers_at_once_one_wins_on_hub_and_machine(setting: Setting) -> None:
    approval_id, replies = setting.asked(), []
    start = threading.Barrier(9)

    def answer(number: int) -> None:
        start.wait()
        if number % 3 == 0:
            person = Person("token")
            try:
                rows.decide(setting.machine.database, approval_id, Answer("deny", message=f"{number}"), person)
                replies.append((200, number))
            except errors.Conflict:
                replies.append((409, number))
            return
        reply = setting.post(approval_id, "ada" if number % 3 == 1 else "admin", "deny", message=f"{number}")
        replies.append((reply.status_code, number))

    threads = [threading.Thread(target=answer, args=(number,)) for number in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    won = [number for status, number in replies if status in (200, 202)]
    assert len(replies) == 9
    assert {status for status, _ in replies} <= {200, 202, 409}
    decided = setting.on_agent(approval_id)
    assert decided.message is not None
    assert int(decided.message) in won
    assert len(won) == 1, "a 202 is given only while the machine is away"
    assert setting.seen(approval_id)["state"] == "denied"


def test_forged_and_unfit_answers_are_refused(setting: Setting) -> None:
    approval_id = setting.asked()
    for body in (
        {"inputHash": "0" * 64},
        {"actor": "admin"},
        {"surface": "slack"},
        {"surface": "page"},
        {"answers": {"x": "y"}},
    ):
        reply = setting.post(approval_id, **body)
        assert (reply.status_code, reply.get_json()["code"]) == (422, "INVALID_REQUEST"), body
    assert setting.post("approval-000000000000").status_code == 404
    assert setting.on_agent(approval_id).state == "open"
    assert setting.seen(approval_id)["pending"] is None


def test_an_answer_that_the_machine_refuses_is_taken_back(setting: Setting) -> None:
    approval = setting.machine.ask(setting.on_machine)
    setting.report(ASKED | {"approvalId": approval.approval_id, "inputHash": "b" * 64})  # not that of the machine
    reply = setting.post(approval.approval_id, inputHash="b" * 64)
    assert (reply.status_code, reply.get_json()["code"]) == (422, "INVALID_REQUEST")
    record = setting.seen(approval.approval_id)
    assert (record["state"], record["pending"], record["problem"]["code"]) == ("open", None, "INVALID_REQUEST")
    assert setting.post(approval.approval_id, decision="deny").status_code == 200


def test_a_machine_reports_only_approvals_of_its_own_executions(setting: Setting) -> None:
    approval_id = setting.asked()
    foreign = add(setting.hub.database, f"foreign-{setting.execution}", "owner-of-another", "agent-hostile")
    assert setting.report(ASKED | {"approvalId": approval_id, "tool": "Harmless"}, foreign) is None
    resolved = {"approvalId": approval_id, "state": "allowed", "actor": "ada", "message": None}
    approval_rows.note_resolved(setting.hub.database, foreign, resolved)
    record = setting.seen(approval_id)
    assert (record["state"], record["tool"], record["executionId"]) == (
        "open",
        "Bash",
        setting.on_agent(approval_id).execution_id,
    )
    assert setting.post(approval_id, decision="deny").status_code == 200
    assert setting.on_agent(approval_id).state == "denied"
    # Once closed, neither the event again nor an end again changes it.
    setting.report(ASKED | {"approvalId": approval_id})
    approval_rows.note_resolved(setting.hub.database, setting.execution, resolved)
    assert setting.seen(approval_id)["state"] == "denied"


def test_a_machine_s_odd_words_are_no_rows(setting: Setting) -> None:
    for wrong in (
        {"approvalId": "../agents"},
        {"approvalId": "approval-1\n"},
        {"inputHash": "A"},
        {"kind": 3},
    ):
        event = RawEvent(7, "approval", to_json(ASKED | {"approvalId": "approval-1"} | wrong))
        assert checked(event) is None, wrong
    assert setting.report(ASKED | {"approvalId": "approval-new", "kind": "another"}) is None
    odd = setting.report(ASKED | {"approvalId": "approval-odd", "expiresAt": "soon", "reason": "r" * 1000})
    assert odd is not None
    assert odd.expires_at.endswith("Z")
    assert odd.reason == "r" * 1000
    setting.machine.lie = {"state": "open", "actor": 5}
    assert setting.post("approval-odd").status_code == 202
    setting.machine.lie = {"state": "allowed", "actor": ["x"], "message": 7}
    assert setting.post("approval-odd").get_json()["actor"] is None
    for number in range(150):
        setting.report(ASKED | {"approvalId": f"approval-many-{setting.execution}-{number}"})
    assert len([each for each in setting.approvals.waiting(None) if each.execution == setting.execution]) == 100


def test_only_an_input_that_is_here_whole_is_allowed(setting: Setting) -> None:
    setting.machine.away = True
    approval = setting.machine.ask(setting.on_machine, "make it and more")
    setting.report(ASKED | {"approvalId": approval.approval_id, "truncated": True})
    assert setting.seen(approval.approval_id)["truncated"]
    reply = setting.post(approval.approval_id)
    assert (reply.status_code, reply.get_json()["code"]) == (503, "AGENT_UNREACHABLE")
    setting.machine.away = False
    record = setting.seen(approval.approval_id)
    assert (record["truncated"], record["input"]) == (False, {"command": "make it and more"})
    assert setting.post(approval.approval_id).status_code == 200


def test_the_end_of_an_execution_withdraws_what_is_open(setting: Setting) -> None:
    approval_id = setting.asked()
    setting.machine.away = True
    assert setting.post(approval_id).status_code == 202
    lifecycle.finish(setting.hub.database, setting.execution, Outcome.failure("AGENT_LOST", "away"))
    assert setting.seen(approval_id)["state"] == "withdrawn"
    agent_id = setting.approvals.get(approval_id, None).agent_id or ""
    assert approval_rows.undelivered(setting.hub.database, [agent_id]) == []
    assert setting.post(approval_id).status_code == 409
    assert setting.report(ASKED | {"approvalId": "approval-after-the-end"}) is None


def test_an_approval_that_the_machine_forgot_is_withdrawn(setting: Setting) -> None:
    setting.report(ASKED | {"approvalId": f"approval-lost-{setting.execution}"})
    assert setting.post(f"approval-lost-{setting.execution}").status_code == 409
    assert setting.seen(f"approval-lost-{setting.execution}")["state"] == "withdrawn"


def test_the_time_in_which_a_person_is_asked_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("occ_worker.relay.patience.time.monotonic", lambda: now[0])
    patience = Patience(begun=False)
    patience.begun()
    now[0] += 5
    patience.hold(asked=True)
    now[0] += 1000
    patience.hold(asked=True)
    assert patience.over(None, 10) is None
    patience.hold(asked=False)
    now[0] += 8
    assert patience.over(None, 10) is None
    now[0] += 2
    ended = patience.over(None, 10)
    assert ended is not None
    assert ended.data["code"] == "EXECUTION_TIMEOUT"
    assert patience.over("EXECUTION_CANCELLED", 10) is not None


def test_a_list_of_large_inputs_stays_small(setting: Setting) -> None:
    for number in range(3):
        whole = {"command": "x" * 250_000}
        setting.report(ASKED | {"approvalId": f"approval-large-{setting.execution}-{number}", "input": whole})
    reply = setting.hub.call("GET", "/approvals?state=open", setting.keys["ada"])
    assert len(reply.data) < 100_000
    assert [each["truncated"] for each in reply.get_json()["approvals"]] == [True] * 3
    assert setting.seen(f"approval-large-{setting.execution}-0")["input"] == whole


def test_the_newest_of_many_are_listed(setting: Setting) -> None:
    ids = [f"approval-listed-{setting.execution}-{number}" for number in range(3)]
    for number, approval_id in enumerate(ids):
        setting.report(ASKED | {"approvalId": approval_id, "askedAt": f"2026-01-0{number + 1}T00:00:00.000Z"})
    owner = setting.seen(ids[0])["executionId"]
    found = rows.listing(setting.hub.database, limit=10_000)
    assert [each.approval_id for each in found if each.execution_id == owner] == ids
    asked_last = max(found, key=lambda each: (each.asked_at, each.approval_id))
    assert rows.listing(setting.hub.database, limit=1) == [asked_last]


def test_retention_takes_the_inputs_of_approvals_with_the_prompt(setting: Setting) -> None:
    approval_id = setting.asked()
    lifecycle.finish(setting.hub.database, setting.execution, Outcome.failure("AGENT_LOST", "away"))
    lifecycle.forget_prompt(setting.hub.database, setting.execution)
    assert setting.seen(approval_id)["code"] == "APPROVAL_NOT_FOUND"


def test_a_person_at_the_terminal_answers_through_the_hub(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    approval_id = setting.asked()
    client = Machine(setting.hub.app)  # a client of the hub, as its operator
    typed = iter(["n", "not that"])
    monkeypatch.setattr("click.prompt", lambda *_, **__: next(typed))
    for stream in (sys.stdin, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    event = StreamEvent(7, "approval", {"approvalId": approval_id})
    assert list(asking(cast("AgentClient", client), iter([event]), here=True)) == [event]
    found = setting.on_agent(approval_id)
    assert (found.state, found.message, found.actor, found.surface) == ("denied", "not that", "operator", "terminal")


def test_an_answer_of_a_key_that_was_revoked_is_not_delivered(setting: Setting) -> None:
    approval_id = setting.asked()
    setting.machine.away = True
    assert setting.post(approval_id).status_code == 202
    name = setting.seen(approval_id)["pending"]["actor"]
    assert setting.hub.call("POST", f"/keys/{name}/revoke").status_code == 200
    setting.machine.away = False
    setting.approvals.deliver(setting.approvals.get(approval_id, None))
    assert setting.on_agent(approval_id).state == "open"
    record = setting.seen(approval_id, "admin")
    assert (record["pending"], record["problem"]["code"]) == (None, "FORBIDDEN")
    assert setting.post(approval_id, "admin", "deny").status_code == 200


def test_machines_that_hang_hold_few_threads_and_an_answer_waits_instead(setting: Setting) -> None:
    approval_id, places = setting.asked(), setting.approvals.places
    taken = 0
    while places.acquire(blocking=False):
        taken += 1
    try:
        assert taken < 16
        assert setting.post(approval_id).status_code == 202
        assert f"POST /approvals/{approval_id}" not in setting.machine.calls
    finally:
        for _ in range(taken):
            places.release()
    assert setting.post(approval_id).status_code == 200  # the same again delivers it


def test_an_answer_is_remembered_on_the_machine(setting: Setting) -> None:
    approval_id = setting.asked()
    assert setting.seen(approval_id)["alwaysAllows"] == ["Bash(make)"]
    assert setting.post(approval_id, remember="workspace").status_code == 200
    rules = setting.machine.call("GET", "/rules")["rules"]
    assert [(rule["rule"], rule["actor"]) for rule in rules if rule["workspaceId"] is not None] == [
        ("Bash(make)", setting.seen(approval_id)["actor"])
    ]


def execution_of(setting: Setting) -> Execution:
    """The execution that runs, as the hub has it."""
    with setting.hub.database.read() as connection:
        return queries.numbered(connection, setting.execution)


def test_always_on_a_page_writes_the_rule_on_the_machine_and_stores_who_it_was(setting: Setting) -> None:
    approval_id, run = setting.asked(), execution_of(setting).execution_id
    browser = setting.hub.browser()
    assert browser.post("/login", data={"key": setting.keys["ada"]}).status_code == 303
    shown = browser.get(f"/runs/{run}").text
    section = shown[shown.index(f'id="{approval_id}"') :]
    assert '<option value="workspace">Bash(make) always in this workspace</option>' in section
    csrf = re.search(r'name="csrf" value="([^"]+)"', section)
    assert csrf is not None
    form = {"csrf": html.unescape(csrf[1]), "hash": HASH, "decision": "allow", "remember": "workspace"}
    for _ in range(2):  # the same answer again adds nothing
        assert browser.post(f"/runs/{run}/approvals/{approval_id}", data=form).status_code == 303
    found = setting.on_agent(approval_id)
    assert (found.state, found.surface) == ("allowed", "page")
    stored = rules.for_execution(setting.machine.database, setting.on_machine)
    assert [(rule.decision, rule.text) for rule in stored] == [("allow", "Bash(make)")]


def test_a_request_s_rules_reach_the_machine(setting: Setting) -> None:
    workspace = execution_of(setting).workspace_id
    narrow = {"deny": ["Bash(git push *)", "WebSearch"], "ask": ["Edit"]}
    body = {"executionId": f"{workspace}-narrow", "workspaceId": workspace, "prompt": "x", **narrow}
    here = {"gunicorn.socket": None}  # only the stored events are read
    setting.hub.call("POST", "/execute", json=body, environ_overrides=here).close()
    accepted = queries.get(setting.hub.database, f"{workspace}-narrow")
    context = cast("RelayContext", type("Context", (), {"db": setting.hub.database})())
    sent = request_body(context, accepted, accepted.permissions)
    reply = setting.machine.app.test_client().post(
        "/execute", json=sent, headers=token(setting.machine.app), environ_overrides=here
    )
    assert reply.status_code == 200, reply.text
    reply.close()
    number = queries.get(setting.machine.database, f"{workspace}-narrow").number
    stored = rules.for_execution(setting.machine.database, number)
    assert [(rule.decision, rule.text) for rule in stored] == [
        *(("deny", "Bash(git push *)"), ("deny", "WebSearch")),
        ("ask", "Edit"),
    ]


def test_an_owner_lists_adds_and_removes_the_rules_of_a_workspace_over_the_hub(setting: Setting) -> None:
    def call(method: str, path: str, who: str = "ada", **more: Any) -> Any:
        return setting.hub.call(method, path, setting.keys[who], **more)

    with setting.hub.database.write() as connection:
        workspace = connection.execute(
            """
            UPDATE workspaces SET (owner_id, agent_id) = (
                SELECT owner_id, agent_id FROM executions WHERE number = :number)
            WHERE generation = (SELECT workspace_generation FROM executions WHERE number = :number)
            RETURNING workspace_id
            """,
            {"number": setting.execution},
        ).fetchone()["workspace_id"]
    place = f"?workspaceId={workspace}"
    body = {"rule": "Bash(git push *)", "decision": "deny", "workspaceId": workspace}
    added = call("POST", "/rules", json=body)
    assert added.status_code == 201, added.text
    rule_id = added.json["ruleId"]
    assert added.json["workspaceId"] == workspace
    assert rule_id in [each["ruleId"] for each in call("GET", f"/rules{place}").json["rules"]]
    assert call("GET", f"/rules{place}", "bob").status_code == 404
    assert call("DELETE", f"/rules/{rule_id}{place}", "bob").status_code == 404
    assert call("POST", "/rules", "bob", json=body).status_code == 404
    assert call("POST", "/rules", json=body | {"rule": "Bash(a; b)"}).status_code == 422
    assert call("GET", "/rules").status_code == 422
    assert call("DELETE", f"/rules/rule-none{place}").json["code"] == "RULE_NOT_FOUND"
    setting.machine.away = True
    assert call("GET", f"/rules{place}").json["code"] == "AGENT_UNREACHABLE"
    setting.machine.away = False
    setting.machine.lie = {"rules": [{"ruleId": 7, "workspaceId": workspace}]}
    assert call("GET", f"/rules{place}").json["code"] == "AGENT_UNREACHABLE"
    setting.machine.lie = None
    assert call("DELETE", f"/rules/{rule_id}{place}").status_code == 200
    assert rule_id not in [each["ruleId"] for each in call("GET", f"/rules{place}").json["rules"]]
