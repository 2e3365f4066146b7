"""Owners: all keys of one see and use the same, a name joins nobody's work, and a viewer only reads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from werkzeug.test import TestResponse

from occ_app.database.database import Database
from occ_app.errors import Conflict
from occ_app.executions import acceptance, lifecycle
from occ_app.executions.records import Request
from occ_app.hub import webhooks
from tests.conftest import make_zip
from tests.hub_app import HubApp, hub_app


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubApp]:
    with hub_app(tmp_path) as hub:
        yield hub


def add_workspace(hub: HubApp, key_name: str, workspace_id: str) -> None:
    """Give a key's owner a workspace, as an upload with the key does."""
    with hub.database.write() as connection:
        connection.execute(
            """
            INSERT INTO workspaces (workspace_id, name, description, path, files, bytes, skipped, created_at,
                updated_at, key_id, owner_id, generation)
            SELECT :id, :id, '', '', 1, 1, '[]', created_at, created_at, key_id, owner_id, 0 FROM keys WHERE name = :key
            """,
            {"id": workspace_id, "key": key_name},
        )


def body_of(workspace_id: str, execution_id: str) -> dict[str, str]:
    return {"workspaceId": workspace_id, "prompt": "hello", "executionId": execution_id}


def execute(hub: HubApp, key: str, workspace_id: str, execution_id: str) -> TestResponse:
    return hub.call("POST", "/execute", key, json=body_of(workspace_id, execution_id))


def queue(hub: HubApp, key_name: str, workspace_id: str, execution_id: str) -> None:
    """Accept an execution of a key, as `execute` does; the stream of one that waits needs a real connection."""
    with hub.database.read() as connection:
        key = connection.execute("SELECT key_id, owner_id FROM keys WHERE name = ?", (key_name,)).fetchone()
    digest = acceptance.request_hash(body_of(workspace_id, execution_id))
    limits = (60, 60, None, None, None, None)
    request = Request(execution_id, workspace_id, "hello", *limits, digest, key["key_id"], key["owner_id"])
    lifecycle.create(hub.database, request, max_queue=10)


def code(reply: TestResponse) -> tuple[int, str]:
    return reply.status_code, reply.json["code"] if reply.json else ""


def test_all_keys_of_an_owner_see_and_use_the_same(hub: HubApp) -> None:
    laptop = hub.key("laptop", "client")
    phone = hub.key("phone", "client", owner="laptop")
    stranger = hub.key("stranger", "client")
    add_workspace(hub, "laptop", "mine")
    queue(hub, "laptop", "mine", "run-1")
    assert code(execute(hub, stranger, "mine", "run-2")) == (404, "WORKSPACE_NOT_FOUND")
    for path, found in (("/executions", "executions"), ("/workspaces", "workspaces")):
        assert len(hub.call("GET", path, phone).json[found]) == 1
        assert hub.call("GET", path, stranger).json[found] == []
    assert hub.call("GET", "/executions/run-1", phone).status_code == 200
    assert code(hub.call("GET", "/executions/run-1", stranger)) == (404, "EXECUTION_NOT_FOUND")
    assert hub.call("GET", "/usage?by=owner", phone).json["groups"][0]["name"] == "laptop"
    assert hub.call("POST", "/executions/run-1/cancel", phone).status_code == 202
    queue(hub, "phone", "mine", "run-1")  # the same request of the same owner is the same execution
    assert len(hub.call("GET", "/executions", laptop).json["executions"]) == 1
    with pytest.raises(Conflict):
        queue(hub, "stranger", "mine", "run-1")


def test_an_owner_keeps_everything_when_a_key_is_revoked(hub: HubApp) -> None:
    hub.key("laptop", "client")
    phone = hub.key("phone", "client", owner="laptop")
    add_workspace(hub, "laptop", "mine")
    hub.call("POST", "/keys/laptop/revoke")
    assert [found["workspaceId"] for found in hub.call("GET", "/workspaces", phone).json["workspaces"]] == ["mine"]


