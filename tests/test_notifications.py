"""Notifications: for whom, of what, by which channels, each once, and none that nobody needs."""

from __future__ import annotations

import json
import sys
import threading
import types
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from occ_app.cli.notify import notify as commands
from occ_app.errors import ConfigError, NotFound, Unreachable
from occ_app.executions import answers, approvals, lifecycle
from occ_app.executions.answers import Answer, Person
from occ_app.executions.records import Execution, Outcome, Request
from occ_app.hub import approval_rows, channels, deliveries, keys
from occ_app.hub.channels import Channel
from occ_app.hub.deliveries import Claimed, Delivery
from occ_app.system.process_identity import own_identity
from occ_worker.control.deliveries import Deliveries
from occ_worker.control.delivery import PATIENCE, Patience
from occ_worker.notify import by_apprise, mail
from occ_worker.notify.message import Message, message_of
from occ_worker.notify.sending import Sent, notify
from tests import sentences
from tests.hub_app import HubApp, hub_app
from tests.smtp_server import MailServer, mail_server
from tests.webhook_receiver import Receiver, receiving

LONG_AGO = "2026-01-01T00:00:00.000Z"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubApp]:
    with hub_app(tmp_path, public_url="https://hub.example.com") as hub:
        hub.workspace("work")
        yield hub


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture
def server() -> Iterator[MailServer]:
    with mail_server() as server:
        yield server


def owner_of(hub: HubApp, name: str) -> str:
    """The id of a new owner."""
    hub.key(name, "client")
    return keys.owner_named(hub.database, name)


def run(
    hub: HubApp,
    execution_id: str,
    owner: str | None = None,
    *,
    notify: bool = False,
    minutes: int = 2,
    place: str = "work",
) -> Execution:
    """An execution that runs and was sent so many minutes ago."""
    asked = Request(execution_id, place, "fix the tests", 60, 60, None, None, None, None, execution_id)
    lifecycle.create(hub.database, replace(asked, owner_id=owner, notify=notify), max_queue=10)
    execution = lifecycle.claim(hub.database, own_identity())
    assert execution is not None
    with hub.database.write() as connection:
        connection.execute(
            "UPDATE executions SET created_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now', :before) WHERE number = :number",
            {"before": f"-{minutes} minutes", "number": execution.number},
        )
    return execution


def end(hub: HubApp, execution: Execution, state: str = "succeeded", **data: Any) -> None:
    event = "complete" if state == "succeeded" else "error"
    lifecycle.finish(hub.database, execution.number, Outcome(state, event, {"exitCode": 0, **data}))


def ask(hub: HubApp, execution: Execution) -> answers.Approval:
    request = answers.Request("tool", "Bash", {"command": "s3cret"}, "0" * 64)
    return approvals.ask(hub.database, execution.number, request, 60)


def channel(hub: HubApp, url: str, owner: str | None = None, **more: Any) -> Channel:
    return channels.add(hub.database, "ntfy", "test", {"url": f"{url}/topic", **more}, owner_id=owner)


def made(hub: HubApp) -> list[Delivery]:
    """All notifications, oldest first."""
    return deliveries.log(hub.database, 100, of_channels=True)[::-1]


def send_due(hub: HubApp, patience: Patience = PATIENCE) -> None:
    """Send what is due, as the control process does."""
    outbox = Deliveries(hub.database, patience, partial(notify, hub.config, hub.database, 20.0))

    def put(number: int) -> None:
        outbox.deliver(number, put)

    outbox.put_due(put)


# ---- For whom, and of what


def test_an_owner_is_notified_of_their_own_runs(hub: HubApp) -> None:
    ada, bob = owner_of(hub, "ada"), owner_of(hub, "bob")
    of_ada, of_all = channel(hub, "http://127.0.0.1:1", ada), channel(hub, "http://127.0.0.1:1")
    for execution_id, owner in (("a", ada), ("b", bob)):
        execution = run(hub, execution_id, owner)
        ask(hub, execution)
        end(hub, execution)
    heard = {(one.webhook_id, one.event, one.execution_id) for one in made(hub)}
    events = ("notify.needs_you", "notify.ended")
    assert heard == {
        *((of_ada.channel_id, event, "a") for event in events),
        *((of_all.channel_id, event, execution_id) for event in events for execution_id in "ab"),
    }


