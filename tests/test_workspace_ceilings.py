"""Ceilings of workspaces and projects: on an agent, through a hub, and in runs that were accepted before."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from occ_app.cli.commands import occ
from occ_app.config import config as configuration
from occ_app.config.config import Config
from occ_app.config.settings import PERMISSIONS
from occ_app.database import schema
from occ_app.database.database import Database
from occ_app.errors import Conflict, NotFound, RequestError
from occ_app.executions import ceilings, lifecycle, queries
from occ_app.executions.records import Execution, Request
from occ_app.hub.agents import Agents
from occ_app.workspaces import projects
from occ_app.workspaces import workspace as workspaces
from occ_worker.execution import command, verdicts
from occ_worker.relay import sending
from tests.hub_app import HubApp, hub_app
from tests.test_hub_projects import APP, Machine, code, run
from tests.test_ownership import on_hub
from tests.test_waiting import machine


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """The settings of an agent that never started; the commands use its home, too."""
    for name, value in {"HOME": str(tmp_path / "user"), "OCC_HOME": str(tmp_path / "occ")}.items():
        monkeypatch.setenv(name, value)
    found = configuration.load({"HOME": str(tmp_path / "user"), "OCC_HOME": str(tmp_path / "occ")})
    (tmp_path / "user/code/app").mkdir(parents=True)
    found.make_folders()
    schema.ensure_schema(found.database, found.home / "lock" / "migrate")
    return found


@pytest.fixture
def rows(config: Config) -> Iterator[Database]:
    rows = Database(config.database)
    yield rows
    rows.close()


def accept(rows: Database, workspace_id: str, permissions: str | None) -> Execution:
    """Accept an execution that asks for these permissions by name, or for none."""
    named: Any = {} if permissions is None else {"permissions": permissions, "permissions_named": True}
    request = Request(f"e-{uuid.uuid4()}", workspace_id, "x", 9, 9, None, None, None, None, "", **named)
    return lifecycle.create(rows, request, max_queue=100)[0]


def succeed(*arguments: str) -> str:
    result = CliRunner().invoke(occ, arguments)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_caller_gets_no_more_than_its_workspace_allows(rows: Database) -> None:
    on_hub(rows, "work", "")
    for ceiling, expected in (("plan", "plan"), ("edit", "edit"), ("ask", "edit"), ("full", "edit")):
        ceilings.limit(rows, "work", ceiling)
        for level in PERMISSIONS:
            if PERMISSIONS.index(level) <= PERMISSIONS.index(ceiling):
                assert accept(rows, "work", level).permissions == level
            else:
                with pytest.raises(RequestError) as refused:
                    accept(rows, "work", level)
                assert (refused.value.code, refused.value.details["ceiling"]) == ("PERMISSION_CEILING", ceiling)
        assert accept(rows, "work", None).permissions == expected
    with pytest.raises(NotFound):
        ceilings.limit(rows, "none", "plan")


def test_what_waits_or_is_parked_meets_a_ceiling_that_was_lowered(config: Config, rows: Database) -> None:
    on_hub(rows, "work", "")
    accepted = accept(rows, "work", "full")
    full = replace(config, permissions="full")
    assert [verdicts.level(full, accepted, each) for each in (None, *PERMISSIONS)] == ["full", *PERMISSIONS]
    assert verdicts.level(replace(config, permissions="edit"), accepted, "ask") == "edit"
    assert verdicts.level(full, accepted, "of a newer version") == "plan"
    lowered = replace(accepted, permissions=verdicts.level(full, accepted, "plan"))
    argv = command.command("claude", lowered, None, config)
    assert argv[argv.index("--permission-mode") + 1] == "plan"


def test_commands_limit_a_project_and_a_workspace_and_lists_show_it(
    config: Config, rows: Database, tmp_path: Path
) -> None:
    folder = str(tmp_path / "user/code/app")
    succeed("projects", "add", folder, "--permissions", "plan")
    on_hub(rows, "work", "")
    assert succeed("projects", "list").splitlines()[1].split() == ["app", "no", "plan", "-", folder]
    assert projects.report(rows)[0]["permissions"] == "plan"
    with pytest.raises(RequestError) as refused:
        accept(rows, "app", "edit")
    assert refused.value.details == {"permissions": "edit", "ceiling": "plan", "workspaceId": "app"}
    with pytest.raises(Conflict) as conflict:  # a project has its own command, which sets all of its terms
        ceilings.limit(rows, "app", "full")
    assert conflict.value.code == "WORKSPACE_IS_FOLDER"
    assert workspaces.get(rows, "app").permissions == "plan"
    succeed("projects", "add", folder)
    assert workspaces.get(rows, "app").permissions is None
    succeed("workspaces", "limit", "work", "edit")
    assert workspaces.get(rows, "work").permissions == "edit"


# -- through a hub


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubApp]:
    with hub_app(tmp_path) as found:
        yield found


def test_a_hub_knows_the_ceiling_of_a_project_and_refuses_more(hub: HubApp) -> None:
    box = Machine(hub, hub.key("machines", "agent"), "box")
    said = {"capabilities": ["permissions"], "permissions": "full"}
    box.register({**APP, "permissions": "plan"}, **said)
    (project,) = hub.call("GET", f"/agents/{box.agent_id}").get_json()["projects"]
    assert project["permissions"] == "plan"
    workspace = f"/workspaces/{project['workspaceId']}"
    assert hub.call("GET", workspace).get_json()["permissions"] == "plan"
    refused = run(hub, "app@box", permissions="edit")
    assert (refused.status_code, code(refused), refused.get_json()["details"]["ceiling"]) == (
        *(403, "PERMISSION_CEILING"),
        "plan",
    )
    assert run(hub, "app@box", executionId="unnamed").status_code == 200
    assert queries.get(hub.database, "unnamed").permissions == "plan"
    box.beat(projects=[{**APP, "permissions": "ask"}])  # the operator raised it
    assert run(hub, "app@box", executionId="asks", permissions="ask").status_code == 200
    assert code(run(hub, "app@box", permissions="full")) == "PERMISSION_CEILING"
    box.beat(projects=[{**APP, "permissions": "of a newer version"}])
    assert code(run(hub, "app@box", permissions="edit")) == "PERMISSION_CEILING"
    box.beat(projects=[APP])  # one of an older version
    assert hub.call("GET", workspace).get_json()["permissions"] is None


def test_a_hub_sends_an_execution_with_what_its_workspace_allows_now(hub: HubApp) -> None:
    agents: Agents = hub.app.extensions["occ_hub"].agents
    rig = agents.find(machine(hub.database, agents, "rig", ceiling="full"))
    assert rig is not None
    on_hub(hub.database, "work", "")
    accepted = accept(hub.database, "work", "full")
    context: Any = type("Context", (), {"db": hub.database})()
    assert sending.permissions_on(context, accepted, rig) == "full"
    assert sending.request_body(context, accepted, "full")["permissions"] == "full"
    ceilings.limit(hub.database, "work", "plan")
    assert sending.permissions_on(context, accepted, rig) == "plan"