def test_a_name_joins_nobodys_work(hub: HubApp) -> None:
    hub.key("ada", "client")
    add_workspace(hub, "ada", "hers")
    hub.call("POST", "/keys/ada/revoke")
    again = hub.call("POST", "/keys", json={"name": "ada", "for": "client"}).json
    assert again["owner"] == "ada-2"
    assert hub.call("GET", "/workspaces", again["key"]).json["workspaces"] == []
    joined = hub.call("POST", "/keys", json={"name": "tablet", "for": "client", "owner": "ada"}).json
    assert [found["workspaceId"] for found in hub.call("GET", "/workspaces", joined["key"]).json["workspaces"]] == [
        "hers"
    ]
    refused = hub.call("POST", "/keys", json={"name": "x", "for": "client", "owner": "nobody"})
    assert code(refused) == (404, "OWNER_NOT_FOUND")


def test_a_viewer_reads_and_changes_nothing(hub: HubApp) -> None:
    owner = hub.key("ada", "client")
    viewer = hub.key("screen", "client", owner="ada", role="viewer")
    add_workspace(hub, "ada", "work")
    queue(hub, "ada", "work", "run-1")
    for path in ("/executions", "/executions/run-1", "/workspaces/work", "/usage", "/search?q=hello", "/health"):
        assert hub.call("GET", path, viewer).status_code == 200, path
    upload = {"zip": (make_zip({"a": "b"}), "w.zip"), "workspaceId": "work", "processPolicy": "overwrite"}
    for reply in (
        execute(hub, viewer, "work", "run-2"),
        hub.call("POST", "/executions/run-1/cancel", viewer),
        hub.call("DELETE", "/workspaces/work", viewer),
        hub.call("POST", "/workspace/init", viewer, data=upload),
        hub.call("POST", "/keys", viewer, json={"name": "more", "for": "client"}),
    ):
        assert code(reply) == (403, "FORBIDDEN")
    assert hub.call("GET", "/executions/run-1", owner).json["state"] == "queued"


def test_a_viewer_logs_in_and_out_of_the_pages_and_starts_nothing(hub: HubApp) -> None:
    hub.key("ada", "client")
    viewer = hub.key("screen", "client", owner="ada", role="viewer")
    add_workspace(hub, "ada", "work")
    browser = hub.browser()
    browser.post("/login", data={"key": viewer})
    page = browser.get("/")
    assert page.status_code == 200
    csrf = page.text.split('name="csrf" value="')[1].split('"')[0]
    form = {"csrf": csrf, "prompt": "hello", "workspace": "work"}
    assert browser.post("/runs", data=form).status_code == 403
    assert browser.post("/logout", data={"csrf": csrf}).status_code == 303
    assert browser.get("/").headers["Location"].startswith("/login")


@pytest.mark.parametrize(
    "body",
    [
        {"for": "agent", "role": "viewer"},
        {"for": "agent", "role": "admin"},
        {"for": "client", "role": "viewer", "admin": True},
        {"for": "client", "role": "king"},
        {"for": "client", "owner": ""},
    ],
)
def test_a_key_with_a_wrong_role_or_owner_is_refused(hub: HubApp, body: dict[str, object]) -> None:
    assert code(hub.call("POST", "/keys", json={"name": "x", **body})) == (422, "INVALID_REQUEST")


def test_a_webhook_of_a_key_covers_the_runs_of_its_owner(hub: HubApp) -> None:
    hub.key("ada", "client")
    hub.key("phone", "client", owner="ada")
    hub.key("bob", "client")
    webhooks.add(hub.database, "https://hooks.example/x", "ada")
    for name in ("ada", "bob"):
        add_workspace(hub, name, f"of-{name}")
        queue(hub, name, f"of-{name}", f"run-{name}")
    queue(hub, "phone", "of-ada", "run-phone")
    for execution in ("run-ada", "run-bob", "run-phone"):
        hub.call("POST", f"/executions/{execution}/cancel")
    assert deliveries(hub.database) == ["run-ada", "run-phone"]


def deliveries(database: Database) -> list[str]:
    with database.read() as connection:
        rows = connection.execute(
            "SELECT x.execution_id FROM deliveries d JOIN executions x ON x.number = d.execution ORDER BY 1"
        ).fetchall()
    return [row[0] for row in rows]
