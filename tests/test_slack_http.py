"""Slack over HTTP: signed requests become the rows that Socket Mode makes, and nothing else does."""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
import time
from dataclasses import replace
from urllib.parse import urlencode

import pytest
from click.testing import CliRunner
from werkzeug.test import TestResponse

from occ_app.cli import slack as module
from occ_app.cli.slack import slack as commands
from occ_app.errors import ConfigError
from occ_app.hub import slack_requests
from occ_app.slack import inbox, manifest, tokens
from occ_worker.slack.process import SlackProcess
from tests.conftest import wait_until
from tests.fake_slack import FakeSlack
from tests.slack_office import Office

SECRET = "8f742231b10e8888abcd99yyyzzz85a5"  # that of Slack's own example


@pytest.fixture
def office(office: Office) -> Office:
    """The office of an app over HTTP."""
    connected = replace(office.process.tokens, app="", signing_secret=SECRET)
    tokens.save(office.hub.config, connected)
    office.process.db.close()
    office.process = SlackProcess(office.hub.config, connected)
    return office


def sends(office: Office, body: bytes, content_type: str, **headers: str) -> TestResponse:
    """A request as Slack sends it, now; `headers` replace those of a right one."""
    moment = headers.pop("moment", str(int(time.time())))
    digest = hmac.new(SECRET.encode(), b"v0:" + moment.encode() + b":" + body, hashlib.sha256).hexdigest()
    own = {"X-Slack-Request-Timestamp": moment, "X-Slack-Signature": f"v0={digest}", "Content-Type": content_type}
    return office.hub.browser().post(manifest.REQUESTS, data=body, headers={**own, **headers})


def mention(name: str = "1") -> bytes:
    event = {"type": "app_mention", "user": "UADA", "text": f"<@UBOT> é {name}", "ts": f"7.{name}", "channel": "C1"}
    payload = {"type": "event_callback", "team_id": "T1", "event_id": f"Ev{name}", "event": event}
    return json.dumps(payload, ensure_ascii=False).encode()


def test_the_challenge_is_answered_only_if_it_is_signed(office: Office) -> None:
    body = json.dumps({"type": "url_verification", "challenge": "c3", "token": "x"}).encode()
    assert sends(office, body, "application/json").text == "c3"
    assert sends(office, body, "application/json", **{"X-Slack-Signature": "v0=00"}).status_code == 401
    assert inbox.unhandled(office.hub.database) == []


def test_a_mention_a_command_and_a_click_become_the_rows_of_socket_mode(office: Office) -> None:
    form = "application/x-www-form-urlencoded"
    assert sends(office, mention(), "application/json").status_code == 200
    office.process.step()
    (run,) = office.runs()
    assert run.prompt == "é 1"
    command = {
        "team_id": "T1",
        "user_id": "UADA",
        "channel_id": "C1",
        "command": "/occ",
        "text": "",
        "trigger_id": "t9",
    }
    reply = sends(office, urlencode(command).encode(), form)
    assert (reply.status_code, reply.text) == (200, "")  # a text would be shown
    office.process.step()
    assert office.slack.called("views.open")[0].values["trigger_id"] == "t9"
    (shown,) = office.slack.shown()
    click = {
        "type": "block_actions",
        "user": {"id": "UADA", "team_id": "T1"},
        "container": {"message_ts": shown["ts"], "thread_ts": shown["thread_ts"], "channel_id": "C1"},
        "actions": [{"action_id": "occ_cancel", "value": run.execution_id, "action_ts": "1"}],
    }
    assert sends(office, urlencode({"payload": json.dumps(click)}).encode(), form).status_code == 200
    office.process.step()
    assert office.runs()[0].state == "cancelled"


def test_a_request_that_comes_again_has_no_second_effect(office: Office) -> None:
    for _ in range(2):
        assert sends(office, mention(), "application/json").status_code == 200
        office.process.step()
    retry = {"X-Slack-Retry-Num": "1", "X-Slack-Retry-Reason": "http_timeout"}
    assert sends(office, mention(), "application/json", **retry).status_code == 200
    office.process.step()
    assert len(office.runs()) == 1
    with office.hub.database.read() as connection:
        assert connection.execute("SELECT count(*) FROM slack_inbox").fetchone()[0] == 1