def test_short_and_cancelled_runs_notify_only_when_that_was_asked_for(hub: HubApp) -> None:
    channel(hub, "http://127.0.0.1:1")
    end(hub, run(hub, "long"))
    end(hub, run(hub, "short", minutes=0))
    end(hub, run(hub, "short-asked", notify=True, minutes=0))
    end(hub, run(hub, "cancelled"), "cancelled", code="EXECUTION_CANCELLED", message="You cancelled it.")
    end(hub, run(hub, "cancelled-asked", notify=True), "cancelled", code="EXECUTION_CANCELLED", message="x")
    assert [one.execution_id for one in made(hub)] == ["long", "short-asked", "cancelled-asked"]


def test_a_login_that_fails_needs_you(hub: HubApp) -> None:
    channel(hub, "http://127.0.0.1:1")
    end(hub, run(hub, "e1", minutes=0), "failed", code="CLAUDE_AUTH", message="Not logged in.")
    assert [one.event for one in made(hub)] == ["notify.needs_you"]


def test_a_channel_of_one_class_gets_the_other_only_when_that_was_asked_for(hub: HubApp) -> None:
    channels.add(hub.database, "ntfy", "n", {"url": "http://127.0.0.1:1/t"}, owner_id=None, classes=["needs-you"])
    execution = run(hub, "e1")
    ask(hub, execution)
    end(hub, execution)
    end(hub, run(hub, "e2", notify=True))
    assert [(one.event, one.execution_id) for one in made(hub)] == [("notify.needs_you", "e1"), ("notify.ended", "e2")]


def test_the_api_takes_notify_with_an_execution(hub: HubApp) -> None:
    channel(hub, "http://127.0.0.1:1")
    body = {"executionId": "e1", "workspaceId": "work", "prompt": "p", "notify": True}
    hub.call("POST", "/execute", json=body)  # its stream needs a real connection
    assert hub.call("POST", "/executions/e1/cancel").status_code == 202
    assert [one.execution_id for one in made(hub)] == ["e1"]


# ---- What it says


def claimed(hub: HubApp) -> Claimed:
    number = made(hub)[-1].number
    found = deliveries.claim(hub.database, number, "9999", "9999", "99999")
    assert found is not None
    return found


def test_a_notification_has_no_input_of_a_tool_call(hub: HubApp) -> None:
    channel(hub, "http://127.0.0.1:1")
    approval = ask(hub, run(hub, "e1"))
    message = message_of(claimed(hub), "https://hub.example.com")
    assert message == Message(
        title="work needs you",
        text=f"{sentences.CLAUDE_WANTS_TO} use Bash. fix the tests",
        url="https://hub.example.com/runs/e1",
        urgent=True,
        mark="raised_hand",
        tag=approval.approval_id,
        path="/runs/e1",
    )


def test_the_end_of_a_run_says_how_it_ended(hub: HubApp) -> None:
    channel(hub, "http://127.0.0.1:1")
    end(hub, run(hub, "e1"), "failed", code="MAX_TURNS", message="It took\n too\x1b many turns.")
    message = message_of(claimed(hub), None)
    assert (message.title, message.url, message.urgent) == ("work: failed", None, False)
    assert message.text == "fix the tests (It took too\\x1b many turns.)"


# ---- ntfy


