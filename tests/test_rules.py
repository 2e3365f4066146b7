"""Rules on tool calls: their rows, the API, the commands, and the verdict on a call of a run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from flask import Flask

from occ_app import wsgi
from occ_app.cli.commands import occ
from occ_app.config import config
from occ_app.config.config import Config
from occ_app.config.permission_rules import Rule
from occ_app.database.database import Database
from occ_app.errors import ConfigError, Refused
from occ_app.executions import rules
from occ_app.executions.records import Execution
from occ_worker.execution import command, verdicts
from tests.test_approval_commands import AppClient, use
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
    assert config.load({"OCC_HOME": "/nowhere", "HOME": "/nowhere"}, {"allow": "Bash(ls)"}).allow == ("Bash(ls)",)


def test_allowed_tools_are_offered_and_no_call_is_granted_by_a_flag(database: Database) -> None:
    settings = agent_config(OCC_ALLOW="Bash(pytest *),mcp__db", OCC_TOOLS="Read,WebSearch")
    asked = execution(database, "mine")
    for permissions, tools in {"edit": "Read,WebSearch,Bash", "plan": None, "ask": None, "full": None}.items():
        argv = command.command("claude", replace(asked, permissions=permissions), None, settings)
        assert "--allowedTools" not in argv
        if tools is not None:
            assert argv[argv.index("--tools") + 1] == tools


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