@pytest.mark.parametrize("late", [-301, 301])
def test_a_signature_is_valid_for_five_minutes(office: Office, late: int) -> None:
    moment = str(int(time.time()) + late * 2)
    assert sends(office, mention(), "application/json", moment=moment).status_code == 401
    signature = "v0=" + hmac.new(b"s", b"v0:1000:x", hashlib.sha256).hexdigest()
    headers = {"X-Slack-Request-Timestamp": "1000", "X-Slack-Signature": signature}
    assert slack_requests.is_signed("s", b"x", headers, 1300)
    assert not slack_requests.is_signed("s", b"x", headers, 1000 + late)
    assert inbox.unhandled(office.hub.database) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"X-Slack-Signature": ""},
        {"X-Slack-Signature": "v0=é"},
        {"X-Slack-Signature": "v1=" + "0" * 64},
        {"X-Slack-Request-Timestamp": "now"},
        {"X-Slack-Request-Timestamp": "9" * 30},
        {"X-Slack-Request-Timestamp": "-1"},
    ],
)
def test_a_wrong_signature_is_refused_and_nothing_is_stored(office: Office, wrong: dict[str, str]) -> None:
    assert sends(office, mention(), "application/json", **wrong).status_code == 401
    assert inbox.unhandled(office.hub.database) == []


def test_the_signature_is_that_of_slacks_example() -> None:
    body = (
        b"token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow&channel_id=G8PSS9T3V"
        b"&channel_name=foobar&user_id=U2CERLKJA&user_name=roadrunner&command=%2Fwebhook-collect&text="
        b"&response_url=https%3A%2F%2Fhooks.slack.com%2Fcommands%2FT1DC2JH3J%2F397700885554%2F96rGlfmibIGlgcZRskXaIFfN"
        b"&trigger_id=398738663015.47445629121.803a0bc887a14d10d2c447fce8b6703c"
    )
    signature = "v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503"
    headers = {"X-Slack-Request-Timestamp": "1531420618", "X-Slack-Signature": signature}
    assert slack_requests.is_signed(SECRET, body, headers, 1531420618)
    assert not slack_requests.is_signed(SECRET, body + b"&", headers, 1531420618)


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"[]", "application/json"),
        (b"{", "application/json"),
        (b"[" * 100_000, "application/json"),
        (b"\xff\xfe", "application/x-www-form-urlencoded"),
        (b"payload=%7B", "application/x-www-form-urlencoded"),
    ],
)
def test_a_signed_body_that_is_no_payload_is_refused(office: Office, body: bytes, content_type: str) -> None:
    assert sends(office, body, content_type).status_code == 422
    assert inbox.unhandled(office.hub.database) == []


def test_without_a_signing_secret_the_address_takes_nothing(office: Office) -> None:
    tokens.save(office.hub.config, replace(office.process.tokens, signing_secret=None))
    assert sends(office, mention(), "application/json").status_code == 404
    tokens.remove(office.hub.config)
    assert sends(office, mention(), "application/json").status_code == 404
    assert inbox.unhandled(office.hub.database) == []


def test_a_request_wakes_the_process_which_opens_no_connection(office: Office) -> None:
    thread = threading.Thread(target=office.process.run)
    thread.start()
    try:
        folder = office.hub.config.run / "slack"
        wait_until(lambda: list(folder.iterdir()), "it listens")
        wait_until(lambda: json.loads(status(office))["problem"] is None, "it says so")
        assert sends(office, mention(), "application/json").status_code == 200
        wait_until(office.slack.shown, "the message")
        assert office.slack.called("apps.connections.open") == []
    finally:
        office.process.end()
        thread.join(60)
    assert not thread.is_alive()


def status(office: Office) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OCC_HUB_HOME", str(office.hub.config.home))
        return str(CliRunner().invoke(commands, ["status", "--json"]).stdout)


def test_connect_over_http_wants_a_public_https_address(
    office: Office, slack: FakeSlack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OCC_HUB_HOME", str(office.hub.config.home))
    monkeypatch.setattr(module, "API", slack.api)
    given = ["connect", "--http", "--signing-secret", SECRET, "--bot-token", "xoxb-1"]
    monkeypatch.setenv("OCC_HUB_PUBLIC_URL", "http://hub.example.com")
    assert isinstance(CliRunner().invoke(commands, given).exception, ConfigError)
    monkeypatch.setenv("OCC_HUB_PUBLIC_URL", "https://hub.example.com")
    assert CliRunner().invoke(commands, given).exit_code == 0
    stored = tokens.load(office.hub.config)
    assert stored is not None
    assert (stored.signing_secret, stored.app) == (SECRET, "")
    assert slack.called("apps.connections.open") == []
    assert json.loads(status(office))["mode"] == "http"
    shown = CliRunner().invoke(commands, ["connect", "--http", "--show-manifest"]).stdout
    made = json.loads(shown[shown.index("{") :])
    assert made["settings"]["socket_mode_enabled"] is False
    url = f"https://hub.example.com{manifest.REQUESTS}"
    assert made["settings"]["event_subscriptions"]["request_url"] == url
    assert made["settings"]["interactivity"]["request_url"] == url
    assert made["features"]["slash_commands"][0]["url"] == url
