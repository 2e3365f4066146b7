"""Web push: encrypted for one browser, signed by the hub, to known services alone, and to nobody who is gone."""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import http_ece
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flask.testing import FlaskClient

from occ_app.errors import ConfigError, InvalidRequest
from occ_app.hub import channels, keys, push
from occ_app.hub.channels import Channel
from occ_worker.notify import web_push
from occ_worker.notify.message import Message
from tests import sentences
from tests.browser import browser_in, in_browser
from tests.conftest import wait_until
from tests.hub_app import HubApp, hub_app
from tests.push_service import Subscription, decoded, verified_claims
from tests.real_hub import hub_in
from tests.test_notifications import ask, made, run, send_due
from tests.webhook_receiver import Receiver, receiving

FROM_PAGE = {"Origin": "http://localhost", "User-Agent": "Mozilla/5.0 (X11; Linux x86_64) Firefox/140.0"}
MESSAGE = Message("work needs you", "Claude wants to use Bash.", None, True, "raised_hand", "approval-1", "/runs/e1")


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubApp]:
    hosts = ("127.0.0.1", "fcm.googleapis.com", "*.push.example.com")
    with hub_app(tmp_path, public_url="https://hub.example.com", push_hosts=hosts) as hub:
        hub.workspace("work")
        yield hub


@pytest.fixture
def service() -> Iterator[Receiver]:
    with receiving() as service:
        service.answer = 201
        yield service


@dataclass
class Person:
    """An owner who is logged in in a browser."""

    hub: HubApp
    owner_id: str
    browser: FlaskClient
    csrf: str

    def post(self, path: str, **fields: str) -> Any:
        return self.browser.post(path, data={"csrf": self.csrf, **fields}, headers=FROM_PAGE)

    def subscribe(self, subscription: Subscription, endpoint: str) -> Any:
        auth = http_auth(subscription)
        return self.post("/notifications/browsers", endpoint=endpoint, p256dh=subscription.p256dh, auth=auth)

    def channels(self) -> list[Channel]:
        return channels.listing(self.hub.database, self.owner_id)


def http_auth(subscription: Subscription) -> str:
    return push.to_base64(subscription.auth)


def person(hub: HubApp, name: str) -> Person:
    secret = hub.key(name, "client")
    browser = hub.browser()
    assert browser.post("/login", data={"key": secret}, headers=FROM_PAGE).status_code == 303
    page = browser.get("/notifications").get_data(as_text=True)
    csrf = page.partition('name="csrf" value="')[2].partition('"')[0]
    return Person(hub, keys.owner_named(hub.database, name), browser, csrf)


# ---- The encryption


def test_decryption_here_and_encryption_there_are_those_of_the_rfc() -> None:
    # RFC 8291, section 5 and appendix A.
    browser = Subscription(
        ec.derive_private_key(
            int.from_bytes(decoded("q1dXpw3UpT5VOmu_cf_v6ih07Aems3njxI-JWgLcM94"), "big"), ec.SECP256R1()
        ),
        decoded("BTBZMqHH6r4Tts7J_aSIgg"),
    )
    sender = ec.derive_private_key(
        int.from_bytes(decoded("yfWPiYE-n46HLnH0KqZOF1fJJU3MYrct3AELtAQ-oRw"), "big"), ec.SECP256R1()
    )
    public = "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4"
    body = decoded(
        "DGv6ra1nlYgDCS1FRnbzlwAAEABBBP4z9KsN6nGRTbVYI_c7VJSPQTBtkgcy27mlmlMoZIIgDll6e3vCYLocInmYWAmS6TlzAC8wEqKK6PBru3jl"
        "7A_yl95bQpu6cVPTpK4Mqgkf1CXztLVBSt2Ks3oZwbuwXPXLWyouBWLVWGNWQexSgSxsj_Qulcy4a-fN"
    )
    text = b"When I grow up, I want to be a watermelon"
    assert browser.p256dh == public
    assert browser.decrypt(body) == text
    made_here = http_ece.encrypt(
        text,
        salt=decoded("DGv6ra1nlYgDCS1FRnbzlw"),
        private_key=sender,
        dh=decoded(public),
        auth_secret=browser.auth,
        version="aes128gcm",
    )
    assert made_here == body


