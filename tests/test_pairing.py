"""One-time codes and the sessions that they open: redeemed once, listed, revoked, and never more than was asked for."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from flask.testing import FlaskClient

from occ_app.hub.pages.devices import device_name, device_of
from occ_app.hub.pages.login import visitor
from occ_app.system.timestamps import iso
from occ_app.web.callers import Caller
from tests import sentences
from tests.hub_app import HubApp, hub_app

PIXEL = (
    "Mozilla/5.0 (Linux; Android 15; Pixel 9) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/131.0 Mobile Safari/537.36"
)
IPHONE = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_1 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.1"
    " Mobile/15E148 Safari/604.1"
)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubApp]:
    with hub_app(tmp_path_factory.mktemp("pairing")) as hub:
        yield hub


def code(hub: HubApp, key: str | None = None, **body: object) -> str:
    reply = hub.call("POST", "/pairings", key, json=body)
    assert reply.status_code == 201, reply.text
    assert reply.json is not None
    return str(reply.json["code"])


def paired(hub: HubApp, value: str, device: str = "phone") -> FlaskClient:
    """A browser that has redeemed a code."""
    browser = hub.browser()
    reply = browser.post("/pair", data={"code": value, "device": device})
    assert (reply.status_code, reply.headers["Location"]) == (303, "/"), reply.text
    return browser


def session_id(hub: HubApp, device: str) -> str:
    reply = hub.call("GET", "/sessions").json
    assert reply is not None
    (found,) = [each["id"] for each in reply["sessions"] if each["device"] == device]
    return str(found)


def csrf(browser: FlaskClient) -> str:
    found = re.search(r'name="csrf" value="([^"]+)"', browser.get("/").text)
    assert found is not None
    return html.unescape(found[1])


def is_in(browser: FlaskClient) -> bool:
    return browser.get("/").status_code == 200


def test_a_code_opens_one_session_by_a_post_and_no_get_consumes_it(hub: HubApp) -> None:
    value = code(hub)
    for path in ("/pair", f"/pair?code={value}", "/pair"):
        assert hub.browser().get(path).status_code == 200
    assert is_in(paired(hub, f" {value.lower().replace('-', ' ')} "))
    again = hub.browser().post("/pair", data={"code": value})
    assert (again.status_code, "Set-Cookie" in again.headers) == (401, False)
    assert "used before" in again.text


def test_a_code_is_void_after_ten_minutes(hub: HubApp) -> None:
    value = code(hub)
    with hub.database.write() as connection:
        expires = connection.execute("SELECT max(expires_at) FROM pairings").fetchone()[0]
        assert timedelta(minutes=9) < datetime.fromisoformat(expires) - datetime.now(UTC) <= timedelta(minutes=10)
        connection.execute("UPDATE pairings SET expires_at = :now", {"now": iso(datetime.now(UTC))})
    assert hub.browser().post("/pair", data={"code": value}).status_code == 401


def test_neither_the_code_nor_the_cookie_is_stored(hub: HubApp) -> None:
    unused, used = code(hub), code(hub)
    cookie = paired(hub, used).get_cookie(next(iter_names(hub)))
    assert cookie is not None
    stored = b"".join(path.read_bytes() for path in hub.config.home.glob("occ.db*"))
    for secret in (unused, used, unused.replace("-", ""), used.replace("-", ""), cookie.value):
        assert secret.encode() not in stored


def iter_names(hub: HubApp) -> Iterator[str]:
    yield hub.app.extensions["occ_cookie"]


def test_a_wrong_code_is_logged_without_it(hub: HubApp, caplog: pytest.LogCaptureFixture) -> None:
    assert hub.browser().post("/pair", data={"code": "AAAA-BBBB-CCCC"}).status_code == 401
    assert sentences.A_WRONG_TOKEN_CAME_FROM in caplog.text
    assert "BBBB" not in caplog.text


def test_a_session_has_the_device_the_owner_and_the_last_use(hub: HubApp) -> None:
    hub.key("ada", "client")
    browser = hub.browser()
    browser.post("/pair", data={"code": code(hub, owner="ada", role="viewer")}, headers={"User-Agent": PIXEL})
    with hub.database.write() as connection:
        connection.execute("UPDATE logins SET used_at = '2026-01-01T00:00:00.000Z' WHERE device = 'Chrome on Android'")
    assert is_in(browser)
    listed = hub.call("GET", "/sessions").json
    assert listed is not None
    (session,) = [each for each in listed["sessions"] if each["device"] == "Chrome on Android"]
    assert (session["owner"], session["role"], session["key"]) == ("ada", "viewer", None)
    assert session["usedAt"] > "2026-01-02"


def test_a_revoked_session_is_refused_at_once_and_its_key_stays(hub: HubApp) -> None:
    key = hub.key("bob", "client")
    phone, desk = paired(hub, code(hub, key), "bob's phone"), hub.browser()
    desk.post("/login", data={"key": key}, headers={"User-Agent": IPHONE})
    assert is_in(phone)
    assert is_in(desk)
    for device in ("bob's phone", "Safari on iPhone"):
        assert hub.call("DELETE", f"/sessions/{session_id(hub, device)}", key).status_code == 200
    assert not is_in(phone)
    assert not is_in(desk)
    assert hub.call("GET", "/agents", key).status_code == 200


def test_sessions_of_another_owner_are_not_there(hub: HubApp) -> None:
    mine, theirs = hub.key("carol", "client"), hub.key("dave", "client")
    paired(hub, code(hub, mine), "carol's phone")
    path = f"/sessions/{session_id(hub, 'carol' + chr(39) + 's phone')}"
    assert hub.call("GET", "/sessions", theirs).json == {"sessions": []}
    assert hub.call("DELETE", path, theirs).status_code == 404
    assert hub.call("DELETE", path, mine).status_code == 200


def test_the_streams_of_a_session_end_with_it_and_no_others(hub: HubApp) -> None:
    key = hub.key("streaming", "client")

    def caller(device: str) -> Caller:
        """Who a stream of a new session of the key belongs to."""
        browser = hub.browser()
        browser.post("/login", data={"key": key}, headers={"User-Agent": device})
        cookie = browser.get_cookie(hub.app.extensions["occ_cookie"])
        assert cookie is not None
        with hub.app.test_request_context("/", headers={"Cookie": f"{cookie.key}={cookie.value}"}):
            found = visitor(hub.database)
        assert found is not None
        return found

    ended, other = caller(PIXEL), caller("curl/8")
    with hub.database.read() as connection:
        row = connection.execute(
            "SELECT session_id FROM logins WHERE key_id = ? AND device LIKE 'Chrome%'", (ended.key_id,)
        ).fetchone()
    assert not ended.refused()
    assert hub.call("DELETE", f"/sessions/{row['session_id']}", key).status_code == 200
    assert ended.refused()
    assert not other.refused()


@pytest.mark.parametrize("body", [{"role": "admin"}, {"owner": "erin"}])
def test_a_key_pairs_for_its_own_owner_and_no_admin(hub: HubApp, body: dict[str, str]) -> None:
    known = hub.call("GET", "/keys").json
    assert known is not None
    if "erin" not in {each["name"] for each in known["keys"]}:
        hub.key("erin", "client")
        hub.key("frank", "client")
        hub.key("viewing", "client", role="viewer")
    secret = hub.call("POST", "/keys/frank/rotate", json={}).json
    viewing = hub.call("POST", "/keys/viewing/rotate", json={}).json
    assert secret is not None
    assert viewing is not None
    assert hub.call("POST", "/pairings", secret["key"], json=body).status_code == 403
    assert hub.call("POST", "/pairings", viewing["key"], json={}).status_code == 403


def test_a_session_opens_no_address_of_the_api(hub: HubApp) -> None:
    browser = paired(hub, code(hub, role="admin"), "api")
    for method, path in (("POST", "/pairings"), ("POST", "/keys"), ("GET", "/sessions"), ("GET", "/executions")):
        assert browser.open(path, method=method, json={}).status_code == 401


def test_what_a_key_paired_ends_when_it_is_revoked_or_rotated(hub: HubApp) -> None:
    for ending in ("rotate", "revoke"):
        key = hub.key(f"grace-{ending}", "client")
        phone, waiting = paired(hub, code(hub, key), f"grace {ending}"), code(hub, key)
        assert is_in(phone)
        hub.call("POST", f"/keys/grace-{ending}/{ending}", json={} if ending == "rotate" else None)
        assert not is_in(phone)
        if ending == "revoke":
            assert hub.browser().post("/pair", data={"code": waiting}).status_code == 401


def test_keys_of_sessions_are_no_keys_of_lists_and_cannot_be_rotated(hub: HubApp) -> None:
    paired(hub, code(hub), "listed nowhere")
    with hub.database.read() as connection:
        key_id = connection.execute("SELECT key_id FROM keys WHERE device = 'listed nowhere'").fetchone()[0]
    assert key_id not in hub.call("GET", "/keys").text
    for action in ("rotate", "revoke"):
        reply = hub.call("POST", f"/keys/{key_id}/{action}", json={} if action == "rotate" else None)
        assert reply.status_code == 404


def test_logging_out_ends_the_session(hub: HubApp) -> None:
    browser = paired(hub, code(hub), "left behind")
    browser.post("/logout", data={"csrf": csrf(browser)})
    assert not is_in(browser)
    assert "left behind" not in hub.call("GET", "/sessions").text


def test_a_hostile_name_of_a_device_is_one_line_of_text(hub: HubApp) -> None:
    paired(hub, code(hub), "<b>x</b>\n\u202eevil" + "a" * 200)
    listed = hub.call("GET", "/sessions").json
    assert listed is not None
    (device,) = [each["device"] for each in listed["sessions"] if "evil" in each["device"]]
    assert device.startswith("<b>x</b> evil")
    assert len(device) == 60
    assert device_name("\x00 \t") == ""


@pytest.mark.parametrize(
    ("agent", "name"),
    [(PIXEL, "Chrome on Android"), (IPHONE, "Safari on iPhone"), ("curl/8", "Browser"), ("", "Browser")],
)
def test_a_device_is_named_after_its_browser_and_system(agent: str, name: str) -> None:
    assert device_of(agent) == name