def test_ntfy_gets_one_post_with_priority_tag_and_link(hub: HubApp, receiver: Receiver) -> None:
    channel(hub, receiver.url, token="tk_1")
    execution = run(hub, "e1")
    ask(hub, execution)
    end(hub, execution)
    send_due(hub, replace(PATIENCE, repeat=900))
    (call,) = receiver.calls  # the approval was withdrawn with the end
    assert (call.path, call.headers["Authorization"]) == ("/occ/", "Bearer tk_1")
    assert call.content == {
        "topic": "topic",
        "title": "work: done",
        "message": "fix the tests",
        "priority": 3,
        "tags": ["white_check_mark"],
        "click": "https://hub.example.com/runs/e1",
    }
    assert [(one.event, one.state) for one in made(hub)] == [
        ("notify.needs_you", "dropped"),
        ("notify.ended", "delivered"),
    ]


def test_a_failing_server_is_tried_again_and_a_refusal_is_final(hub: HubApp, receiver: Receiver) -> None:
    channel(hub, receiver.url)
    receiver.answer = 500
    end(hub, run(hub, "e1"))
    send_due(hub)
    (first,) = made(hub)
    assert (first.state, first.status, first.attempts) == ("waiting", 500, 1)
    receiver.answer = 403
    end(hub, run(hub, "e2"))
    send_due(hub)
    assert [(one.execution_id, one.state, one.status) for one in made(hub)][1:] == [("e2", "failed", 403)]


# ---- Once, again, and not at all


def test_a_question_is_repeated_once_while_it_is_open(hub: HubApp, receiver: Receiver) -> None:
    channel(hub, receiver.url)
    ask(hub, run(hub, "e1"))
    at_once = replace(PATIENCE, repeat=0.0)
    for _ in range(4):
        send_due(hub, at_once)
    assert [call.content["message"] for call in receiver.calls] == [
        f"{sentences.CLAUDE_WANTS_TO} use Bash. fix the tests",
        f"{sentences.STILL_OPEN} {sentences.CLAUDE_WANTS_TO} use Bash. fix the tests",
    ]
    assert {call.content["priority"] for call in receiver.calls} == {4}
    assert PATIENCE.repeat == 900


@pytest.mark.parametrize("answer", [approvals.decide, approval_rows.keep_answer], ids=["closed", "on its way"])
def test_an_answered_question_is_not_repeated(hub: HubApp, receiver: Receiver, answer: Callable[..., object]) -> None:
    channel(hub, receiver.url)
    approval = ask(hub, run(hub, "e1"))
    send_due(hub)
    with hub.database.write() as connection:  # 15 minutes later
        connection.execute("UPDATE deliveries SET next_at = :then WHERE state = 'waiting'", {"then": LONG_AGO})
    answer(hub.database, approval.approval_id, Answer("deny"), Person("ada", None, "api"))
    send_due(hub)
    states = [(one.state, one.problem) for one in made(hub)]
    assert states == [("delivered", None), ("dropped", sentences.IT_IS_NOT_OPEN_ANY_MORE)]
    assert len(receiver.calls) == 1


def test_a_repetition_waits_its_time(hub: HubApp, receiver: Receiver) -> None:
    channel(hub, receiver.url)
    ask(hub, run(hub, "e1"))
    send_due(hub)
    send_due(hub)
    assert len(receiver.calls) == 1
    assert [one.state for one in made(hub)] == ["delivered", "waiting"]


def logged_in(hub: HubApp, secret: str) -> tuple[Any, str]:
    browser = hub.browser()
    assert browser.post("/login", data={"key": secret}, headers={"Origin": "http://localhost"}).status_code == 303
    page = browser.get("/").get_data(as_text=True)
    return browser, page.partition('name="csrf" value="')[2].partition('"')[0]


