"""Permissions through a hub: they go only to machines that know them and allow them."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from occ_app.claude.program import Cli
from occ_app.config import config
from occ_app.config.settings import CAPABILITIES, PERMISSIONS
from occ_app.database.database import Database
from occ_app.errors import RequestError
from occ_app.executions import queries
from occ_app.hub import ceilings, placement
from occ_app.hub.agents import Agents
from occ_app.supervisor import registration
from occ_app.system.process_identity import own_identity
from occ_worker.relay import sending
from tests import sentences
from tests.hub_app import HubApp, hub_app
from tests.test_ownership import on_hub
from tests.test_waiting import machine, on


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubApp]:
    with hub_app(tmp_path) as found:
        yield found


@pytest.fixture
def agents(hub: HubApp) -> Agents:
    found: Agents = hub.app.extensions["occ_hub"].agents
    for workspace_id in ("a", "b"):
        on_hub(hub.database, workspace_id, "")
    return found


def refusal(agents: Agents, workspace_id: str = "a", **places: object) -> RequestError:
    with pytest.raises(RequestError) as refused:
        on(agents, "refused", workspace_id, **({"permissions_named": True} | places))
    assert refused.value.code == "PERMISSION_CEILING"
    return refused.value


def put(rows: Database, workspace_id: str, agent_id: str) -> None:
    """Let a workspace live on a machine."""
    with rows.write() as connection:
        connection.execute(
            "UPDATE workspaces SET agent_id = :agent WHERE workspace_id = :id", {"agent": agent_id, "id": workspace_id}
        )


def claimed(agents: Agents) -> str | None:
    """The name of the machine on which the next execution is placed."""
    execution = placement.claim(agents.db, agents, own_identity())
    agent = None if execution is None else agents.find(execution.agent_id or "")
    return None if agent is None else agent.name


def test_an_execution_goes_to_a_machine_whose_ceiling_allows_it(hub: HubApp, agents: Agents) -> None:
    machine(hub.database, agents, "old")
    machine(hub.database, agents, "box", ceiling="edit")
    machine(hub.database, agents, "rig", ceiling="ask")
    on(agents, "asks", "a", permissions="ask")
    assert claimed(agents) == "rig"
    assert refusal(agents, permissions="full").details == {"permissions": "full", "ceiling": "ask"}
    refused = refusal(agents, "b", permissions="full")
    assert "box allows edit, old allows edit, rig allows ask" in str(refused)
    assert refusal(agents, "b", permissions="ask", agent="box").details["ceiling"] == "edit"
    on(agents, "edits", "b", agent="old")
    assert claimed(agents) == "old"


def test_a_machine_of_an_older_version_only_edits(hub: HubApp, agents: Agents) -> None:
    agent = agents.find(machine(hub.database, agents, "old"))
    assert agent is not None
    assert [level for level in PERMISSIONS if ceilings.allows(agent, level)] == ["edit"]
    odd = agents.find(machine(hub.database, agents, "odd", ceiling="everything"))
    assert odd is not None
    assert not any(ceilings.allows(odd, level) for level in PERMISSIONS)


def test_a_workspace_on_a_machine_that_does_not_allow_it_is_refused(hub: HubApp, agents: Agents) -> None:
    put(hub.database, "a", machine(hub.database, agents, "box", ceiling="edit"))
    machine(hub.database, agents, "rig", ceiling="full")
    assert "box allows edit" in str(refusal(agents, permissions="ask"))
    reply = hub.call(
        "POST", "/execute", json={"executionId": "x", "workspaceId": "a", "prompt": "x", "permissions": "ask"}
    )
    assert (reply.status_code, reply.get_json()["code"]) == (403, "PERMISSION_CEILING")


def test_it_waits_for_an_offline_machine_that_allows_it_and_the_reason_says_so(hub: HubApp, agents: Agents) -> None:
    rig = machine(hub.database, agents, "rig", ceiling="ask")
    with hub.database.write() as connection:
        connection.execute("UPDATE agents SET heard = heard - 10000 WHERE agent_id = :id", {"id": rig})
    on(agents, "waits", "a", permissions="ask", permissions_named=True)
    machine(hub.database, agents, "box", ceiling="edit")
    assert claimed(agents) is None
    assert (
        queries.get(hub.database, "waits").waits_for == f"an agent {sentences.THAT_ALLOWS} ask {sentences.TO_BE_ONLINE}"
    )
    refusal(agents, "b", permissions="ask")  # box is online now, and does not allow it
    with hub.database.write() as connection:  # it registers again with a lower ceiling
        connection.execute("UPDATE agents SET permissions = 'edit' WHERE agent_id = :id", {"id": rig})
    assert claimed(agents) is None
    waits_for = queries.get(hub.database, "waits").waits_for
    assert waits_for is not None
    assert waits_for.startswith(f"an agent {sentences.TO_ALLOW} ask")


def test_an_agent_lists_its_capabilities_and_its_ceiling(hub: HubApp, tmp_path: Path) -> None:
    key = hub.key("machines", "agent")
    for ceiling, variables in (("edit", {}), ("ask", {"OCC_PERMISSIONS": "ask"})):
        settings = {"OCC_HOME": str(tmp_path), "HOME": str(tmp_path), "OCC_REMOTE_URL": "http://127.0.0.1:9"}
        known = config.load(settings | {"OCC_API_KEY": key} | variables)
        body = registration._body(known, 1, Cli(None, None))
        agent_id = hub.call("POST", "/api/agents/register", key, json=body).get_json()["agentId"]
        record = hub.call("GET", f"/agents/{agent_id}").get_json()
        assert (record["capabilities"], record["permissions"]) == (list(CAPABILITIES), ceiling)


def offline(rows: Database, agent_id: str) -> None:
    with rows.write() as connection:
        connection.execute("UPDATE agents SET heard = heard - 10000 WHERE agent_id = :id", {"id": agent_id})


def test_a_run_that_names_no_permissions_gets_what_its_machine_allows(hub: HubApp, agents: Agents) -> None:
    rig = machine(hub.database, agents, "rig", ceiling="plan")
    assert refusal(agents, permissions="edit", permissions_named=True).details["ceiling"] == "plan"
    accepted = on(agents, "unnamed", "a")
    assert claimed(agents) == "rig"
    agent = agents.find(rig)
    assert agent is not None
    context: Any = type("Context", (), {"db": hub.database})()
    permissions = sending.permissions_on(context, accepted, agent)
    assert permissions == "plan"
    placement.mark_prompt_sent(hub.database, accepted, permissions)
    placed = queries.get(hub.database, "unnamed")
    assert placed.permissions == "plan"
    # A relay that begins again after it died sends the same body, or the machine would refuse it.
    former = sending.request_body(context, accepted, permissions)
    assert former["permissions"] == "plan"
    assert sending.request_body(context, placed, sending.permissions_on(context, placed, agent)) == former


def test_a_run_that_names_no_permissions_goes_to_a_machine_that_lets_it_edit(hub: HubApp, agents: Agents) -> None:
    machine(hub.database, agents, "rig", ceiling="plan")
    box = machine(hub.database, agents, "box", ceiling="edit")
    for number in range(3):
        on_hub(hub.database, f"w{number}", "")
        on(agents, f"unnamed-{number}", f"w{number}")
    assert claimed(agents) == "box"
    assert claimed(agents) is None  # box is busy, and rig would only plan
    assert sentences.THAT_ALLOWS in (queries.get(hub.database, "unnamed-1").waits_for or "")
    offline(hub.database, box)
    assert claimed(agents) == "rig"
    on(agents, "named", "b", permissions="plan", permissions_named=True, agent="box")
    assert queries.get(hub.database, "unnamed-2").permissions == "edit"  # it may still be placed on box


def test_a_run_that_waits_gets_what_a_machine_that_comes_later_allows(hub: HubApp, agents: Agents) -> None:
    on(agents, "unnamed", "a")
    on(agents, "named", "b", permissions="edit", permissions_named=True)
    assert claimed(agents) is None
    machine(hub.database, agents, "rig", ceiling="plan")
    assert claimed(agents) == "rig"
    assert claimed(agents) is None
    waits_for = queries.get(hub.database, "named").waits_for
    assert waits_for is not None
    assert waits_for.startswith(f"an agent {sentences.TO_ALLOW} edit")


def test_the_time_for_an_answer_is_that_of_the_request_or_of_its_surface(tmp_path: Path) -> None:
    settings = {"api_approval_seconds": 3600.0, "pages_approval_seconds": 7200.0}
    here = {"gunicorn.socket": None}  # only the stored events are read
    with hub_app(tmp_path, **settings) as hub:
        on_hub(hub.database, "a", "")
        for name, more in (("by-api", {}), ("named", {"approvalSeconds": 60})):
            body = {"executionId": name, "workspaceId": "a", "prompt": "x", **more}
            hub.call("POST", "/execute", json=body, environ_overrides=here).close()
        browser, csrf = logged_in(hub)
        form = {"csrf": csrf, "run": "page-0123456789ab", "prompt": "x", "workspace": "a"}
        assert browser.post("/runs", data=form).status_code == 303
        stored = [queries.get(hub.database, name).approval_seconds for name in ("by-api", "named", "page-0123456789ab")]
        assert stored == [3600, 60, 7200]


def logged_in(hub: HubApp) -> tuple[FlaskClient, str]:
    """A browser of an admin, and the token of its login for forms."""
    browser = hub.browser()
    assert browser.post("/login", data={"key": hub.key("admin", "client", role="admin")}).status_code == 303
    csrf = re.search(r'name="csrf" value="([^"]+)"', browser.get("/settings").text)
    assert csrf is not None
    return browser, csrf[1]


def test_a_request_or_form_that_names_no_permissions_is_accepted_where_only_plans_are_allowed(
    hub: HubApp, agents: Agents
) -> None:
    for workspace_id in ("a", "b"):
        put(hub.database, workspace_id, machine(hub.database, agents, f"rig-{workspace_id}", ceiling="plan"))
    here = {"gunicorn.socket": None}  # only the stored events are read
    body = {"executionId": "by-api", "workspaceId": "a", "prompt": "x"}
    with contextlib.closing(hub.call("POST", "/execute", json=body, environ_overrides=here)) as reply:
        assert reply.status_code == 200, reply.text
    refused = hub.call("POST", "/execute", json=body | {"executionId": "named", "permissions": "edit"})
    assert (refused.status_code, refused.get_json()["code"]) == (403, "PERMISSION_CEILING")
    browser, csrf = logged_in(hub)
    form = {"csrf": csrf, "run": "page-0123456789ab", "prompt": "x", "workspace": "b"}
    assert browser.post("/runs", data=form | {"permissions": "edit"}).status_code == 403
    # A reply names none: it has those of the run before, which was accepted when more was allowed.
    assert browser.post("/runs", data=form | {"former_permissions": "ask"}).status_code == 303
    stored = queries.get(hub.database, "page-0123456789ab")
    assert (stored.permissions, stored.permissions_named) == ("ask", False)