def test_each_message_has_its_own_key_and_salt() -> None:
    browser = Subscription()
    sent = [web_push.encrypted(b"same", browser.p256dh, http_auth(browser)) for _ in range(2)]
    assert [browser.decrypt(body) for body in sent] == [b"same", b"same"]
    assert sent[0][:16] != sent[1][:16]  # salt
    assert sent[0][21:86] != sent[1][21:86]  # key


# ---- One message, from the form to the browser


def test_a_push_service_gets_what_only_the_browser_can_read(hub: HubApp, service: Receiver) -> None:
    ada, browser = person(hub, "ada"), Subscription()
    assert ada.subscribe(browser, f"{service.url}/of-ada").status_code == 303
    approval = ask(hub, run(hub, "e1", ada.owner_id))
    send_due(hub)
    (call,) = service.calls
    assert call.path == "/occ/of-ada"
    assert {name: call.headers[name] for name in ("Content-Encoding", "TTL", "Urgency")} == {
        "Content-Encoding": "aes128gcm",
        "TTL": "3600",
        "Urgency": "high",
    }
    assert re.fullmatch(r"[A-Za-z0-9_-]{32}", call.headers["Topic"])
    assert b"Bash" not in call.body
    assert len(call.body) < 1000
    assert json.loads(browser.decrypt(call.body)) == {
        "title": "work needs you",
        "body": f"{sentences.CLAUDE_WANTS_TO} use Bash. fix the tests",
        "tag": approval.approval_id,
        "url": "/runs/e1",
    }
    claims = verified_claims(call.headers["Authorization"])
    assert claims["aud"] == service.url.removesuffix("/occ")
    assert claims["sub"] == "https://hub.example.com"
    assert time.time() < claims["exp"] <= time.time() + 86400
    assert claims["k"] == push.public_key(hub.config)  # the page gives the browser this very key
    assert f'data-key="{claims["k"]}"' in ada.browser.get("/notifications").get_data(as_text=True)


@pytest.mark.parametrize(
    ("settings", "contact"),
    [
        ({"public_url": "http://hub"}, "https://occ.invalid"),
        ({"public_url": None, "mail_from": "occ@example.com"}, "mailto:occ@example.com"),
    ],
)
def test_a_hub_without_a_public_address_is_signed_for_too(
    hub: HubApp, service: Receiver, settings: dict[str, Any], contact: str
) -> None:
    browser = Subscription()
    address = {"endpoint": service.url, "p256dh": browser.p256dh, "auth": http_auth(browser)}
    channel = Channel("c", "push", "n", address, (), None, None, "")
    assert web_push.send(replace(hub.config, **settings), channel, MESSAGE, 5.0) == 201
    assert verified_claims(service.calls[0].headers["Authorization"])["sub"] == contact


def test_the_key_pair_is_made_once_and_closed_to_others(hub: HubApp) -> None:
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(push.public_key(hub.config))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert len(decoded(found[0])) == 65
    assert (hub.config.home / "push.json").stat().st_mode & 0o777 == 0o600