def test_a_visible_page_makes_the_notification_of_its_run_needless(hub: HubApp, receiver: Receiver) -> None:
    secret = hub.key("ada", "client")
    ada = keys.owner_named(hub.database, "ada")
    browser, csrf = logged_in(hub, secret)
    channel(hub, receiver.url, ada)
    hub.workspace("another")
    seen, other = run(hub, "seen", ada), run(hub, "other", ada, place="another")
    report = {"csrf": csrf, "page": "0" * 32, "state": "visible"}
    headers = {"Origin": "http://localhost"}
    assert browser.post("/runs/seen/seen", data=report, headers=headers).status_code == 204
    for execution in (seen, other):
        ask(hub, execution)
    send_due(hub)
    assert [call.content["click"] for call in receiver.calls] == ["https://hub.example.com/runs/other"]
    states = {(one.execution_id, one.state, one.problem) for one in made(hub)}
    assert ("seen", "dropped", sentences.A_PAGE_OF_ITS_OWNER_SHOWS_IT) in states
    assert ("seen", "waiting", None) in states  # the repetition, should the page be closed and nobody have answered
    assert browser.post("/runs/seen/seen", data={**report, "state": "hidden"}, headers=headers).status_code == 204
    end(hub, seen)
    send_due(hub)
    assert receiver.calls[-1].content["title"] == "work: done"


def test_a_page_of_another_owner_or_of_long_ago_changes_nothing(hub: HubApp, receiver: Receiver) -> None:
    ada, bob = owner_of(hub, "ada"), owner_of(hub, "bob")
    channel(hub, receiver.url, ada)
    execution = run(hub, "e1", ada)
    channels.note_page(hub.database, "1", bob, execution.number, seen=True)
    channels.note_page(hub.database, "2", ada, execution.number, seen=True)
    with hub.database.write() as connection:
        connection.execute("UPDATE seen_pages SET until = :then WHERE page = '2'", {"then": LONG_AGO})
    end(hub, execution)
    send_due(hub)
    assert len(receiver.calls) == 1


@pytest.mark.parametrize("report", [{}, {"page": "x" * 32, "state": "visible"}, {"page": "0" * 32, "state": "maybe"}])
def test_a_report_of_a_page_that_makes_no_sense_is_refused(hub: HubApp, report: dict[str, str]) -> None:
    browser, csrf = logged_in(hub, hub.key("ada", "client"))
    reply = browser.post("/runs/e1/seen", data={"csrf": csrf, **report}, headers={"Origin": "http://localhost"})
    assert reply.status_code == 422


def test_a_page_cannot_report_a_run_of_another_owner(hub: HubApp) -> None:
    browser, csrf = logged_in(hub, hub.key("ada", "client"))
    run(hub, "e1", owner_of(hub, "bob"))
    report = {"csrf": csrf, "page": "0" * 32, "state": "visible"}
    assert browser.post("/runs/e1/seen", data=report, headers={"Origin": "http://localhost"}).status_code == 404


