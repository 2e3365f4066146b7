"""The commands on approvals, and the permissions of `occ run`, against applications in the test's own process."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from flask import Flask

from occ_app import errors, wsgi
from occ_app.cli import chat_input, remote, run_target
from occ_app.cli.commands import occ
from occ_app.config import config
from occ_app.database.database import Database
from occ_app.executions import answers, approvals, lifecycle
from occ_app.executions.records import Request
from tests import sentences
from tests.hub_app import hub_app
from tests.test_contracts import served, token
from tests.test_ownership import on_hub


@dataclass
class AppClient:
    """The calls of a client, made on an application in this process."""

    app: Flask
    calls: list[str] = field(default_factory=list)

    def call(self, method: str, path: str, content: Mapping[str, Any] | None = None) -> Any:
        self.calls.append(f"{method} {path}")
        reply = self.app.test_client().open(path, method=method, headers=token(self.app), json=content)
        body = reply.get_json()
        if reply.status_code >= 400:
            raise errors.Refused(body["message"], reply.status_code, body["code"])
        return body


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Flask]:
    for app in served(config.load({"OCC_HOME": str(tmp_path / "agent"), "HOME": str(tmp_path)}), wsgi.make_app):
        use(app, monkeypatch)
        yield app


def use(app: Flask, monkeypatch: pytest.MonkeyPatch) -> AppClient:
    """Let each command talk to this application."""
    client = AppClient(app)
    monkeypatch.setattr(remote, "chosen", lambda *_, **__: client)
    return client


def ask(app: Flask, command: str) -> str:
    """Add an open approval of a run; returns its id."""
    database: Database = app.extensions["occ"].db
    on_hub(database, f"w-{command}", "")
    request = Request(f"run-{command}", f"w-{command}", "x", 600, 9, None, None, None, None, "")
    lifecycle.create(database, request, max_queue=100)
    with database.read() as connection:
        number = connection.execute("SELECT max(number) FROM executions").fetchone()[0]
    asked = answers.Request("tool", "Bash", {"command": command}, "0" * 64)
    return approvals.ask(database, number, asked, 95).approval_id


def command(*arguments: str) -> Result:
    return CliRunner().invoke(occ, arguments)


def state(approval_id: str) -> tuple[str, str | None]:
    known = {
        each["approvalId"]: each for each in json.loads(command("approvals", "--all", "--json").stdout)["approvals"]
    }
    return known[approval_id]["state"], known[approval_id]["message"]


def test_the_list_shows_when_a_call_is_denied(agent: Flask) -> None:
    ask(agent, "make")
    head, line = command("approvals").stdout.splitlines()
    assert head.split() == ["ID", "EXECUTION", "STATE", "AGE", "EXPIRES", "WHAT"]
    assert " in 9" in line
    assert command("approve", "--last").exit_code == 0
    assert " in " not in command("approvals", "--all").stdout


def test_an_approval_has_the_beginning_of_its_id_for_a_name(agent: Flask) -> None:
    first, second = ask(agent, "one"), ask(agent, "two")
    shortest = next(first[:length] for length in range(1, 30) if not second.startswith(first[:length]))
    assert command("approve", shortest).exit_code == 0
    assert (state(first), state(second)) == (("allowed", None), ("open", None))
    assert command("deny", "approval-", "not now").exit_code == 0  # the one that still waits
    assert state(second) == ("denied", "not now")
    several = command("deny", "approval-")
    assert isinstance(several.exception, errors.NotFound)
    unknown = command("approve", "approval-none")
    assert isinstance(unknown.exception, errors.Refused)
    assert unknown.exception.code == "APPROVAL_NOT_FOUND"


def test_the_newest_approval_needs_no_id(agent: Flask) -> None:
    first, second = ask(agent, "one"), ask(agent, "two")
    assert command("deny", "--last", "not that").exit_code == 0
    assert (state(first), state(second)) == (("open", None), ("denied", "not that"))
    assert command("approve", first, "--last").exit_code == 2
    assert command("approve").exit_code == 2
    assert command("deny", first, "not", "that").exit_code == 2
    assert command("deny", "--last").exit_code == 0
    assert isinstance(command("approve", "--last").exception, errors.NotFound)


def test_the_commands_answer_on_a_hub_for_all_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hub_app(tmp_path) as hub:
        client = use(hub.app, monkeypatch)
        client.machine_names = lambda ids: {"agent-1": "box"}  # type: ignore[attr-defined]  # as AgentClient has it
        first, second = ask(hub.app, "one"), ask(hub.app, "two")
        with hub.database.write() as connection:
            connection.execute("UPDATE executions SET agent_id = 'agent-1'")
        head, *lines = command("approvals", "--hub").stdout.splitlines()
        assert head.split()[:3] == ["ID", "MACHINE", "EXECUTION"]
        assert [line.split()[1] for line in lines] == ["box", "box"]
        done = command("approve", "--hub", "--last")  # the machine is not there
        assert sentences.ONCE_THE_MACHINE_CAN_BE_REACHED in done.stderr
        assert "Bash" in done.stdout
        assert f"{second} " in command("approvals").stdout
        assert sentences.NOT_DELIVERED_YET in command("approvals").stdout
        assert command("deny", "--last", "no").exit_code == 0  # the newest that nobody has answered
        pending = {each["approvalId"]: each["pending"] for each in client.call("GET", "/approvals")["approvals"]}
        assert {key: value["decision"] for key, value in pending.items()} == {second: "allow", first: "deny"}
        assert {value["surface"] for value in pending.values()} == {"terminal"}
        assert {value["actor"] for value in pending.values()} == {"operator"}


def test_a_run_names_its_permissions_to_a_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hub_app(tmp_path) as hub:
        client = use(hub.app, monkeypatch)
        sent = list[dict[str, Any]]()
        target = run_target.Target("work", None, None)
        monkeypatch.setattr(run_target, "sent", lambda *_, **__: target)
        client.execute = lambda _, __, **options: iter(sent.append(options) or ())  # type: ignore[attr-defined]
        command("run", "--permissions", "ask", "--answer-within", "2d", "--dir", str(tmp_path), "hi")
        prompts = iter(["hello"])
        monkeypatch.setattr(chat_input.Reader, "text", lambda *_: next(prompts, None))
        monkeypatch.setattr(run_target, "existing", lambda *_: "work")
        command("chat", "--answer-within", "12h", "--workspace", "work")
        assert [(options["permissions"], options["approvalSeconds"]) for options in sent] == [
            *(("ask", 172800), ("ask", 43200)),
        ]
