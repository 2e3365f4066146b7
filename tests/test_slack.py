"""Slack: who may do what, one message per run, nothing lost and nothing twice, and every refusal of Slack's."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from occ_app.cli import slack as module
from occ_app.cli.notify import notify as notify_commands
from occ_app.cli.slack import slack as commands
from occ_app.config.config import HubConfig
from occ_app.errors import ConfigError
from occ_app.executions import answers, approvals, events, lifecycle
from occ_app.home import daemon
from occ_app.hub import channels, deliveries, keys
from occ_app.hub.approvals import HubApprovals
from occ_app.slack import blocks, dialogs, inbox, outbox, people, tokens
from occ_app.slack.tokens import Tokens
from occ_app.supervisor.processes import Part
from occ_app.system.process_identity import own_identity
from occ_worker.notify.sending import Sent, notify
from occ_worker.slack import composing, sending
from occ_worker.slack.process import SlackProcess
from tests import sentences, slack_samples
from tests.conftest import wait_until
from tests.fake_slack import FakeSlack
from tests.hub_app import hub_app
from tests.real_hub import hub_in
from tests.slack_office import Office, buttons, texts, view_of

FROM_PAGE = {"Origin": "http://localhost"}


# ---- One message per run


def test_a_mention_runs_once_and_its_one_message_ends_with_the_answer(office: Office) -> None:
    ts = office.says("<@UBOT> fix the tests &amp; <https://a.example|a.example>")
    office.says(
        "<@UBOT> fix the tests &amp; <https://a.example|a.example>", ts=ts, type="app_mention", channel_type=None
    )
    (run,) = office.runs()
    assert (run.prompt, run.workspace_id, run.owner_id) == ("fix the tests & a.example", "work", office.owners["UADA"])
    (waiting,) = office.slack.shown()
    assert (waiting["thread_ts"], buttons(waiting)) == (ts, ["Cancel", "Open"])
    assert waiting["metadata"]["event_payload"]["id"].startswith("message-")
    execution = office.begin()
    chunk = json.dumps({"chunk": "I look. ", "timestamp": 1})
    events.append(office.hub.database, execution.number, 2, [("output", chunk)])
    office.process.step()
    assert "I look." in texts(office.slack.shown()[0])
    office.finish(execution, "**Fixed.**")
    office.process.step()
    (over,) = office.slack.shown()
    assert over["ts"] == waiting["ts"]
    assert over["blocks"][-2] == {"type": "markdown", "text": "I look. **Fixed.**"}
    assert "Done" in texts(over)
    assert "$0.12" in texts(over)
    assert buttons(over) == ["Open"]
    calls = len(office.slack.calls)
    office.process.step()
    assert len(office.slack.calls) == calls  # a final message is left alone


def test_a_payload_that_comes_again_does_nothing_again(office: Office) -> None:
    payload = {
        "team_id": "T1",
        "event_id": "Ev-same",
        "event": {"type": "message", "user": "UADA", "text": "<@UBOT> hi", "ts": "1.1", "channel": "C1"},
    }
    for _ in range(3):
        office.receive("events_api", payload)
    assert len(office.runs()) == 1
    assert len(office.slack.shown()) == 1


def test_a_long_answer_goes_on_in_further_messages(office: Office) -> None:
    office.says("<@UBOT> write")
    text = "\n".join(f"line {number} " + "x" * 50 for number in range(600))
    office.run(text)
    shown = office.slack.shown()
    assert len(shown) == 4
    parts = [block["text"] for message in shown for block in message["blocks"] if block["type"] == "markdown"]
    assert "\n".join(parts) == text
    assert all(len(part) <= 11_000 for part in parts)


def test_a_code_block_that_is_cut_is_closed_and_opened_again() -> None:
    text = "```python\n" + "a = 1\n" * 3000 + "```\nend"
    parts = list(blocks.split(text))
    assert len(parts) == 2
    assert all(part.count("```") % 2 == 0 for part in parts)
    assert parts[1].startswith("```python\n")
    assert all(len(part) <= blocks.LONGEST_PART for part in blocks.split("y" * 50_000))
    assert "".join(blocks.split("y" * 50_000)) == "y" * 50_000


def test_an_input_in_slack_hides_nothing_and_is_allowed_only_whole() -> None:
    def of(command: str) -> tuple[list[str], list[str]]:
        asked = slack_samples.asked("tool", "Bash", {"command": command})
        made = blocks.approval(asked, private=True, url=None).blocks
        buttons = [each["action_id"] for block in made if block["type"] == "actions" for each in block["elements"]]
        return [block["text"]["text"] for block in made if block["type"] == "section"], buttons

    texts, buttons = of("rm -rf ~ #\recho hi\x08\u202e\u200b")
    assert r"rm -rf ~ #\recho hi\b\u202e\u200b" in texts[1]
    assert buttons[0] == blocks.ALLOW
    assert blocks.ALWAYS in of("npm test")[1]
    texts, buttons = of("true;" + " " * 3000 + "rm -rf ~")
    assert not any("true" in text for text in texts)
    assert buttons == [blocks.DENY, blocks.REASON]
    texts, buttons = of("x" * 600)
    assert not any(each.startswith("Always") for each in texts)
    assert blocks.ALWAYS not in buttons


def test_the_documented_messages_are_those_that_are_sent(office: Office) -> None:
    office.says("<@UBOT> one")
    found = slack_samples.samples(office.begin())
    assert {name: slack_samples.shown(name) for name in found} == json.loads(json.dumps(found))


# ---- The thread is the conversation


def test_a_reply_continues_without_a_mention_and_waits_its_turn(office: Office) -> None:
    ts = office.says("<@UBOT> one")
    office.says("two", thread_ts=ts)
    first, second = office.runs()
    assert second.conversation == first.conversation
    assert [one["thread_ts"] for one in office.slack.shown()] == [ts, ts]
    assert "Waiting" in texts(office.slack.shown()[1])


def test_talk_in_other_threads_and_without_a_mention_starts_nothing(office: Office) -> None:
    office.says("hello everybody")
    office.says("I agree", thread_ts=office.slack.new_ts())
    office.says("<@UBOT> edited", subtype="message_changed")
    office.says("<@UBOT> I am a bot", bot_id="B1")
    office.says("<@UBOT> myself", user="UBOT")
    assert office.runs() == []
    assert office.slack.calls == []


def test_a_direct_message_needs_no_mention(office: Office) -> None:
    office.says("fix it", channel="D1", channel_type="im")
    assert [one.prompt for one in office.runs()] == ["fix it"]


@pytest.mark.parametrize("way", ["stop", "Cancel"])
def test_a_run_is_cancelled_by_a_word_or_a_click(office: Office, way: str) -> None:
    ts = office.says("<@UBOT> one")
    if way == "Cancel":
        office.clicks(office.slack.shown()[0], "Cancel")
    else:
        office.says("Stop", thread_ts=ts)
    assert [one.state for one in office.runs()] == ["cancelled"]
    assert "Cancelled" in texts(office.slack.shown()[0])


# ---- Who


def test_a_stranger_is_offered_a_link_in_private_and_nothing_runs(office: Office) -> None:
    office.says("<@UBOT> hi", user="UNEW")
    assert office.runs() == []
    assert office.slack.shown() == []
    (offered,) = office.slack.ephemeral
    assert offered["user"] == "UNEW"
    assert "https://hub.example.com/slack/link#" in offered["text"]


def code_of(office: Office, user: str = "UNEW") -> str:
    office.commands("login", user=user)
    return str(office.slack.ephemeral[-1]["text"]).partition("#")[2].partition("|")[0]


def test_the_page_names_both_and_links_after_a_confirmation_once(office: Office) -> None:
    code = code_of(office)
    secret = office.hub.key("bob", "client")
    browser = office.hub.browser()
    browser.post("/login", data={"key": secret}, headers=FROM_PAGE)
    page = browser.get("/slack/link").get_data(as_text=True)
    csrf = page.partition('name="csrf" value="')[2].partition('"')[0]
    form = {"csrf": csrf, "code": code}
    asked = browser.post("/slack/link", data=form, headers=FROM_PAGE).get_data(as_text=True)
    assert all(name in asked for name in ("UNEW", "Acme", "bob", "ada"))
    assert people.find(office.hub.database, "T1", "UNEW") is None  # looking consumes nothing
    assert browser.post("/slack/link/confirm", data={**form, "csrf": "x"}, headers=FROM_PAGE).status_code == 403
    assert browser.post("/slack/link/confirm", data=form, headers=FROM_PAGE).status_code == 200
    assert browser.post("/slack/link/confirm", data=form, headers=FROM_PAGE).status_code == 401
    linked = people.find(office.hub.database, "T1", "UNEW")
    assert linked is not None
    assert linked.owner == "bob"
    assert people.find(office.hub.database, "T2", "UNEW") is None


def test_a_code_ends_with_the_next_one_and_with_time(office: Office) -> None:
    first, second = code_of(office), code_of(office)
    assert people.asked_with(office.hub.database, first) is None
    assert people.asked_with(office.hub.database, second) is not None
    with office.hub.database.write() as connection:
        connection.execute("UPDATE slack_codes SET expires_at = '2026-01-01T00:00:00.000Z'")
    assert people.link(office.hub.database, second, "key") is None


def test_a_link_ends_with_its_key(office: Office) -> None:
    keys.revoke(office.hub.database, "ada")
    office.says("<@UBOT> hi")
    assert office.runs() == []
    assert sentences.I_DO_NOT_KNOW_YOU in office.slack.ephemeral[0]["text"]


def test_a_viewer_and_other_organizations_start_nothing(office: Office) -> None:
    office.link("eve", "UEVE", role="viewer")
    office.says("<@UBOT> hi", user="UEVE")
    office.says("<@UBOT> hi", user_team="T2")
    office.count += 1
    event = {"type": "app_mention", "user": "UADA", "text": "<@UBOT> x", "ts": "5.5", "channel": "C1"}
    office.receive("events_api", {"team_id": "T1", "event_id": "shared", "is_ext_shared_channel": True, "event": event})
    assert office.runs() == []
    said = [one["text"] for one in office.slack.ephemeral]
    assert ["viewer" in said[0], "connected to" in said[1], "shared" in said[2]] == [True, True, True]


def test_only_the_owner_and_admins_reply_stop_and_cancel(office: Office) -> None:
    office.link("bob", "UBOB")
    office.link("root", "UROOT", admin=True)
    ts = office.says("<@UBOT> one")
    for text in ("two", "stop", "<@UBOT> three"):
        office.says(text, user="UBOB", thread_ts=ts)
    office.clicks(office.slack.shown()[0], "Cancel", user="UBOB")
    assert [one.state for one in office.runs()] == ["queued"]
    assert len(office.slack.ephemeral) == 2  # to the mention and to the click; talk in a thread gets no answer
    office.says("stop", user="UROOT", thread_ts=ts)
    assert [one.state for one in office.runs()] == ["cancelled"]


# ---- Where


def test_a_channel_s_runs_go_where_each_owner_sends_them(office: Office) -> None:
    office.hub.workspace("other")
    with office.hub.database.write() as connection:
        owner = {"owner": office.owners["UADA"]}
        connection.execute("UPDATE workspaces SET owner_id = :owner WHERE workspace_id = 'other'", owner)
    office.says("<@UBOT> one")
    assert "/occ use" in office.slack.ephemeral[-1]["text"]  # there are two now
    office.commands("use other")
    office.says("<@UBOT> two")
    assert [one.workspace_id for one in office.runs()] == ["other"]
    office.link("bob", "UBOB")
    office.commands("use work", user="UBOB")
    assert "work" in office.slack.ephemeral[-1]["text"]
    assert people.place(office.hub.database, "T1", "C1", office.owners["UBOB"]) is None


# ---- Approvals


def test_an_approval_in_a_direct_message_shows_its_input_and_is_answered_there(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[Any, ...]] = []
    monkeypatch.setattr(HubApprovals, "answer", lambda _, *values: given.append(values))
    office.says("fix it", channel="D1", channel_type="im")
    execution = office.begin()
    approval = office.ask(execution)
    asked = office.slack.shown()[-1]
    assert "rm s3cret" in texts(asked)
    assert buttons(asked) == ["Approve", "Always", "Deny", sentences.DENY_WITH_A_REASON, "Open"]
    office.clicks(asked, "Approve")
    ((approval_id, answer, person),) = given
    assert (approval_id, answer.decision, answer.input_hash) == (approval.approval_id, "allow", "0" * 64)
    assert (person.actor, person.surface, person.visible_to) == ("ada", "slack", office.owners["UADA"])
    decide = answers.Person("ada", None, "page")
    approvals.decide(office.hub.database, approval.approval_id, answers.Answer("deny", "0" * 64), decide)
    office.process.step()
    closed = office.slack.shown()[-1]
    assert (closed["ts"], buttons(closed)) == (asked["ts"], [])
    assert "denied by ada" in texts(closed)


def test_in_a_public_channel_an_input_is_neither_shown_nor_allowed(office: Office) -> None:
    office.says("<@UBOT> fix it")
    office.ask(office.begin())
    asked = office.slack.shown()[-1]
    assert "s3cret" not in json.dumps(asked)
    assert buttons(asked) == ["Deny", sentences.DENY_WITH_A_REASON, "Open"]


def test_a_click_of_another_owner_decides_nothing(office: Office) -> None:
    office.link("bob", "UBOB")
    office.says("<@UBOT> fix it")
    approval = office.ask(office.begin())
    office.clicks(office.slack.shown()[-1], "Deny", user="UBOB")
    found = approvals.get(office.hub.database, approval.approval_id)
    assert (found.state, found.pending) == ("open", None)


def test_a_question_has_a_button_for_each_option(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[Any, ...]] = []
    monkeypatch.setattr(HubApprovals, "answer", lambda _, *values: given.append(values))
    office.says("fix it", channel="D1", channel_type="im")
    question = {"question": "Which?", "options": [{"label": "Red"}, {"label": "Blue"}], "multiSelect": False}
    office.ask(office.begin(), "question", {"questions": [question]})
    office.clicks(office.slack.shown()[-1], "Blue")
    assert given[0][1].answers == {"Which?": "Blue"}


def test_a_denial_takes_a_reason_in_a_dialog(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[Any, ...]] = []
    monkeypatch.setattr(HubApprovals, "answer", lambda _, *values: given.append(values))
    office.says("<@UBOT> fix it")
    approval = office.ask(office.begin())
    office.clicks(office.slack.shown()[-1], sentences.DENY_WITH_A_REASON)
    (opened,) = office.slack.dialogs
    assert opened["trigger_id"].startswith("trigger-")
    view = view_of(opened)
    office.submits(view, {dialogs.REASON: "Use the test database."})
    office.submits(view, {dialogs.REASON: "Use it."}, user="UNEW")  # who is nobody
    ((approval_id, answer, person),) = given
    assert (approval_id, answer.decision, answer.message) == (approval.approval_id, "deny", "Use the test database.")
    assert person.visible_to == office.owners["UADA"]


def test_always_is_offered_with_its_rule_and_remembered_for_the_workspace(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[Any, ...]] = []
    monkeypatch.setattr(HubApprovals, "answer", lambda _, *values: given.append(values))
    office.says("fix it", channel="D1", channel_type="im")
    approval = office.ask(office.begin(), asked={"command": "npm test"})
    asked = office.slack.shown()[-1]
    assert approval.always_allows[0] in texts(asked)
    office.clicks(asked, "Always")
    assert given[0][1].remember == "workspace"


# ---- Notifications


def test_a_notification_is_one_direct_message(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCC_HUB_HOME", str(office.hub.config.home))
    assert CliRunner().invoke(notify_commands, ["add", "slack", "UADA", "--owner", "ada"]).exit_code == 0
    channel = channels.listing(office.hub.database, office.owners["UADA"])[0]
    delivery = deliveries.add_test(office.hub.database, channel.channel_id)
    number = deliveries.log(office.hub.database, 1, of_channels=True)[0].number
    claimed = deliveries.claim(office.hub.database, number, "9999", "9999", "99999")
    assert claimed is not None
    for _ in range(2):  # the second, as after a kill before the first was noted
        assert notify(office.hub.config, office.hub.database, 1.0, claimed, channel) == Sent(None, None)
        office.process.step()
    (sent,) = office.slack.shown("UADA")
    assert sent["text"].startswith(f"*{sentences.TEST_FROM_YOUR_OCC_HUB}*")
    assert "thread_ts" not in sent
    tokens.remove(office.hub.config)
    failed = notify(office.hub.config, office.hub.database, 1.0, claimed, channel)
    assert (failed.final, delivery) == (True, claimed.delivery_id)


# ---- Diffs


def test_a_diff_is_posted_as_a_file_on_a_click_alone(office: Office) -> None:
    ts = office.says("<@UBOT> fix it")
    execution = office.begin()
    with office.hub.database.write() as connection:
        connection.execute(
            "UPDATE executions SET changes = :changes WHERE number = :number",
            {"changes": json.dumps({"files": 1, "additions": 2, "deletions": 0}), "number": execution.number},
        )
        connection.execute(
            "INSERT INTO fetched_changes (execution, changes, patch) VALUES (:number, x'', :patch)",
            {"number": execution.number, "patch": zlib.compress(b"diff --git a b")},
        )
    office.finish(execution)
    office.process.step()
    over = office.slack.shown()[0]
    assert "1 file changed (+2 \u22120)" in texts(over)
    assert office.slack.files == []
    office.link("bob", "UBOB")
    office.clicks(over, "Diff", user="UBOB")
    assert office.slack.files == []
    office.clicks(over, "Diff")
    (file,) = office.slack.files
    assert (file["content"], file["channel"], file["thread_ts"]) == (b"diff --git a b", "C1", ts)


# ---- What Slack refuses


def test_a_rate_limit_is_waited_out_by_the_one_sender(office: Office) -> None:
    office.slack.faults["chat.postMessage"] = [3000]
    office.says("<@UBOT> one")
    assert office.slack.shown() == []
    assert "rate limit" in str(office.hub.call("GET", "/health").json["problems"])
    calls = len(office.slack.calls)
    assert not office.process.sender.send_next()  # nothing is called meanwhile
    assert len(office.slack.calls) == calls
    assert 2000 < office.process.sender.seconds_to_wait() <= 3000
    office.process.sender._free_at = 0.0  # that much later
    office.process.step()
    assert len(office.slack.shown()) == 1
    assert "Slack" not in str(office.hub.call("GET", "/health").json["problems"])


@pytest.mark.parametrize("refusal", [3000, "token_revoked"])
def test_an_answer_to_one_person_that_slack_refuses_for_now_is_sent_later(office: Office, refusal: str | float) -> None:
    office.slack.faults["chat.postEphemeral"] = [refusal]
    office.says("<@UBOT> hi", user="UNEW")
    assert office.slack.ephemeral == []
    office.process.sender._free_at = 0.0  # that much later
    office.process.step()
    assert [one["user"] for one in office.slack.ephemeral] == ["UNEW"]


@pytest.mark.parametrize("error", ["msg_too_long", "msg_blocks_too_long"])
def test_a_message_that_is_too_long_for_slack_is_shortened(office: Office, error: str) -> None:
    office.says("<@UBOT> one")
    office.slack.faults["chat.update"] = [error]
    office.run()
    (shortened,) = office.slack.shown()
    assert "too long" in texts(shortened)
    assert "Done" in texts(shortened)
    assert buttons(shortened) == ["Open"]
    assert "All done" not in texts(shortened)


def test_a_deleted_message_is_posted_once_more(office: Office) -> None:
    office.says("<@UBOT> one")
    office.slack.messages.clear()
    office.run()
    assert ["Done" in texts(one) for one in office.slack.shown()] == [True]


@pytest.mark.parametrize("error", ["channel_not_found", "is_archived", "not_in_channel"])
def test_a_channel_that_is_gone_is_given_up_and_shown(office: Office, error: str) -> None:
    office.slack.faults["chat.postMessage"] = [error]
    office.says("<@UBOT> one")
    office.process.step()
    assert len(office.slack.called("chat.postMessage")) == 1
    assert outbox.problems(office.hub.database) == (1, f"Slack answered {error}")
    office.says("<@UBOT> two", channel="C2")  # other channels go on
    assert len(office.slack.shown("C2")) == 1


def test_a_revoked_token_stops_all_calls_and_is_a_problem_of_the_hub(office: Office) -> None:
    office.slack.faults["chat.postMessage"] = ["token_revoked"]
    office.says("<@UBOT> one")
    office.says("<@UBOT> two")
    assert len(office.slack.called("chat.postMessage")) == 1
    assert any("token_revoked" in one for one in office.hub.call("GET", "/health").json["problems"])
    assert len(office.runs()) == 2  # what was asked for is done all the same


def test_an_answer_that_is_lost_leads_to_no_second_message(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "_PAUSES", (0.01,))
    office.slack.swallow = {"chat.postMessage"}
    office.says("<@UBOT> one")
    database = office.hub.database
    wait_until(lambda: office.process.step() and outbox.unfinished(database, outbox.RUN)[0].ts, "it is found")
    assert len(office.slack.called("chat.postMessage")) == 1
    office.run()
    assert ["Done" in texts(one) for one in office.slack.shown()] == [True]


def test_many_runs_in_a_channel_stay_below_the_rates(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(composing, "_SECONDS_A_RUN", 120.0)  # a hundred times the real one, for a slow machine
    for number in range(20):
        office.says(f"<@UBOT> {number}", channel=f"C{number}")
    for _ in range(5):
        office.process.step()
    assert len(office.slack.called("chat.postMessage")) == 20
    assert office.slack.called("chat.update") == []  # the next update of each is due later


# ---- Socket Mode


@dataclass
class Running:
    """The process with its threads."""

    process: SlackProcess
    thread: threading.Thread

    def end(self) -> None:
        self.process.end()
        self.thread.join(60)


@pytest.fixture
def running(office: Office) -> Iterator[Running]:
    office.process.receiver.ping_seconds = 0.2
    office.process.receiver.pauses = (0.05,)
    thread = threading.Thread(target=office.process.run)
    thread.start()
    running = Running(office.process, thread)
    try:
        wait_until(lambda: office.slack.sockets, "it is connected")
        yield running
    finally:
        running.end()


def mention(office: Office, name: str, **more: Any) -> str:
    event = {"type": "app_mention", "user": "UADA", "text": f"<@UBOT> {name}", "ts": f"7.{name}", "channel": "C1"}
    payload = {"team_id": "T1", "event_id": f"Ev-{name}", "event": event}
    return office.slack.send("events_api", payload, **more)


def test_a_payload_is_stored_before_it_is_acknowledged_and_shown_at_once(office: Office, running: Running) -> None:
    envelope = mention(office, "1")
    wait_until(lambda: envelope in office.slack.acks, "the acknowledgement")
    wait_until(office.slack.shown, "the message")
    assert len(office.runs()) == 1


def test_a_payload_that_cannot_be_stored_is_not_acknowledged(
    office: Office, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = inbox.store
    refusing = threading.Event()

    def store(*values: Any) -> bool:
        if not refusing.is_set():
            refusing.set()
            raise OSError("the disk is full")
        return stored(*values)

    monkeypatch.setattr(inbox, "store", store)
    lost = mention(office, "1")
    wait_until(refusing.is_set, "the refusal")
    again = mention(office, "1", retry_attempt=1)
    wait_until(lambda: again in office.slack.acks, "the acknowledgement of the second")
    assert lost not in office.slack.acks
    wait_until(office.runs, "the run")
    assert [one.prompt for one in office.runs()] == ["1"]


@pytest.mark.parametrize("fault", ["disconnect", "silence", "break", "no hello"])
def test_the_connection_is_replaced(office: Office, running: Running, fault: str) -> None:
    office.process.receiver.silent_seconds = 1.0  # in which a busy machine may replace a connection without a fault
    before = len(office.slack.sockets)
    if fault == "disconnect":
        with contextlib.suppress(OSError):
            office.slack.disconnect()  # and the peer forgets to close
    elif fault == "silence":
        office.slack.pongs = False
    elif fault == "no hello":
        office.slack.says_hello = office.slack.pongs = False
    else:
        with contextlib.suppress(OSError):
            office.slack.sockets[-1].shutdown(socket.SHUT_RDWR)
    wait_until(lambda: len(office.slack.sockets) > before, "a new connection")
    office.slack.pongs = office.slack.says_hello = True

    def arrived() -> bool:
        with contextlib.suppress(OSError):  # that connection is being replaced
            mention(office, "1")
        return bool(office.runs())

    wait_until(arrived, "a mention arrives again")


def test_a_slack_that_gives_no_connection_is_a_problem_until_it_does(office: Office) -> None:
    office.slack.faults["apps.connections.open"] = ["invalid_auth"] * 3
    office.process.receiver.pauses = (0.05,)
    thread = threading.Thread(target=office.process.run)
    thread.start()
    try:
        health = lambda: str(office.hub.call("GET", "/health").json["problems"])  # noqa: E731 - it is looked at twice
        wait_until(lambda: office.slack.sockets, "the connection")
        wait_until(lambda: "Slack" not in health(), "the problem is over")
        assert len(office.slack.called("apps.connections.open")) == 4
    finally:
        office.process.end()
        thread.join(60)


def test_the_process_ends_when_slack_is_disconnected(office: Office, running: Running) -> None:
    tokens.remove(office.hub.config)
    office.process.end()
    running.thread.join(60)
    assert not running.thread.is_alive()


# ---- Killed


def test_a_killed_process_loses_nothing_and_says_nothing_twice(tmp_path: Path, slack: FakeSlack) -> None:
    kills_and_checks(tmp_path, slack, kills=3, conversations=8, messages=1)


@pytest.mark.skipif(not os.environ.get("TEST_ALL"), reason="many conversations are killed by `make test-all`")
def test_twenty_conversations_at_once_lose_nothing_when_the_process_is_killed(tmp_path: Path, slack: FakeSlack) -> None:
    kills_and_checks(tmp_path, slack, kills=6, conversations=20, messages=2)


def kills_and_checks(tmp_path: Path, slack: FakeSlack, kills: int, conversations: int, messages: int) -> None:
    """Kill the process at random instants while threads send messages, each in a conversation of its channel.

    Each message must run once, after those before it, and have one message in its thread that ends.
    """
    with hub_app(tmp_path) as hub:
        connected = Tokens("xapp-1", "xoxb-1", "T1", "Acme", "UBOT", slack.api)
        tokens.save(hub.config, connected)
        office = Office(hub, slack, SlackProcess(hub.config, connected))
        owner = office.link("ada", "UADA")
        for number in range(conversations):
            hub.workspace(f"w{number}")
            people.use(hub.database, "T1", f"C{number}", owner, f"w{number}")
        with hub.database.write() as connection:
            connection.execute("UPDATE workspaces SET owner_id = :owner", {"owner": owner})
        environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "OCC_HUB_HOME": str(hub.config.home)}
        command = [sys.executable, "-m", "occ_worker.slack.process"]
        done, killed = threading.Event(), [0]

        def work() -> None:
            while not done.wait(0.05):
                execution = lifecycle.claim(hub.database, own_identity())
                if execution is not None:
                    office.finish(execution)

        def converse(number: int) -> None:
            """Send the messages of a conversation, each until it is acknowledged, as Slack does; the first mentions."""
            for turn in range(messages):
                event = {"type": "message", "user": "UADA", "text": f"{turn}", "channel": f"C{number}"}
                event |= {"ts": f"8.{number}{turn:03}", "thread_ts": f"8.{number}000", "channel_type": "channel"}
                if turn == 0:
                    event |= {"text": "<@UBOT> 0", "type": "app_mention"}
                    del event["thread_ts"]
                payload = {"team_id": "T1", "event_id": f"Ev{number}-{turn}", "event": event}
                sent = set[str]()
                while not done.wait(0.1) and not sent & set(slack.acks):
                    if slack.sockets and killed[0] * messages >= turn * kills:  # so that each kill has its traffic
                        with contextlib.suppress(OSError):
                            sent.add(slack.send("events_api", payload))

        threads = [threading.Thread(target=work)]
        threads += [threading.Thread(target=converse, args=(number,)) for number in range(conversations)]
        for thread in threads:
            thread.start()
        sockets = len(slack.sockets)
        with (tmp_path / "slack.log").open("ab") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            try:
                chance = random.Random(7)  # noqa: S311 - no secret
                for _ in range(kills):
                    wait_until(lambda before=sockets: len(slack.sockets) > before, "it is connected", 60)
                    time.sleep(chance.uniform(0.0, 0.6))  # the instant is what is random here
                    process.send_signal(signal.SIGKILL)
                    process.wait()
                    killed[0] += 1
                    sockets = len(slack.sockets)
                    process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)

                def over() -> bool:
                    shown = slack.shown()
                    return len(shown) >= conversations * messages and all("Done" in texts(one) for one in shown)

                wait_until(over, "every message to end", 300)
            finally:
                done.set()
                for thread in threads:
                    thread.join()
                process.terminate()
                process.wait(60)
                office.process.db.close()
        expected = sorted(f"8.{number}000" for number in range(conversations) for _ in range(messages))
        assert sorted(one["thread_ts"] for one in slack.shown()) == expected
        runs = office.runs()
        assert {one.state for one in runs} == {"succeeded"}
        for number in range(conversations):
            prompts = [one.prompt for one in runs if one.workspace_id == f"w{number}"]
            assert prompts == [str(turn) for turn in range(messages)]
        assert "Traceback" not in (tmp_path / "slack.log").read_text()


# ---- The commands, the supervisor, the notes


def test_connect_tests_the_tokens_and_keeps_them_closed(
    office: Office, slack: FakeSlack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OCC_HUB_HOME", str(office.hub.config.home))
    invoke = CliRunner().invoke
    tokens.remove(office.hub.config)
    monkeypatch.setattr(module, "API", slack.api)
    given = ["--app-token", "xapp-s3cret", "--bot-token", "xoxb-s3cret"]
    slack.faults["auth.test"] = ["invalid_auth"]
    assert isinstance(invoke(commands, ["connect", *given]).exception, ConfigError)
    assert tokens.load(office.hub.config) is None
    assert invoke(commands, ["status"], standalone_mode=False).return_value == 3
    connected = invoke(commands, ["connect", *given])
    assert "Acme" in connected.output
    assert "s3cret" not in connected.output
    assert (office.hub.config.home / "slack.json").stat().st_mode & 0o777 == 0o600
    status = json.loads(invoke(commands, ["status", "--json"]).stdout)
    assert (status["connected"], status["team"], status["linkedUsers"]) == (True, "Acme", 1)
    assert "Acme" in invoke(commands, ["status"]).stdout
    assert invoke(commands, ["disconnect"]).exit_code == 0
    assert tokens.load(office.hub.config) is None


@pytest.mark.parametrize("swapped", [["--app-token", "xoxb-1", "--bot-token", "xapp-1"]])
def test_swapped_tokens_are_named(office: Office, swapped: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCC_HUB_HOME", str(office.hub.config.home))
    assert "swapped" in str(CliRunner().invoke(commands, ["connect", *swapped]).exception)


def test_the_manifest_has_the_scopes_that_the_hub_uses(office: Office) -> None:
    shown = CliRunner().invoke(commands, ["connect", "--show-manifest"]).stdout
    manifest = json.loads(shown[shown.index("{") :])
    assert manifest["settings"]["socket_mode_enabled"] is True
    assert "chat:write" in manifest["oauth_config"]["scopes"]["bot"]


def test_the_part_is_wanted_only_while_its_file_is_there(tmp_path: Path) -> None:
    part = Part("slack", "python -m x", {}, None, tmp_path / "slack.json")
    assert (part.optional, part.wanted()) == (True, False)
    (tmp_path / "slack.json").touch()
    assert part.wanted()
    assert Part("web", "python -m x", {}, None).wanted()


def test_damaged_tokens_are_a_problem_of_the_hub(office: Office) -> None:
    (office.hub.config.home / "slack.json").write_text("{")
    assert any("slack.json" in one for one in office.hub.call("GET", "/health").json["problems"])


def test_rows_of_slack_go_with_retention(office: Office) -> None:
    office.says("<@UBOT> one")
    office.run()
    inbox.forget(office.hub.database, "9999")
    outbox.forget(office.hub.database, "9999")
    with office.hub.database.read() as connection:
        for table in ("slack_inbox", "slack_messages"):
            assert connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] == 0  # noqa: S608 - literals


def test_the_supervisor_runs_the_process_while_slack_is_connected(tmp_path: Path, slack: FakeSlack) -> None:
    with hub_in(tmp_path) as hub:
        hub.start()
        home = Path(hub.environment["OCC_HUB_HOME"])
        config = HubConfig(home=home)
        running = daemon.find(config)
        assert running is not None
        wait_until(lambda: len(daemon.parts_alive(config)) == 3, "all parts are started")
        tokens.save(config, Tokens("xapp-1", "xoxb-1", "T1", "Acme", "UBOT", slack.api))
        os.kill(running.pid, signal.SIGCHLD)  # as the command does
        wait_until(lambda: slack.sockets, "the process is connected", 30)
        event = {"type": "app_mention", "user": "UNEW", "text": "<@UBOT> hi", "ts": "1.1", "channel": "C1"}
        slack.send("events_api", {"team_id": "T1", "event_id": "Ev1", "event": event})
        wait_until(lambda: slack.ephemeral, "the offer of a link")
        assert f"{running.url}/slack/link#" in slack.ephemeral[0]["text"]
        wait_until(lambda: len(daemon.parts_alive(config)) == 4, "its process is noted")
        assert json.loads(hub.command("slack", "status", "--json").stdout)["problem"] is None
        hub.command("slack", "disconnect")
        wait_until(lambda: len(daemon.parts_alive(config)) == 3, "the process ends", 30)
        assert hub.client.health()["status"] == "healthy"