def test_of_many_senders_one_sends_it(hub: HubApp, receiver: Receiver) -> None:
    channel(hub, receiver.url)
    for number in range(8):
        end(hub, run(hub, f"e{number}"))
    threads = [threading.Thread(target=send_due, args=(hub,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    send_due(hub)
    assert sorted(call.content["click"] for call in receiver.calls) == [
        f"https://hub.example.com/runs/e{number}" for number in range(8)
    ]


# ---- E-mail


def by_mail(hub: HubApp, server: MailServer, user: str = "", host: str = "127.0.0.1") -> HubApp:
    return replace(
        hub, config=replace(hub.config, smtp_url=f"smtp://{user}{host}:{server.port}", mail_from="occ@example.com")
    )


def test_a_mail_has_the_text_the_link_and_one_id_for_all_attempts(hub: HubApp, server: MailServer) -> None:
    channels.add(hub.database, "email", "ada", {"to": "ada@example.com"}, owner_id=None)
    ask(hub, run(hub, "e1"))
    server.refusals = ["451 later"]
    server.extensions = ("AUTH PLAIN",)
    hub = by_mail(hub, server, "user:pass%40@")
    send_due(hub, replace(PATIENCE, pauses=(0.0,), jitter=0.0))
    assert [(one.state, one.attempts) for one in made(hub)][:1] == [("delivered", 2)]
    (received,) = server.mails
    assert (received["To"], received["From"]) == ("ada@example.com", "occ@example.com")
    assert (received["Subject"], received["Importance"]) == ("work needs you", "high")
    assert received["Message-ID"].startswith(f"<{made(hub)[0].delivery_id}@")
    assert str(received.get_payload()).splitlines()[::2] == [
        f"{sentences.CLAUDE_WANTS_TO} use Bash. fix the tests",
        "https://hub.example.com/runs/e1",
    ]


def test_a_password_is_not_sent_to_a_server_without_tls(
    hub: HubApp, server: MailServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mail, "is_loopback", lambda _: False)
    to = Channel("c", "email", "n", {"to": "a@example.com"}, (), None, None, "")
    message = Message("t", "x", None, False, "bell", "tag")
    server.extensions = ("AUTH PLAIN",)
    with pytest.raises(ConfigError):
        mail.send(by_mail(hub, server, "user:pass@").config, to, message, "d", 2.0)
    assert not any("AUTH" in command for command in server.commands)
    mail.send(by_mail(hub, server).config, to, message, "d", 2.0)  # without a password it may go
    assert len(server.mails) == 1


def test_a_mail_server_that_says_nothing_is_left_in_time(hub: HubApp, server: MailServer) -> None:
    server.hangs = True
    to = Channel("c", "email", "n", {"to": "a@example.com"}, (), None, None, "")
    with pytest.raises(Unreachable):
        mail.send(by_mail(hub, server).config, to, Message("t", "x", None, False, "bell", "g"), "d", 0.3)


def test_mail_without_a_server_fails_for_good_with_the_setting_in_the_log(hub: HubApp) -> None:
    channels.add(hub.database, "email", "ada", {"to": "ada@example.com"}, owner_id=None)
    end(hub, run(hub, "e1"))
    send_due(hub)
    (only,) = made(hub)
    assert only.state == "failed"
    assert "OCC_HUB_SMTP_URL" in (only.problem or "")


# ---- Others


def test_apprise_gets_the_operators_url_and_its_refusal_is_tried_again(
    hub: HubApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[dict[str, str]] = []

    class Apprise:
        def add(self, url: str) -> bool:
            return url == "json://localhost"

        def notify(self, **values: str) -> bool:
            sent.append(values)
            return len(sent) > 1

    kinds = types.SimpleNamespace(WARNING="warning", INFO="info")
    monkeypatch.setitem(sys.modules, "apprise", types.SimpleNamespace(Apprise=Apprise, NotifyType=kinds))
    channels.add(hub.database, "apprise", "json", {"url": "json://localhost"}, owner_id=None)
    end(hub, run(hub, "e1"))
    send_due(hub, replace(PATIENCE, pauses=(0.0,), jitter=0.0))
    send_due(hub)
    assert [one.state for one in made(hub)] == ["delivered"]
    assert sent[1]["body"] == "fix the tests\nhttps://hub.example.com/runs/e1"
    with pytest.raises(ConfigError):
        by_apprise.send(
            replace(channels.listing(hub.database)[0], address={"url": "no"}), Message("", "", None, True, "", "")
        )


def test_without_apprise_the_channel_is_refused_with_the_way_to_install_it(
    hub: HubApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "apprise", None)
    monkeypatch.setenv("OCC_HUB_HOME", str(hub.config.home))
    result = CliRunner().invoke(commands, ["add", "apprise", "json://localhost"])
    assert isinstance(result.exception, ConfigError)
    assert "online-claude-code[apprise]" in str(result.exception)


def test_a_damaged_channel_fails_alone(hub: HubApp, receiver: Receiver) -> None:
    broken, whole = channel(hub, receiver.url), channel(hub, receiver.url)
    with hub.database.write() as connection:
        connection.execute("UPDATE channels SET address = 'x' WHERE channel_id = :id", {"id": broken.channel_id})
    end(hub, run(hub, "e1"))
    send_due(hub)
    states = {one.webhook_id: one.state for one in made(hub)}
    assert states == {broken.channel_id: "failed", whole.channel_id: "delivered"}


# ---- The commands


def test_the_commands_add_list_and_remove(hub: HubApp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCC_HUB_HOME", str(hub.config.home))
    owner_of(hub, "ada")
    invoke = CliRunner().invoke
    added = invoke(commands, ["add", "ntfy", "https://ntfy.example/s3cret", "--owner", "ada", "--token", "tk_s3cret"])
    assert invoke(commands, ["add", "email", "ada@example.com", "--only", "needs-you"]).exit_code == 0
    shown = invoke(commands, ["list"]).stdout + invoke(commands, ["list", "--json"]).stdout
    assert "s3cret" not in shown
    listed = json.loads(invoke(commands, ["list", "--json"]).stdout)["channels"]
    assert [(one["kind"], one["name"], one["owner"], one["classes"]) for one in listed] == [
        ("ntfy", "ntfy.example", "ada", ["needs-you", "ended"]),
        ("email", "ada@example.com", None, ["needs-you"]),
    ]
    channel_id = added.stdout.strip()
    end(hub, run(hub, "e1", keys.owner_named(hub.database, "ada")))
    assert json.loads(invoke(commands, ["log", "--json"]).stdout)["notifications"][0]["webhookId"] == channel_id
    assert "ended" in invoke(commands, ["log"]).stdout
    assert invoke(commands, ["remove", channel_id]).exit_code == 0
    assert made(hub) == []  # it waited still
    assert isinstance(invoke(commands, ["remove", channel_id]).exception, NotFound)


@pytest.mark.parametrize(
    "words",
    [
        *(["ntfy", "https://ntfy.sh"], ["ntfy", "ftp://x/y"], ["ntfy", "http://169.254.169.254/topic"]),
        *(["slack", "ada"], ["slack", "U012AB3CD"]),
        *(["email", "nobody"], ["email", "a@b\nBcc: c@d"], ["ntfy", "https://ntfy.sh/t", "--owner", "nobody"]),
    ],
)
def test_an_address_that_cannot_work_is_refused(hub: HubApp, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCC_HUB_HOME", str(hub.config.home))
    assert isinstance(CliRunner().invoke(commands, ["add", *words]).exception, (ConfigError, NotFound))
    assert channels.listing(hub.database) == []


def test_a_test_goes_through_the_outbox_and_reports_the_result(
    hub: HubApp, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    from occ_app.cli import notify as module

    monkeypatch.setattr(module, "running_hub", lambda: None)
    monkeypatch.setenv("OCC_HUB_HOME", str(hub.config.home))
    added = channel(hub, receiver.url)
    done = threading.Event()

    def control() -> None:
        while not done.wait(0.02):
            send_due(hub)

    thread = threading.Thread(target=control)
    thread.start()
    try:
        result = CliRunner().invoke(commands, ["test", added.channel_id], standalone_mode=False)
        assert (result.return_value, result.stdout) == (0, f"{sentences.IT_WAS_DELIVERED}\n")
        receiver.answer = unauthorized
        assert CliRunner().invoke(commands, ["test", added.channel_id], standalone_mode=False).return_value == 1
    finally:
        done.set()
        thread.join()
    assert receiver.calls[0].content["title"] == sentences.TEST_FROM_YOUR_OCC_HUB


def unauthorized(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(401)
    handler.end_headers()


def test_a_kind_that_this_version_does_not_know_fails_for_good(hub: HubApp) -> None:
    unknown = Channel("c", "pigeon", "n", {}, (), None, None, "")
    channel(hub, "http://127.0.0.1:1")
    end(hub, run(hub, "e1"))
    sent = notify(hub.config, hub.database, 1.0, claimed(hub), unknown)
    assert sent == Sent(None, f"{sentences.HAS_NO_CHANNELS_OF_THE_KIND} pigeon", final=True)
