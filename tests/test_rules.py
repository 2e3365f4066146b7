"""Rules on tool calls: their rows, the API, the commands, and the verdict on a call of a run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from flask import Flask

from occ_app import wsgi
from occ_app.cli import approval_prompts
from occ_app.cli.commands import occ
from occ_app.config import config
from occ_app.config.config import Config
from occ_app.config.permission_rules import Rule, parsed
from occ_app.database.database import Database
from occ_app.errors import ConfigError, Refused
from occ_app.executions import answers, approvals, lifecycle, parking, rules
from occ_app.executions.records import Execution, Request
from occ_app.executions.spent import Spent
from occ_worker.execution import command, verdicts
from occ_worker.execution.deferral import Resumable
from tests.test_approval_commands import AppClient, ask, use
from tests.test_contracts import served
from tests.test_ownership import accept, on_hub


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Flask]:
    yield from served(config.load({"OCC_HOME": str(tmp_path / "agent"), "HOME": str(tmp_path)}), wsgi.make_app)


@pytest.fixture
def client(agent: Flask, monkeypatch: pytest.MonkeyPatch) -> AppClient:
    return use(agent, monkeypatch)


@pytest.fixture
def database(agent: Flask) -> Database:
    found: Database = agent.extensions["occ"].db
    return found


def execution(database: Database, workspace_id: str, owner: str = "") -> Execution:
    """A run in a workspace of its own."""
    on_hub(database, workspace_id, owner)
    return accept(database, f"run-{workspace_id}", workspace_id, key_id=owner)


def texts(found: list[Rule]) -> list[str]:
    return [f"{rule.decision} {rule.text}" for rule in found]


def test_rules_count_for_their_agent_workspace_conversation_or_execution(client: AppClient, database: Database) -> None:
    mine, other = execution(database, "mine"), execution(database, "other")
    for rule, place in {
        "Bash(a)": {},
        "Bash(b)": {"workspaceId": "mine"},
        "Bash(c)": {"executionId": mine.execution_id},
        "Bash(d)": {"executionId": mine.execution_id, "scope": "conversation"},
    }.items():
        added = client.call("POST", "/rules", {"rule": rule, "decision": "deny", **place})
        assert added["ruleId"].startswith("rule-")
    assert texts(rules.for_execution(database, mine.number)) == [f"deny Bash({name})" for name in "abcd"]
    assert texts(rules.for_execution(database, other.number)) == ["deny Bash(a)"]
    scopes = [each["scope"] for each in client.call("GET", "/rules")["rules"]]
    assert scopes == ["agent", "workspace", "execution", "conversation"]


def test_a_later_workspace_of_the_same_id_has_no_rules_of_the_former(client: AppClient, database: Database) -> None:
    execution(database, "mine")
    client.call("POST", "/rules", {"rule": "Bash(ls)", "decision": "allow", "workspaceId": "mine"})
    with database.write() as connection:
        connection.execute("DELETE FROM workspaces WHERE workspace_id = 'mine'")
    assert client.call("GET", "/rules")["rules"] == []


def test_owners_see_and_remove_their_own_rules_alone(database: Database) -> None:
    mine, other = execution(database, "mine", "owner-a"), execution(database, "other", "owner-b")
    with database.write() as connection:
        place = rules.of_execution(connection, mine.execution_id, conversation=True, visible_to="owner-a")
        rule_id = rules.add(connection, place, Rule("allow", "WebSearch"), "a")
        assert rules.add(connection, place, Rule("allow", "WebSearch"), "a") == rule_id  # the same, once
    assert [each.rule_id for each in rules.listing(database, "owner-a")] == [rule_id]
    assert rules.listing(database, "owner-b") == []
    assert rules.for_execution(database, other.number) == []
    with pytest.raises(Exception, match="no rule"):
        rules.remove(database, rule_id, "owner-b")
    with pytest.raises(Exception, match="no execution"), database.write() as connection:
        rules.of_execution(connection, mine.execution_id, conversation=False, visible_to="owner-b")
    rules.remove(database, rule_id, "owner-a")
    assert rules.listing(database) == []


def test_wrong_rules_are_refused(client: AppClient, database: Database) -> None:
    execution(database, "mine")
    for body, code in (
        ({"rule": "Bash(a; b)", "decision": "allow"}, "INVALID_REQUEST"),
        ({"rule": "Bash(sudo ls)", "decision": "allow"}, "INVALID_REQUEST"),
        ({"rule": "Bash", "decision": "always"}, "INVALID_REQUEST"),
        ({"rule": "Bash", "decision": "deny", "scope": "conversation"}, "INVALID_REQUEST"),
        ({"rule": "Bash", "decision": "deny", "workspaceId": "mine", "executionId": "x"}, "INVALID_REQUEST"),
        ({"rule": "Bash", "decision": "deny", "workspaceId": "none"}, "WORKSPACE_NOT_FOUND"),
        ({"rule": "Bash", "decision": "deny", "executionId": "none"}, "EXECUTION_NOT_FOUND"),
    ):
        with pytest.raises(Refused) as refused:
            client.call("POST", "/rules", body)
        assert refused.value.code == code, body
    with pytest.raises(Refused) as refused:
        client.call("DELETE", "/rules/rule-none")
    assert refused.value.code == "RULE_NOT_FOUND"


def test_a_workspace_has_room_for_so_many_rules(
    client: AppClient, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    execution(database, "mine")
    monkeypatch.setattr(rules, "MOST", 2)
    for name in "ab":
        client.call("POST", "/rules", {"rule": f"Bash({name})", "decision": "deny", "workspaceId": "mine"})
    with pytest.raises(Refused) as refused:
        client.call("POST", "/rules", {"rule": "Bash(c)", "decision": "deny", "workspaceId": "mine"})
    assert (refused.value.status, refused.value.code) == (409, "TOO_MANY_RULES")
    client.call("POST", "/rules", {"rule": "Bash(c)", "decision": "deny"})


def run(*words: str) -> Result:
    return CliRunner().invoke(occ, ["rules", *words], standalone_mode=True)


def test_the_commands_add_list_and_remove(
    client: AppClient, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = execution(database, "mine")
    monkeypatch.setattr("occ_app.cli.ids.workspace", lambda _client, name: {"workspaceId": name})
    monkeypatch.setattr("occ_app.cli.ids.execution_id", lambda _source, given, last: given)
    assert "allow Bash(pytest *) (workspace)" in run("add", "Bash(pytest:*)", "--workspace", "mine").output
    assert "(conversation)" in run("add", "WebSearch", "--run", first.execution_id).output
    assert "deny Bash(git push *) (agent)" in run("add", "Bash(git push *)", "--deny").output
    assert "ask WebFetch (agent)" in run("add", "WebFetch", "--ask").output
    listed = run("list").output
    assert [line.split()[1] for line in listed.splitlines()[1:]] == ["allow", "allow", "deny", "ask"]
    rule_id = listed.splitlines()[1].split()[0]
    assert run("remove", rule_id[:-1]).output == f"{rule_id} is removed\n"
    assert rule_id not in run("list").output
    assert run("remove", rule_id).exit_code != 0
    assert run("add", "Bash", "--workspace", "mine", "--run", first.execution_id).exit_code == 2


def test_a_request_narrows_its_own_run_alone_and_its_rules_end_with_it(client: AppClient, database: Database) -> None:
    execution(database, "mine")
    body = {"executionId": "narrow", "workspaceId": "mine", "prompt": "x"}
    narrow = {"deny": ["Bash(git push *)", "WebSearch"], "ask": ["Edit"]}
    request = Request(
        **{"execution_id": "narrow", "workspace_id": "mine", "prompt": "x", "timeout_seconds": 9},
        **{"idle_timeout_seconds": 9, "model": None, "max_turns": None, "max_budget_usd": None},
        **{"session_id": None, "hash": ""},
        rules=tuple(parsed(text, decision) for decision, each in narrow.items() for text in each),
    )
    number = lifecycle.create(database, request, max_queue=9)[0].number
    expected = ["deny Bash(git push *)", "deny WebSearch", "ask Edit"]
    assert texts(rules.for_execution(database, number)) == expected
    assert [rules.requested(database, number, each) for each in ("deny", "ask")] == list(narrow.values())
    for wrong in ({"deny": ["Bash(a; b)"]}, {"ask": "Bash"}, {"allow": ["Bash"]}, {"deny": ["Bash"] * 51}):
        with pytest.raises(Refused) as refused:
            client.call("POST", "/execute", {**body, **wrong})
        assert refused.value.code == "INVALID_REQUEST", wrong
    lifecycle.cancel(database, "narrow", "EXECUTION_CANCELLED", "x")
    assert rules.for_execution(database, number) == []


# -- settings


def agent_config(**values: str) -> Config:
    return config.load({"OCC_HOME": "/nowhere", "HOME": "/nowhere", **values})


def test_the_operator_s_rules_are_settings() -> None:
    settings = agent_config(OCC_ALLOW="Bash(pytest *), WebSearch", OCC_DENY="Bash(git push *)", OCC_TOOLS="Read,Agent")
    assert texts(list(settings.rules)) == [
        *("allow Agent", "allow Bash(pytest *)", "allow WebSearch", "deny Bash(git push *)"),
    ]
    for name, value in (("OCC_ALLOW", "Bash(a; b)"), ("OCC_ALLOW", "Bash(env ls)"), ("OCC_DENY", "x y")):
        with pytest.raises(ConfigError, match=name):
            agent_config(**{name: value})
    with pytest.raises(ConfigError, match="OCC_ALLOW"):
        agent_config(OCC_TOOLS="Read,Bash(ls)")
    assert config.load({"OCC_HOME": "/nowhere", "HOME": "/nowhere"}, {"allow": "Bash(ls)"}).allow == ("Bash(ls)",)


def test_allowed_tools_are_offered_and_no_call_is_granted_by_a_flag(database: Database) -> None:
    settings = agent_config(OCC_ALLOW="Bash(pytest *),mcp__db", OCC_TOOLS="Read,WebSearch")
    asked = execution(database, "mine")
    for permissions, tools in {"edit": "Read,WebSearch,Bash", "plan": None, "ask": None, "full": None}.items():
        argv = command.command("claude", replace(asked, permissions=permissions), None, settings)
        assert "--allowedTools" not in argv
        if tools is not None:
            assert argv[argv.index("--tools") + 1] == tools


@pytest.mark.parametrize(("tool", "permissions"), [("Bash", "full"), ("mcp__db__query", "ask"), ("Bash", "edit")])
def test_a_process_that_resumes_a_parked_call_grants_nothing_and_waits_for_the_hook(
    database: Database, tool: str, permissions: str
) -> None:
    running = execution(database, "mine")
    asked = answers.Request("tool", tool, {}, "0" * 64)
    parked = parking.Parked(approvals.ask(database, running.number, asked, 95), "call", Spent())
    resumes = Resumable(knows_defer=True, parked=parked)
    known = replace(running, permissions=permissions, session_id="s", resume_session_id="former")
    argv = command.command("claude", known, None, agent_config(OCC_ALLOW="Bash(ls)"), resumes)
    given = {name: argv[argv.index(name) + 1] for name in ("--permission-mode", "--permission-prompt-tool", "--resume")}
    assert given == {"--permission-mode": "default", "--permission-prompt-tool": "stdio", "--resume": "s"}
    settings = json.loads(argv[argv.index("--settings") + 1])["permissions"]
    assert (tool in settings["ask"], settings.get("allow")) == (True, None)
    assert "--await-initialize" in argv
    assert "--allowedTools" not in argv
    assert tool.startswith("mcp__") or tool in argv[argv.index("--tools") + 1].split(",")


# -- verdicts


def verdict(permissions: str, tool: str, given: Any, *stored: Rule, **settings: str) -> str:
    known = agent_config(**settings)
    return verdicts.judged(permissions, (*known.rules, *stored), known, tool, given).decision


LS, PUSH = {"command": "ls"}, {"command": "git push"}


@pytest.mark.parametrize(
    ("permissions", "expected"),
    [("plan", "cli cli cli"), ("edit", "deny allow cli"), ("ask", "ask allow cli"), ("full", "allow allow cli")],
)
def test_a_call_runs_by_the_operator_s_rule_or_the_run_s_permissions(permissions: str, expected: str) -> None:
    calls = [("Bash", PUSH), ("Bash", LS), ("Read", {"file_path": "x"})]
    assert " ".join(verdict(permissions, *call, OCC_ALLOW="Bash(ls)") for call in calls) == expected


def test_nothing_outweighs_a_rule_that_denies() -> None:
    for permissions in ("plan", "edit", "ask", "full"):
        assert verdict(permissions, "Bash", PUSH, Rule("allow", "Bash"), OCC_DENY="Bash(git push *)") == "deny"
        assert verdict(permissions, "Write", {}, Rule("allow", "Write"), Rule("deny", "Write")) == "deny"


def test_people_s_rules_allow_only_where_people_are_asked() -> None:
    allowed = Rule("allow", "Bash", "ls")
    assert [verdict(each, "Bash", LS, allowed) for each in ("edit", "ask", "full")] == ["deny", "allow", "allow"]
    asked = Rule("ask", "Bash", "ls")
    assert [verdict(each, "Bash", LS, asked) for each in ("edit", "ask", "full")] == ["deny", "ask", "ask"]
    assert verdict("ask", "Edit", {"file_path": "x"}, Rule("ask", "Edit")) == "ask"
    assert verdict("full", "AskUserQuestion", {}, Rule("ask", "AskUserQuestion")) == "cli"


def test_a_lowered_ceiling_holds_for_runs_that_were_accepted_above_it(database: Database) -> None:
    accepted = replace(execution(database, "mine"), permissions="full")
    low = agent_config(OCC_PERMISSIONS="edit")
    assert verdicts.level(low, accepted) == "edit"
    assert verdicts.of(database, low, accepted, "Bash", LS).decision == "deny"
    assert verdicts.of(database, agent_config(OCC_PERMISSIONS="full"), accepted, "Bash", LS).decision == "allow"


def test_a_run_that_edits_comes_to_the_hook_once_there_are_rules(database: Database) -> None:
    edits = replace(execution(database, "mine"), permissions="edit")
    assert not verdicts.hooked(database, agent_config(), edits)
    assert verdicts.hooked(database, agent_config(OCC_DENY="Bash"), edits)
    with database.write() as connection:
        rules.add(connection, rules.Place("agent"), Rule("deny", "Write"), "token")
    assert verdicts.hooked(database, agent_config(), edits)


def test_a_low_ceiling_takes_no_allowing_rules_of_people(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"OCC_HOME": str(tmp_path / "agent"), "HOME": str(tmp_path), "OCC_PERMISSIONS": "edit"}
    for app in served(config.load(settings), wsgi.make_app):
        client = use(app, monkeypatch)
        with pytest.raises(Refused) as refused:
            client.call("POST", "/rules", {"rule": "Bash", "decision": "allow"})
        assert (refused.value.status, refused.value.code) == (403, "PERMISSION_CEILING")
        client.call("POST", "/rules", {"rule": "Bash", "decision": "deny"})


# -- "always"


def record(client: AppClient, approval_id: str) -> dict[str, Any]:
    found: dict[str, Any] = client.call("GET", f"/approvals/{approval_id}")
    return found


def answer(client: AppClient, approval_id: str, **body: Any) -> Any:
    return client.call("POST", f"/approvals/{approval_id}", {"decision": "allow", "inputHash": "0" * 64, **body})


@pytest.mark.parametrize(("remember", "scope"), [("workspace", "workspace"), ("conversation", "conversation")])
def test_always_writes_a_rule_for_each_command_that_was_shown(
    agent: Flask, client: AppClient, database: Database, remember: str, scope: str
) -> None:
    approval_id = ask(agent, "cd app && pytest -q")
    asked = record(client, approval_id)
    assert asked["alwaysAllows"] == ["Bash(cd app)", "Bash(pytest -q)"]
    for _ in range(2):  # the same answer again adds nothing
        assert answer(client, approval_id, remember=remember)["state"] == "allowed"
    stored = client.call("GET", "/rules")["rules"]
    assert [(each["rule"], each["decision"], each["scope"], each["actor"]) for each in stored] == [
        ("Bash(cd app)", "allow", scope, "token"),
        ("Bash(pytest -q)", "allow", scope, "token"),
    ]
    number = approvals.get(database, approval_id).execution
    assert texts(rules.for_execution(database, number)) == ["allow Bash(cd app)", "allow Bash(pytest -q)"]


def test_once_writes_none_and_an_edited_call_is_remembered_as_it_was_edited(agent: Flask, client: AppClient) -> None:
    assert answer(client, ask(agent, "ls"), remember="once")["state"] == "allowed"
    assert client.call("GET", "/rules")["rules"] == []
    answer(client, ask(agent, "pwd"), remember="workspace", updatedInput={"command": "pwd -P"})
    assert [each["rule"] for each in client.call("GET", "/rules")["rules"]] == ["Bash(pwd -P)"]


def test_a_call_that_cannot_be_read_for_certain_is_never_remembered(agent: Flask, client: AppClient) -> None:
    approval_id = ask(agent, "echo $(id) > x")
    assert record(client, approval_id)["alwaysAllows"] == []
    for body in (
        {"remember": "workspace"},
        {"remember": "workspace", "decision": "deny"},
        {"remember": "for ever"},
    ):
        with pytest.raises(Refused) as refused:
            answer(client, approval_id, **body)
        assert refused.value.code == "INVALID_REQUEST"
    assert record(client, approval_id)["state"] == "open"


def test_an_edited_input_passes_the_rules_and_the_limit(agent: Flask, client: AppClient) -> None:
    approval_id = ask(agent, "make")
    client.call("POST", "/rules", {"rule": "Bash(git push *)", "decision": "deny"})
    with pytest.raises(Refused) as refused:
        answer(client, approval_id, updatedInput={"command": "make; git -C . push"})
    assert (refused.value.status, refused.value.code) == (403, "RULE_DENIES")
    with pytest.raises(Refused) as refused:
        answer(client, approval_id, updatedInput={"command": "x" * 300_000})
    assert refused.value.code == "INVALID_REQUEST"
    assert record(client, approval_id)["state"] == "open"
    assert answer(client, approval_id, updatedInput={"command": "make all"})["state"] == "allowed"


def test_an_input_with_secrets_is_neither_edited_nor_remembered(
    agent: Flask, client: AppClient, database: Database
) -> None:
    approval_id = ask(agent, "make")
    with database.write() as connection:
        connection.execute("UPDATE approvals SET redacted = 1")
    assert record(client, approval_id)["alwaysAllows"] == []
    with pytest.raises(Refused) as refused:
        answer(client, approval_id, updatedInput={"command": "make all"})
    assert (refused.value.status, refused.value.code) == (409, "INPUT_REDACTED")
    with pytest.raises(Refused) as refused:
        answer(client, approval_id, remember="workspace")
    assert refused.value.code == "INVALID_REQUEST"


def test_the_command_allows_always_only_where_it_can(agent: Flask, client: AppClient) -> None:
    plain, other = ask(agent, "pytest"), ask(agent, "pytest > x")
    done = CliRunner().invoke(occ, ["approve", plain, "--always"])
    assert "always  Bash(pytest)" in done.output
    assert [each["rule"] for each in client.call("GET", "/rules")["rules"]] == ["Bash(pytest)"]
    assert CliRunner().invoke(occ, ["approve", other, "--always"]).exit_code == 2
    assert record(client, other)["state"] == "open"


@pytest.mark.parametrize(
    ("typed", "rules_after", "state"), [("a\n", 1, "allowed"), ("y\n", 0, "allowed"), ("n\nno\n", 0, "denied")]
)
def test_a_person_at_the_terminal_answers_yes_always_or_no(
    agent: Flask, client: AppClient, monkeypatch: pytest.MonkeyPatch, typed: str, rules_after: int, state: str
) -> None:
    approval_id = ask(agent, "pytest -q")
    shown = at_terminal(monkeypatch, client, approval_id, typed)
    assert "command: pytest -q" in shown
    assert "a: always" in shown
    assert record(client, approval_id)["state"] == state
    assert len(client.call("GET", "/rules")["rules"]) == rules_after


def test_always_is_not_offered_for_a_call_that_cannot_be_remembered(
    agent: Flask, client: AppClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    approval_id = ask(agent, "a & b")
    assert "always" not in at_terminal(monkeypatch, client, approval_id, "a\ny\n")
    assert client.call("GET", "/rules")["rules"] == []


def at_terminal(monkeypatch: pytest.MonkeyPatch, client: AppClient, approval_id: str, typed: str) -> str:
    """Let a person at a terminal be asked about an approval; returns all that the terminal showed."""
    event = SimpleNamespace(name="approval", data={"approvalId": approval_id})

    @click.command()
    def asked() -> None:
        monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
        monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
        list(approval_prompts.asking(client, iter([event]), here=True))  # type: ignore[arg-type]  # as far as it is used

    return CliRunner().invoke(asked, input=typed).output


# -- inputs made to deceive


def ask_about(database: Database, line: str) -> str:
    """Add an approval of a line that is no part of an id."""
    run = execution(database, "mine")
    return approvals.ask(
        database, run.number, answers.Request("tool", "Bash", {"command": line}, "0" * 64), 95
    ).approval_id


def test_nothing_in_an_input_can_hide_or_look_like_something_else(client: AppClient, database: Database) -> None:
    tricks = "\x1b[2K\x1b[1A\u202e\u200b\u2066\u00a0\u3164\ufe0f\u061c\U000e0041\r\b"
    approval_id = ask_about(database, f"ls {tricks}; rm -rf x")
    assert (
        record(client, approval_id)["input"]["command"] == f"ls {tricks}; rm -rf x"
    )  # whole for a client that escapes
    for arguments in (["approvals"], ["approve", approval_id]):
        printed = CliRunner().invoke(occ, arguments).output
        assert not {char for char in tricks if not char.isascii() or not char.isprintable()} & set(printed)
        for escaped in ("\\x1b[2K", "\\u202e", "\\u200b", "\\xa0", "\\u3164", "\\ufe0f", "\\U000e0041", "; rm -rf x"):
            assert escaped in printed


def test_a_command_that_looks_harmless_in_the_list_is_marked_and_shown_whole(
    client: AppClient, database: Database
) -> None:
    approval_id = ask_about(database, "ls " + "a" * 300 + "; rm -rf x")
    listed = CliRunner().invoke(occ, ["approvals"]).output
    assert "rm -rf" not in listed
    assert "…" in listed
    assert client.calls
    assert "; rm -rf x" in CliRunner().invoke(occ, ["approve", approval_id]).output


def test_on_a_hub_the_commands_name_a_workspace(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = list[str]()
    rule = {"ruleId": "rule-1", "rule": "Bash(ls)", "decision": "allow", "scope": "workspace"}
    rule |= {"workspaceId": "mine", "conversationId": None, "executionId": None}

    def call(method: str, path: str, _body: Any = None) -> Any:
        calls.append(f"{method} {path}")
        return {"rules": [rule]} if method == "GET" else rule

    monkeypatch.setattr("occ_app.cli.remote.chosen", lambda *_, **__: SimpleNamespace(call=call))
    monkeypatch.setattr("occ_app.cli.remote.is_hub", lambda _: True)
    monkeypatch.setattr("occ_app.cli.ids.workspace", lambda _client, name: {"workspaceId": name})
    for words in (["list"], ["remove", "rule-1"], ["add", "Bash(ls)"], ["add", "Bash(ls)", "--run", "x"]):
        assert run(*words).exit_code == 2
    assert calls == []
    assert "Bash(ls)" in run("list", "--workspace", "mine").output
    assert run("remove", "rule", "--workspace", "mine").output == "rule-1 is removed\n"
    assert run("add", "Bash(ls)", "--workspace", "mine").exit_code == 0
    assert calls[-2:] == ["DELETE /rules/rule-1?workspaceId=mine", "POST /rules"]
