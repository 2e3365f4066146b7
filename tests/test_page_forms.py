"""The pages of machines and settings: for those who may, with the token of the login, and nothing shown twice."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from occ_app.home import health
from occ_app.hub import webhooks
from occ_app.hub.pages import filters
from tests.hub_app import HubApp, hub_app

EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubApp]:
    with hub_app(tmp_path_factory.mktemp("forms")) as hub:
        hub.key("machines", "agent")
        yield hub


def logged_in(hub: HubApp, name: str, **role: str) -> FlaskClient:
    browser = hub.browser()
    assert browser.post("/login", data={"key": hub.key(name, "client", **role)}).status_code == 303
    return browser


@pytest.fixture(scope="module")
def admin(hub: HubApp) -> FlaskClient:
    return logged_in(hub, "admin", role="admin")


@pytest.fixture(scope="module")
def owner(hub: HubApp) -> FlaskClient:
    return logged_in(hub, "owner")


@pytest.fixture(scope="module")
def viewer(hub: HubApp) -> FlaskClient:
    return logged_in(hub, "viewer", role="viewer")


def csrf(browser: FlaskClient) -> str:
    found = re.search(r'name="csrf" value="([^"]+)"', browser.get("/settings").text)
    assert found is not None
    return html.unescape(found[1])


def post(browser: FlaskClient, path: str, **fields: object) -> TestResponse:
    return browser.post(path, data={"csrf": csrf(browser), **fields})


def machine(hub: HubApp, name: str) -> str:
    key = hub.key(f"key of {name}", "agent")
    reply = hub.register(key, name)
    assert reply.json is not None
    return str(reply.json["agentId"])


FORMS = (
    *("/machines/add", "/machines/box/drain", "/machines/box/resume", "/machines/box/remove"),
    *("/settings/keys", "/settings/keys/owner/rotate", "/settings/keys/owner/revoke"),
    *("/settings/webhooks", "/settings/webhooks/w/remove"),
)


@pytest.mark.parametrize("path", FORMS)
def test_only_an_admin_s_form_is_taken(hub: HubApp, owner: FlaskClient, viewer: FlaskClient, path: str) -> None:
    for browser in (owner, viewer):
        assert post(browser, path, name="x", url="https://example.com").status_code == 403
    assert hub.browser().post(path).status_code == 401


@pytest.mark.parametrize("path", [*FORMS, "/settings/pair", "/settings/sessions/s/revoke", "/runs/e/undo"])
def test_a_form_without_the_token_of_the_login_is_refused(admin: FlaskClient, path: str) -> None:
    assert admin.post(path, data={"csrf": "wrong"}).status_code == 403


def test_who_may_not_act_sees_no_actions(hub: HubApp, owner: FlaskClient, viewer: FlaskClient) -> None:
    machine(hub, "seen-by-all")
    for browser in (owner, viewer):
        page = browser.get("/machines").text
        assert "seen-by-all" in page
        assert "Drain" not in page
        assert "Add a machine" not in page
        settings = browser.get("/settings").text
        assert "New key" not in settings
        assert "Webhooks" not in settings
    assert "Log in another device" in owner.get("/settings").text
    assert "Log in another device" not in viewer.get("/settings").text
    assert "Log out</button>" not in viewer.get("/settings").text.partition('id="devices"')[2]


def test_a_machine_is_drained_resumed_and_removed_after_a_question(hub: HubApp, admin: FlaskClient) -> None:
    agent_id = machine(hub, "drained")
    for action, draining in (("drain", True), ("resume", False)):
        assert post(admin, f"/machines/{agent_id}/{action}").headers["Location"] == "/machines"
        with hub.database.read() as connection:
            row = connection.execute("SELECT draining FROM agents WHERE agent_id = ?", (agent_id,)).fetchone()
        assert bool(row["draining"]) is draining
    assert "Remove drained?" in admin.get(f"/machines/{agent_id}/remove").text
    assert "drained" in admin.get("/machines/list").text
    post(admin, f"/machines/{agent_id}/remove")
    assert "drained" not in admin.get("/machines/list").text


def test_adding_a_machine_shows_a_command_that_registers_it_once(hub: HubApp, admin: FlaskClient) -> None:
    page = post(admin, "/machines/add", name="workstation").text
    found = re.search(r"OCC_API_KEY=(occ_agent_[\w-]+) occ start --remote-url (\S+)", page)
    assert found is not None
    assert hub.register(found[1], "workstation").status_code == 201
    assert found[1] not in admin.get("/machines").text
    assert found[2].startswith("http://localhost")


def test_a_key_is_made_shown_once_rotated_and_revoked(hub: HubApp, admin: FlaskClient) -> None:
    page = post(admin, "/settings/keys", name="laptop", role="viewer", days="3", **{"for": "client"}).text
    found = re.search(r"occ_client_[\w-]+", page)
    assert found is not None
    assert hub.call("GET", "/agents", found[0]).status_code == 200
    assert found[0] not in admin.get("/settings").text
    known = hub.call("GET", "/keys").json
    assert known is not None
    (key,) = [each for each in known["keys"] if each["name"] == "laptop"]
    assert (key["role"], key["expiresAt"] is None) == ("viewer", False)
    again = re.search(r"occ_client_[\w-]+", post(admin, f"/settings/keys/{key['keyId']}/rotate").text)
    assert again is not None
    assert hub.call("GET", "/agents", found[0]).status_code == 401
    post(admin, f"/settings/keys/{key['keyId']}/revoke")
    assert hub.call("GET", "/agents", again[0]).status_code == 401


def test_a_name_in_use_is_a_sentence(admin: FlaskClient) -> None:
    fields = {"name": "twice", "for": "client", "role": "owner"}
    assert post(admin, "/settings/keys", **fields).status_code == 200
    refused = post(admin, "/settings/keys", **fields)
    assert refused.status_code == 422
    assert "twice" in refused.text


def test_a_webhook_is_added_with_its_events_and_removed(hub: HubApp, admin: FlaskClient) -> None:
    page = post(admin, "/settings/webhooks", url="https://example.com/h", event=["execution.started"]).text
    assert "whsec_" in page
    assert "whsec_" not in admin.get("/settings").text
    (webhook,) = webhooks.listing(hub.database)
    assert (webhook.url, webhook.events) == ("https://example.com/h", ("execution.started",))
    assert post(admin, "/settings/webhooks", url="ftp://example.com").status_code == 422
    post(admin, f"/settings/webhooks/{webhook.webhook_id}/remove")
    assert webhooks.listing(hub.database) == []


def test_a_device_is_paired_from_the_page_and_logged_out_there(hub: HubApp, owner: FlaskClient) -> None:
    page = post(owner, "/settings/pair", role="admin")
    assert page.status_code == 403  # more than the owner may do
    page = post(owner, "/settings/pair")
    code = re.search(r'class="code-big">([0-9A-Z-]+)<', page.text)
    assert code is not None
    assert "<svg" in page.text
    phone = hub.browser()
    assert phone.post("/pair", data={"code": code[1], "device": EVIL}).status_code == 303
    listed = owner.get("/settings").text
    assert EVIL not in listed
    assert html.escape(EVIL) in listed
    assert post(phone, "/settings/pair").status_code == 403  # a paired device pairs no other
    sessions = hub.call("GET", "/sessions").json
    assert sessions is not None
    (session,) = [each["id"] for each in sessions["sessions"] if each["device"] == EVIL]
    assert post(owner, f"/settings/sessions/{session}/revoke").status_code == 303
    assert phone.get("/settings").status_code == 303  # to log in


def test_a_paired_admin_pairs_and_its_devices_end_with_it(hub: HubApp) -> None:
    reply = hub.call("POST", "/pairings", json={"role": "admin"})
    assert reply.json is not None
    first = hub.browser()
    first.post("/pair", data={"code": reply.json["code"], "device": "first"})
    code = re.search(r'class="code-big">([0-9A-Z-]+)<', post(first, "/settings/pair", role="owner").text)
    assert code is not None
    second = hub.browser()
    second.post("/pair", data={"code": code[1], "device": "second"})
    assert second.get("/settings").status_code == 200
    sessions = hub.call("GET", "/sessions").json
    assert sessions is not None
    (session,) = [each["id"] for each in sessions["sessions"] if each["device"] == "first"]
    assert hub.call("DELETE", f"/sessions/{session}").status_code == 200
    assert second.get("/settings").status_code == 303


def beat(hub: HubApp, agent: dict[str, str], **more: object) -> None:
    body = {"seqNum": 1, "version": "9", **more}
    path = f"/api/agents/{agent['agentId']}/heartbeat"
    assert hub.call("POST", path, agent["token"], json=body).status_code == 200


def test_a_degraded_machine_says_why(hub: HubApp, admin: FlaskClient) -> None:
    reply = hub.register(hub.key("key of ill", "agent"), "ill")
    assert reply.json is not None
    beat(hub, reply.json, status="degraded", problems=["Its fan is loud.", EVIL])
    page = admin.get("/machines").text
    assert "Its fan is loud." in page
    assert EVIL not in page
    assert html.escape(EVIL) in page
    assert 'title="Its fan is loud.' in admin.get("/").text
    record = hub.call("GET", f"/agents/{reply.json['agentId']}").json
    assert record is not None
    assert record["problems"] == ["Its fan is loud.", EVIL]
    beat(hub, reply.json, status="degraded")  # an older OCC
    assert "occ status" in admin.get("/machines").text
    beat(hub, reply.json, status="healthy")
    assert "fan is loud" not in admin.get("/machines").text


def test_the_problems_of_a_heartbeat_are_lines_of_bounded_length() -> None:
    told = health.for_heartbeat(["two\nlines\x1b[2J", "x" * 1000, *["more"] * 30])
    assert told[0].isprintable()
    assert (len(told[1]), len(told)) == (health.MAX_PROBLEM, health.MAX_PROBLEMS)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.04, "0.0 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 0 s"),
        (1008, "16 min 48 s"),
        (3599.96, "1 h 0 min"),
        (3725, "1 h 2 min"),
    ],
)
def test_a_duration_does_not_read_like_a_clock(seconds: float, words: str) -> None:
    assert filters.duration(seconds) == words


def test_a_hostile_name_of_a_machine_is_text(hub: HubApp, admin: FlaskClient) -> None:
    machine(hub, EVIL)
    page = admin.get("/machines").text
    assert EVIL not in page
    assert html.escape(EVIL) in page
