"""Keys of a hub that are replaced, and machines that are gone."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from occ_app.executions import lifecycle
from occ_app.executions.records import Request
from occ_app.system.timestamps import iso
from tests import sentences
from tests.conftest import make_zip, steps
from tests.hub_app import HubApp, hub_app
from tests.real_hub import hub_in


def gone(hub: HubApp, name: str, days: int) -> None:
    """Make a machine one that was last heard so many days ago."""
    moment = iso(datetime.now(UTC) - timedelta(days=days))
    with hub.database.write() as connection:
        connection.execute("UPDATE agents SET last_seen_at = ?, heard = -1e9 WHERE name = ?", (moment, name))


def listed(hub: HubApp) -> list[str]:
    return [agent["name"] for agent in hub.call("GET", "/agents").json["agents"]]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubApp]:
    with hub_app(tmp_path) as hub:
        yield hub


def own_a_workspace(hub: HubApp, key_name: str, workspace: str) -> str:
    """Give a key a workspace with one execution that waits; returns the key's id."""
    with hub.database.write() as connection:
        key_id, owner_id = connection.execute(
            "SELECT key_id, owner_id FROM keys WHERE name = ?", (key_name,)
        ).fetchone()
        connection.execute(
            """
            INSERT INTO workspaces (workspace_id, name, description, path, files, bytes, skipped, created_at,
                updated_at, key_id, owner_id)
            VALUES (:id, :id, '', '', 1, 1, '[]', '2026-01-01T00:00:00.000Z', '2026-01-01T00:00:00.000Z', :key, :owner)
            """,
            {"id": workspace, "key": key_id, "owner": owner_id},
        )
    asked = Request(f"{workspace}-1", workspace, "hello", 60, 60, None, None, None, None, "h", key_id, owner_id)
    lifecycle.create(hub.database, asked, max_queue=10)
    return str(key_id)


def test_a_rotated_key_keeps_everything_and_the_old_secret_is_refused(hub: HubApp) -> None:
    old = hub.key("me", "client")
    key_id = own_a_workspace(hub, "me", "mine")
    reply = hub.call("POST", "/keys/me/rotate", json={})
    assert reply.status_code == 200, reply.text
    new = reply.json["key"]
    assert (reply.json["keyId"], reply.json["name"]) == (key_id, "me")
    assert hub.call("GET", "/workspaces", old).status_code == 401
    assert [one["workspaceId"] for one in hub.call("GET", "/workspaces", new).json["workspaces"]] == ["mine"]
    assert [one["executionId"] for one in hub.call("GET", "/executions", new).json["executions"]] == ["mine-1"]
    assert hub.call("GET", "/keys").text.count(new) == 0


def test_a_rotated_agent_key_leaves_registered_tokens(hub: HubApp) -> None:
    old = hub.key("machines", "agent")
    registered = hub.register(old, "box").json
    new = hub.call("POST", "/keys/machines/rotate", json={}).json["key"]
    beat = {"seqNum": 1, "status": "healthy"}
    path = f"/api/agents/{registered['agentId']}/heartbeat"
    assert hub.call("POST", path, registered["token"], json=beat).status_code == 200
    assert hub.register(old, "box", registered["agentId"]).status_code == 401
    assert hub.register(new, "box", registered["agentId"]).json["agentId"] == registered["agentId"]


def test_an_expired_key_is_rotated_when_it_is_said_for_how_long(hub: HubApp) -> None:
    hub.key("brief", "client", days=1)
    with hub.database.write() as connection:
        connection.execute("UPDATE keys SET expires_at = '2020-01-01T00:00:00.000Z' WHERE name = 'brief'")
    refused = hub.call("POST", "/keys/brief/rotate", json={})
    assert (refused.status_code, refused.json["code"]) == (422, "INVALID_REQUEST")
    assert "--days" in refused.json["message"]
    new = hub.call("POST", "/keys/brief/rotate", json={"days": 2}).json
    assert new["expiresAt"] > "2026"
    assert hub.call("GET", "/executions", new["key"]).status_code == 200


