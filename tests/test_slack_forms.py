"""Slack: the form that starts a run, and where its thread begins."""

from __future__ import annotations

import json
from typing import Any

import pytest

from occ_app.slack import dialogs, outbox, pacing, threads
from occ_worker.slack import sending
from tests.slack_office import Office, buttons, texts, view_of


def form(office: Office, user: str = "UADA", channel: str = "C1") -> dict[str, Any]:
    """The form that `/occ` opens."""
    office.commands("", user=user, channel=channel)
    return view_of(office.slack.dialogs[-1])


def names(view: dict[str, Any], block_id: str) -> list[str]:
    """The options of a select."""
    element = next(block["element"] for block in view["blocks"] if block["block_id"] == block_id)
    return [option["text"]["text"] for option in element["options"]]


FILLED = {dialogs.PROMPT: "fix <it>\nnow", dialogs.WHERE: "work"}


def test_the_form_offers_what_its_owner_may_use_and_its_run_begins_a_thread(office: Office) -> None:
    office.hub.workspace("of-nobody")
    office.hub.register(office.hub.key("machines", "agent"), "box")
    view = form(office)
    assert office.slack.called("views.open")[0].values["trigger_id"] == "t1"
    assert (names(view, dialogs.WHERE), names(view, dialogs.MACHINE)) == (["work"], ["box"])
    assert len(names(view, dialogs.LEVEL)) == 4
    office.submits(view, {**FILLED, dialogs.MACHINE: "box", dialogs.MODEL: "opus"})
    (run,) = office.runs()
    assert (run.prompt, run.workspace_id, run.requested_model) == ("fix <it>\nnow", "work", "opus")
    assert (run.permissions, run.owner_id) == ("edit", office.owners["UADA"])
    assert (run.permissions_named, run.approval_seconds) == (False, 7200)  # of the setting for Slack
    assert run.wanted_agent == office.hub.call("GET", "/agents").json["agents"][0]["agentId"]  # type: ignore[index]
    opening, message = office.slack.shown("C1")
    assert "thread_ts" not in opening
    assert "&lt;it&gt;" in texts(opening)
    assert "<@UADA>" in texts(opening)
    assert message["thread_ts"] == opening["ts"]
    office.run()
    assert "Done" in texts(office.slack.shown()[1])
    office.says("and more", thread_ts=opening["ts"])
    first, second = office.runs()
    assert second.conversation == first.conversation


def test_a_form_that_is_sent_twice_or_handled_again_starts_one_run(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = form(office)
    begin = threads.open_thread
    broken = iter([OSError("as if it were killed")])

    def once(*values: Any) -> bool:
        for error in broken:
            raise error
        return begin(*values)

    monkeypatch.setattr(threads, "open_thread", once)
    count = office.count
    office.submits(view, FILLED)
    office.count = count
    office.submits(view, FILLED)  # the same payload
    with office.hub.database.write() as connection:  # as it is after a kill: not handled, its content there
        content = json.dumps({"type": "view_submission", "user": {"id": "UADA", "team_id": "T1"}} | sent(view, count))
        connection.execute(
            "UPDATE slack_inbox SET handled_at = NULL, content = ? WHERE kind = 'interactive'", (content,)
        )
        connection.execute("UPDATE workspaces SET workspace_id = 'renamed'")  # what the run needed may be gone by then
    office.process.step()
    assert len(office.runs()) == 1
    assert len(office.slack.shown()) == 2


def sent(view: dict[str, Any], count: int) -> dict[str, Any]:
    metadata = view["private_metadata"]
    return {"view": {"id": f"V{count + 1}", "hash": "h", "callback_id": dialogs.FORM, "private_metadata": metadata}}


def test_a_form_of_somebody_else_or_of_a_viewer_starts_nothing(office: Office) -> None:
    view = form(office)
    office.link("bob", "UBOB")
    office.submits(view, FILLED, user="UBOB")
    office.submits(view, FILLED, user="UNEW")
    office.link("eve", "UEVE", role="viewer")
    office.submits(view, FILLED, user="UEVE")
    assert office.runs() == []
    shown = len(office.slack.dialogs)
    office.commands("", user="UEVE")
    office.commands("", user="UBOB")  # who has no workspace
    office.commands("", user="UNEW")
    assert len(office.slack.dialogs) == shown


def test_a_workspace_of_another_owner_is_refused_also_with_its_number(office: Office) -> None:
    office.link("bob", "UBOB")
    view = form(office)
    view["private_metadata"] = json.dumps({"channel": "C1", "user": "UBOB"})
    office.submits(view, FILLED, user="UBOB")
    assert office.runs() == []
    assert "removed" in office.slack.ephemeral[-1]["text"]


@pytest.mark.parametrize(
    "wrong", [{dialogs.MODEL: "no such model"}, {dialogs.PROMPT: ""}, {dialogs.LEVEL: "full", dialogs.MACHINE: "box"}]
)
def test_a_form_that_cannot_be_followed_says_why(office: Office, wrong: dict[str, str]) -> None:
    office.hub.register(office.hub.key("machines", "agent"), "box")
    view = form(office)
    levels = {"full": names(view, dialogs.LEVEL)[-1]}
    office.submits(view, {**FILLED, **{key: levels.get(value, value) for key, value in wrong.items()}})
    assert office.runs() == []
    assert len(office.slack.ephemeral) == 1


def test_a_dialog_that_comes_too_late_is_said(office: Office) -> None:
    office.slack.faults["views.open"] = ["expired_trigger_id"]
    office.commands("")
    assert "try again" in office.slack.ephemeral[-1]["text"]


def test_where_the_app_cannot_post_a_form_s_run_goes_to_direct_messages(office: Office) -> None:
    office.slack.faults["chat.postEphemeral"] = ["channel_not_found"]
    office.commands("help", channel="C9")
    assert "Mention me" in texts(office.slack.shown("DUADA")[0])
    office.slack.faults["chat.postMessage"] = ["not_in_channel"]
    office.submits(form(office, channel="C9"), FILLED)
    execution = office.begin()
    office.ask(execution)
    _, opening, message, asked = office.slack.shown("DUADA")
    assert (message["thread_ts"], asked["thread_ts"]) == (opening["ts"], opening["ts"])
    assert "Approve" in buttons(asked)  # nobody else sees it there
    assert office.slack.shown("C9") == []
    office.says("go on", channel="DUADA", channel_type="im", thread_ts=opening["ts"])
    first, second = office.runs()
    assert second.conversation == first.conversation


def test_an_opening_whose_answer_is_lost_is_found_again(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "_PAUSES", (0.0,))
    office.slack.swallow = {"chat.postMessage"}
    office.submits(form(office), FILLED)
    for _ in range(3):
        office.process.step()
    opening, message = office.slack.shown()
    assert message["thread_ts"] == opening["ts"]


def test_a_thread_that_cannot_begin_is_given_up(office: Office) -> None:
    office.slack.faults["chat.postMessage"] = ["is_archived"]
    office.submits(form(office), FILLED)
    office.run()
    assert office.slack.shown() == []
    assert pacing.due(office.hub.database, pacing.Pace()) is None
    outbox.forget(office.hub.database, "9999")
    with office.hub.database.read() as connection:
        assert connection.execute("SELECT count(*) FROM slack_messages").fetchone()[0] == 0