def test_a_key_file_that_cannot_be_read_is_named(hub: HubApp) -> None:
    (hub.config.home / "push.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"push\.json"):
        push.public_key(hub.config)


# ---- Whom the hub calls


@pytest.mark.parametrize(
    ("endpoint", "known"),
    [
        *(("https://fcm.googleapis.com/fcm/send/x", True), ("https://a.push.example.com/x", True)),
        *(("https://push.example.com/x", False), ("https://evilpush.example.com/x", False)),
        *(("http://fcm.googleapis.com/x", False), ("https://fcm.googleapis.com:8443/x", False)),
        *(("https://fcm.googleapis.com.evil.com/x", False), ("https://user@fcm.googleapis.com/x", False)),
        *(("https://169.254.169.254/x", False), ("http://localhost/x", False), ("http://127.0.0.1:9/x", True)),
        *(("https://evil.com/?fcm.googleapis.com", False), ("https://evil.com#fcm.googleapis.com", False)),
        *(("https://fcm.googleapis.com/\n", False), ("https://fcm.googleapis.com:x/", False), ("", False)),
        ("https://fcm.googleapis.com/" + 1000 * "x", False),
    ],
)
def test_only_known_push_services_are_called(hub: HubApp, endpoint: str, known: bool) -> None:
    ada = person(hub, "ada")
    reply = ada.subscribe(Subscription(), endpoint)
    assert (reply.status_code, len(ada.channels())) == ((303, 1) if known else (422, 0))


def test_a_service_that_the_operator_took_off_the_list_is_not_called(hub: HubApp, service: Receiver) -> None:
    ada = person(hub, "ada")
    ada.subscribe(Subscription(), service.url)
    run_of_ada = run(hub, "e1", ada.owner_id)
    ask(hub, run_of_ada)
    send_due(replace(hub, config=replace(hub.config, push_hosts=("fcm.googleapis.com",))))
    assert service.calls == []
    assert made(hub)[0].state == "failed"


@pytest.mark.parametrize(("p256dh", "auth"), [("x", "x"), ("AAAA", ""), ("A" * 87, "A" * 21), ("<b>", "<i>")])
def test_keys_that_no_browser_made_are_refused(hub: HubApp, p256dh: str, auth: str) -> None:
    ada = person(hub, "ada")
    reply = ada.post("/notifications/browsers", endpoint="https://fcm.googleapis.com/x", p256dh=p256dh, auth=auth)
    assert (reply.status_code, ada.channels()) == (422, [])


def test_a_point_that_is_not_on_the_curve_fails_alone_and_for_good(hub: HubApp, service: Receiver) -> None:
    ada = person(hub, "ada")
    reply = ada.post("/notifications/browsers", endpoint=service.url, p256dh="B" * 87, auth=http_auth(Subscription()))
    assert reply.status_code == 303
    ask(hub, run(hub, "e1", ada.owner_id))
    send_due(hub)
    assert [one.state for one in made(hub)] == ["failed"]
    assert service.calls == []


# ---- Who is gone


@pytest.mark.parametrize("status", [404, 410])
def test_a_browser_that_its_service_does_not_know_any_more_is_removed(
    hub: HubApp, service: Receiver, status: int
) -> None:
    ada = person(hub, "ada")
    ada.subscribe(Subscription(), service.url)
    service.answer = status
    ask(hub, run(hub, "e1", ada.owner_id))
    send_due(hub)
    assert ada.channels() == []
    assert [(one.state, one.status) for one in made(hub)] == [("failed", status)]


def test_a_service_that_is_busy_is_tried_again(hub: HubApp, service: Receiver) -> None:
    ada = person(hub, "ada")
    ada.subscribe(Subscription(), service.url)
    service.answer = 429
    ask(hub, run(hub, "e1", ada.owner_id))
    send_due(hub)
    assert [(one.state, one.status) for one in made(hub)] == [("waiting", 429)]
    assert len(ada.channels()) == 1


def test_a_browser_whose_key_is_revoked_gets_nothing(hub: HubApp, service: Receiver) -> None:
    ada = person(hub, "ada")
    ada.subscribe(Subscription(), service.url)
    keys.revoke(hub.database, "ada")
    ask(hub, run(hub, "e1", ada.owner_id))
    send_due(hub)
    assert service.calls == []
    assert [one.state for one in made(hub)] == ["dropped"]


# ---- The page


def test_a_browser_is_listed_once_tested_and_removed_by_its_owner_alone(hub: HubApp, service: Receiver) -> None:
    ada, bob, browser = person(hub, "ada"), person(hub, "bob"), Subscription()
    for _ in range(2):
        assert ada.subscribe(browser, service.url).status_code == 303
    (channel,) = ada.channels()
    assert channel.name == "Firefox on Linux"
    page = ada.browser.get("/notifications").get_data(as_text=True)
    assert "Firefox on Linux" in page
    assert browser.p256dh not in page
    assert "Firefox on Linux" not in bob.browser.get("/notifications").get_data(as_text=True)
    for action in ("remove", "test"):
        assert bob.post(f"/notifications/{channel.channel_id}/{action}").status_code == 404
    assert ada.post(f"/notifications/{channel.channel_id}/test").status_code == 303
    send_due(hub)
    assert json.loads(browser.decrypt(service.calls[0].body))["title"] == sentences.TEST_FROM_YOUR_OCC_HUB
    assert "delivered" in ada.browser.get("/notifications").get_data(as_text=True)
    assert ada.post(f"/notifications/{channel.channel_id}/remove").status_code == 303
    assert ada.channels() == []


def test_a_form_without_the_token_of_the_login_subscribes_nobody(hub: HubApp) -> None:
    ada, browser = person(hub, "ada"), Subscription()
    fields = {"endpoint": "https://fcm.googleapis.com/x", "p256dh": browser.p256dh, "auth": http_auth(browser)}
    reply = ada.browser.post("/notifications/browsers", data={**fields, "csrf": "x"}, headers=FROM_PAGE)
    assert (reply.status_code, ada.channels()) == (403, [])


def test_an_owner_has_a_limit_of_browsers(hub: HubApp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "MAX_BROWSERS", 2)
    ada, browser = person(hub, "ada"), Subscription()
    replies = [ada.subscribe(browser, f"https://fcm.googleapis.com/{number}").status_code for number in range(3)]
    assert replies == [303, 303, 422]
    assert ada.subscribe(browser, "https://fcm.googleapis.com/1").status_code == 303  # one that is there


def test_without_the_extra_the_page_names_it(hub: HubApp, monkeypatch: pytest.MonkeyPatch) -> None:
    ada = person(hub, "ada")
    monkeypatch.setitem(sys.modules, "py_vapid", None)
    assert "online-claude-code[push]" in ada.browser.get("/notifications").get_data(as_text=True)


def test_a_subscription_is_checked_again_when_it_is_called(hub: HubApp) -> None:
    browser = Subscription()
    address = {"endpoint": "http://127.0.0.1:1/", "p256dh": browser.p256dh, "auth": http_auth(browser)}
    channel = Channel("c", "push", "n", {**address, "endpoint": "https://evil.example/"}, (), None, None, "")
    with pytest.raises(ConfigError):
        web_push.send(hub.config, channel, MESSAGE, 1.0)
    with pytest.raises(InvalidRequest):
        push.check_service(hub.config, "https://evil.example/")


@in_browser
def test_a_real_browser_subscribes_on_the_page_and_shows_the_decrypted_push(tmp_path: Path, service: Receiver) -> None:
    subscription = Subscription()
    keys_of_browser = {"p256dh": subscription.p256dh, "auth": http_auth(subscription)}
    # No outside service is asked: the browser's own delivery hook takes the place of the way from the push service.
    subscribes = f"""
        PushManager.prototype.getSubscription = async () => null;
        PushManager.prototype.subscribe = async (options) => {{
          window.subscribedFor = options;
          return {{ toJSON: () => ({{ endpoint: {json.dumps(service.url)}, keys: {json.dumps(keys_of_browser)} }}) }};
        }};
    """
    with hub_in(tmp_path, OCC_HUB_PUSH_HOSTS="127.0.0.1") as hub, browser_in(tmp_path / "browser") as browser:
        hub.start()
        page = browser.page()
        page.call("Browser.grantPermissions", permissions=["notifications"], origin=hub.url)
        page.call("Page.addScriptToEvaluateOnNewDocument", source=subscribes)
        registrations: list[dict[str, Any]] = []
        hear = page._hear

        def listen(said: dict[str, Any]) -> None:
            if said["method"] == "ServiceWorker.workerRegistrationUpdated":
                registrations.extend(said["params"]["registrations"])
            hear(said)

        page._hear = listen  # type: ignore[method-assign]
        page.call("ServiceWorker.enable")
        page.go(f"{hub.url}/login")
        page.fill("#key", hub.client_key)
        page.click("button.main")
        page.wait("location.pathname === '/'")
        page.go(f"{hub.url}/notifications")
        page.wait("document.querySelector('#subscribe button:enabled')")  # once the script is there
        page.click("#subscribe button")
        page.wait("document.querySelector('form[action$=\"/test\"]')")
        page.settled()
        page.click('form[action$="/test"] button')
        content = subscription.decrypt(service.came(1)[0].body)
        assert verified_claims(service.calls[0].headers["Authorization"])["aud"].startswith("http://127.0.0.1")
        page.go(f"{hub.url}/notifications")
        wait_until(lambda: page.js("1") and registrations, "the service worker is registered")
        titles = "navigator.serviceWorker.ready.then((one) => one.getNotifications()).then((all) => all[0]?.title)"

        def shown() -> bool:
            """Whether the browser shows it; the hook drops a message while the worker is not active yet."""
            page.call(
                "ServiceWorker.deliverPushMessage",
                origin=hub.url,
                registrationId=registrations[-1]["registrationId"],
                data=content.decode(),
            )
            return bool(page.js(titles) == sentences.TEST_FROM_YOUR_OCC_HUB)

        wait_until(shown, "the notification is shown", 60)
        assert page.errors == []