def test_what_cannot_be_rotated_is_refused(hub: HubApp) -> None:
    mine = hub.key("me", "client")
    assert hub.call("POST", "/keys/me/rotate", mine, json={}).status_code == 403
    hub.call("POST", "/keys/me/revoke")
    for name in ("me", "nobody"):
        assert hub.call("POST", f"/keys/{name}/rotate", json={}).json["code"] == "KEY_NOT_FOUND"


def test_a_rotated_key_s_streams_and_logins_end(tmp_path: Path) -> None:
    with hub_in(tmp_path) as hub:
        box = hub.start().agent("box")
        old = hub.client_with(hub.key("me", "client"))
        old.upload("work", make_zip({"a.txt": "a"}))
        prompt = steps({"say": "begun "}, {"wait": "go"}, {"say": "done"})
        stream = old.execute("work", prompt, executionId="e1")
        while next(stream).name != "output":
            pass
        said = hub.command("keys", "rotate", "me")
        new = hub.client_with(said.stdout.strip())
        with pytest.raises(Exception, match=sentences.WRONG_EXPIRED_OR_REVOKED):
            list(stream)
        followed = new.events("e1")  # what the new secret opens goes on
        assert next(followed).name == "queued"
        (box.home / "workspaces" / "work" / "go").touch()
        assert [*followed][-1].name == "complete"


def test_a_machine_that_is_gone_for_long_leaves_lists_and_counts_until_it_is_heard(hub: HubApp) -> None:
    key = hub.key("few", "agent", most=2)
    old = hub.register(key, "old").json
    hub.register(key, "new")
    gone(hub, "old", 29)
    assert listed(hub) == ["new", "old"]
    refused = hub.register(key, "third")
    assert refused.status_code == 403
    assert "offline: old" in refused.json["message"]
    assert sentences.REMOVE_A_MACHINE in refused.json["message"]
    gone(hub, "old", 31)
    assert listed(hub) == ["new"]
    assert 'name="old"' not in hub.call("GET", "/metrics").text
    assert hub.call("GET", "/agents/old").json["agentId"] == old["agentId"]
    assert hub.register(key, "third").status_code == 201
    beat = {"seqNum": 1, "status": "healthy"}
    hub.call("POST", f"/api/agents/{old['agentId']}/heartbeat", old["token"], json=beat)
    assert listed(hub) == ["new", "old", "third"]


def test_a_machine_with_something_on_it_is_not_forgotten(hub: HubApp) -> None:
    hub.key("me", "client")
    own_a_workspace(hub, "me", "mine")
    old = hub.register(hub.key("machines", "agent"), "old").json
    gone(hub, "old", 400)
    assert listed(hub) == []
    with hub.database.write() as connection:
        connection.execute("UPDATE workspaces SET agent_id = ?", (old["agentId"],))
    assert listed(hub) == ["old"]


def test_a_name_means_the_machine_that_is_not_forgotten(hub: HubApp) -> None:
    key = hub.key("machines", "agent")
    old = hub.register(key, "box").json
    gone(hub, "box", 31)
    new = hub.register(key, "box").json
    assert hub.call("GET", "/agents/box").json["agentId"] == new["agentId"] != old["agentId"]


def test_lists_of_machines_have_an_end(hub: HubApp) -> None:
    key, client = hub.key("machines", "agent"), hub.key("me", "client")
    hub.register(key, "vm-0")
    with hub.database.write() as connection:
        one = dict(connection.execute("SELECT * FROM agents").fetchone())
        for number in range(1, 1200):
            row = one | {
                "agent_id": f"agent-{number:012x}",
                "token": f"t{number}",
                "name": f"vm-{number}",
                "heard": -1e9,
            }
            names = ",".join(row)
            places = ",".join("?" * len(row))
            connection.execute(f"INSERT INTO agents ({names}) VALUES ({places})", [*row.values()])  # noqa: S608
    first = hub.call("GET", "/agents").json
    rest = hub.call("GET", f"/agents?after={first['next']}").json
    assert (len(first["agents"]), len(rest["agents"]), rest["next"]) == (1000, 200, None)
    assert len({agent["agentId"] for page in (first, rest) for agent in page["agents"]}) == 1200
    browser = hub.browser()
    browser.post("/login", data={"key": client})
    page = browser.get("/lists").text
    assert page.count('class="offline"') == 5
    assert 'class="online"' in page
    assert "1194 more" in page
    assert len(page) < 8000
