"""Slack: the buttons of a run, several questions, private channels, and the rates with many runs."""

from __future__ import annotations

import itertools
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from occ_app.executions import queries as executions
from occ_app.executions.records import Execution
from occ_app.hub.approvals import HubApprovals
from occ_app.hub.remote_files import RemoteFiles
from occ_app.slack import inbox, questions
from occ_worker.slack import sending
from occ_worker.slack.channels import Channels
from tests import sentences
from tests.fake_slack import FakeSlack
from tests.slack_office import Office, buttons, office_in, texts, view_of


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Updates follow one another at once."""
    monkeypatch.setattr(sending, "_UPDATE_SECONDS", 0.0)


# ---- At the end of a run


def changed(office: Office, execution: Execution, **more: Any) -> None:
    """Keep the changes of a run, as the hub fetches them from its machine."""
    sums = {"files": 2, "additions": 3, "deletions": 1, "truncated": False, "exact": True}
    entry = {"path": "a.py", "oldPath": None, "status": "modified", "additions": 3, "deletions": 1, "binary": False}
    modes = {"oldMode": "100644", "mode": "100644", "size": 10}
    entries = [entry | modes, entry | modes | {"path": "<b>.py", "oldPath": "b.py", "status": "renamed"}]
    kept = {**sums, "entries": entries, "base": "0" * 40, "result": "1" * 40}
    with office.hub.database.write() as connection:
        connection.execute(
            "UPDATE executions SET changes = :sums, changes_reason = NULL WHERE number = :number",
            {"sums": json.dumps(sums), "number": execution.number},
        )
        connection.execute(
            "INSERT INTO fetched_changes (execution, changes, patch) VALUES (:number, :changes, NULL)",
            {"number": execution.number, "changes": zlib.compress(json.dumps(kept | more).encode())},
        )


def ended(office: Office) -> tuple[Execution, dict[str, Any]]:
    """A run that changed files, and its message."""
    office.says("<@UBOT> fix it")
    execution = office.begin()
    changed(office, execution)
    office.finish(execution)
    office.process.step()
    return execution, office.slack.shown()[0]


def test_the_files_of_a_run_are_listed_on_a_click(office: Office) -> None:
    _, over = ended(office)
    assert buttons(over) == ["Diff", "Files", "Undo", "Open"]
    office.link("bob", "UBOB")
    office.clicks(over, "Files", user="UBOB")
    assert len(office.slack.shown()) == 1
    office.clicks(over, "Files")
    listed = office.slack.shown()[1]
    assert listed["thread_ts"] == over["thread_ts"]
    assert "a.py (modified, +3 \u22121)" in texts(listed)
    assert "b.py → <b>.py" in texts(listed)
    assert listed["blocks"][1]["text"]["type"] == "plain_text"


def test_a_run_is_undone_after_a_confirmation_by_its_owner_alone(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    undone: list[tuple[str, str, bool]] = []

    def restore(_: RemoteFiles, workspace: Any, execution_id: str, to: str, *, force: bool) -> dict[str, Any]:
        undone.append((execution_id, to, force))
        return {"files": 2, "workspace_id": workspace.workspace_id}

    monkeypatch.setattr(RemoteFiles, "restore", restore)
    execution, over = ended(office)
    button = next(one for one in over["blocks"][-1]["elements"] if one["text"]["text"] == "Undo")
    assert button["confirm"]["confirm"]["text"] == "Undo"
    office.link("bob", "UBOB")
    office.clicks(over, "Undo", user="UBOB")
    assert undone == []
    office.clicks(over, "Undo")
    assert undone == [(execution.execution_id, "start", False)]
    assert "2 files" in texts(office.slack.shown()[1])


def test_an_undo_is_not_tried_again_after_a_kill(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    undone = list[str]()

    def restore(_: RemoteFiles, __: Any, execution_id: str, *___: Any, **____: Any) -> dict[str, Any]:
        undone.append(execution_id)
        raise SystemExit  # as if it were killed

    monkeypatch.setattr(RemoteFiles, "restore", restore)
    execution, over = ended(office)
    with pytest.raises(SystemExit):
        office.clicks(over, "Undo")
    office.receive("events_api", {})  # which handles what is left
    assert undone == [execution.execution_id]
    assert len(office.slack.ephemeral) == 1


def test_an_undo_that_is_refused_says_why(office: Office) -> None:
    _, over = ended(office)
    office.clicks(over, "Undo")  # there is no machine
    assert "machine" in office.slack.ephemeral[-1]["text"]
    assert len(office.slack.shown()) == 1


def test_what_takes_long_waits_beside_the_other_payloads(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    started = list[Execution]()

    def restore(*_: Any, **__: Any) -> dict[str, Any]:
        event = {"type": "app_mention", "user": "UADA", "text": "<@UBOT> meanwhile", "ts": "5.5", "channel": "C1"}
        inbox.store(office.hub.database, "event", "events_api", {"team_id": "T1", "event": event})
        office.process.step()
        started.extend(office.runs())
        return {"files": 1}

    monkeypatch.setattr(RemoteFiles, "restore", restore)
    _, over = ended(office)
    office.clicks(over, "Undo")
    assert [one.prompt for one in started][1:] == ["meanwhile"]


def test_an_end_is_shown_before_its_changes_and_gets_them(office: Office) -> None:
    office.says("<@UBOT> fix it")
    execution = office.begin()
    with office.hub.database.write() as connection:
        connection.execute("UPDATE executions SET changes_reason = 'pending'")
    office.finish(execution)
    office.process.step()
    assert buttons(office.slack.shown()[0]) == ["Open"]
    assert "Done" in texts(office.slack.shown()[0])
    changed(office, execution)
    office.process.step()
    assert buttons(office.slack.shown()[0]) == ["Diff", "Files", "Undo", "Open"]


def test_a_follow_up_that_waits_can_be_dropped_and_no_run_that_has_started(office: Office) -> None:
    ts = office.says("<@UBOT> one")
    office.says("two", thread_ts=ts)
    office.says("three", thread_ts=ts)
    first, second, third = office.slack.shown()
    assert [buttons(one)[0] for one in (first, second, third)] == ["Cancel", "Drop", "Drop"]
    office.link("bob", "UBOB")
    office.clicks(second, "Drop", user="UBOB")
    assert [one.state for one in office.runs()] == ["queued"] * 3
    office.clicks(second, "Drop")
    assert [one.state for one in office.runs()] == ["queued", "cancelled", "queued"]
    office.run()
    office.begin()
    office.clicks(third, "Drop")  # a click on the former message
    assert executions.cancel_code(office.hub.database, office.runs()[2].number) is None
    assert "started" in office.slack.ephemeral[-1]["text"]


# ---- Questions

ASKED = {
    "questions": [
        {"question": "Which *one*?", "options": [{"label": "Red"}, {"label": "Blue"}], "multiSelect": False},
        {
            "question": "Which ones?",
            "options": [{"label": "x" * 100}, {"label": "B"}, {"label": "C"}],
            "multiSelect": True,
        },
        {"question": "Why?", "options": []},
    ]
}


def test_several_questions_are_answered_in_one_dialog(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[Any, ...]] = []
    monkeypatch.setattr(HubApprovals, "answer", lambda _, *values: given.append(values))
    office.says("fix it", channel="D1", channel_type="im")
    approval = office.ask(office.begin(), "question", ASKED)
    asked = office.slack.shown()[-1]
    assert buttons(asked) == ["Answer", "Deny", sentences.DENY_WITH_A_REASON, "Open"]
    assert all(one["question"] in texts(asked) for one in ASKED["questions"])
    office.clicks(asked, "Answer")
    view = view_of(office.slack.dialogs[-1])
    kinds = [block["element"]["type"] for block in view["blocks"]]
    text = "plain_text_input"
    assert kinds == ["static_select", text, "multi_static_select", text, text]
    office.submits(view, {"choice0": "Blue", "choice1": ["B", "C"]})
    assert given == []
    assert "Why?" in office.slack.ephemeral[-1]["text"]
    office.submits(view, {"choice0": "Blue", "choice1": ["B", "C"], "words1": "and D", "words2": "Because."})
    ((approval_id, answer, person),) = given
    assert (approval_id, answer.decision, answer.input_hash) == (approval.approval_id, "allow", "0" * 64)
    assert answer.answers == {"Which *one*?": "Blue", "Which ones?": "B, C, and D", "Why?": "Because."}
    assert (person.visible_to, person.surface) == (office.owners["UADA"], "slack")


def test_one_question_takes_a_click_or_words(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[Any, ...]] = []
    monkeypatch.setattr(HubApprovals, "answer", lambda _, *values: given.append(values))
    office.says("fix it", channel="D1", channel_type="im")
    office.ask(office.begin(), "question", {"questions": ASKED["questions"][:1]})
    asked = office.slack.shown()[-1]
    assert buttons(asked)[:3] == ["Red", "Blue", "Other…"]
    office.clicks(asked, "Other…")
    office.submits(view_of(office.slack.dialogs[-1]), {"words0": "Green"})
    assert given[0][1].answers == {"Which *one*?": "Green"}


def test_the_questions_of_another_owner_are_not_shown(office: Office) -> None:
    office.link("bob", "UBOB")
    office.says("fix it", channel="D1", channel_type="im")
    office.ask(office.begin(), "question", ASKED)
    office.clicks(office.slack.shown()[-1], "Answer", user="UBOB")
    assert office.slack.dialogs == []


@pytest.mark.parametrize(
    "asked",
    [
        {"questions": [{"question": "x" * 3000, "options": []}]},
        {"questions": [{"question": "Why?", "options": [{"label": 5}]}]},
        {"questions": [{"question": "Why?", "options": []}] * (questions.MOST + 1)},
        {"questions": "Why?"},
    ],
)
def test_questions_that_slack_cannot_show_whole_lead_to_the_page(office: Office, asked: Mapping[str, Any]) -> None:
    office.says("fix it", channel="D1", channel_type="im")
    office.ask(office.begin(), "question", asked)
    assert buttons(office.slack.shown()[-1]) == ["Deny", sentences.DENY_WITH_A_REASON, "Open"]


# ---- Private channels


@pytest.mark.parametrize(
    ("about", "shown"),
    [
        ({"is_private": True}, True),
        ({"is_private": False}, False),
        ({"is_private": True, "is_ext_shared": True}, False),
    ],
)
def test_slack_is_asked_whether_a_channel_is_private(office: Office, about: dict[str, Any], shown: bool) -> None:
    office.slack.channels["C1"] = about
    office.says("<@UBOT> fix it", type="app_mention", channel_type=None)
    office.ask(office.begin())
    office.process.step()
    asked = office.slack.shown()[-1]
    assert ("s3cret" in json.dumps(asked), "Approve" in buttons(asked)) == (shown, shown)
    assert len(office.slack.called("conversations.info")) == 1


@pytest.mark.parametrize(("channel_type", "shown"), [("group", True), ("channel", False), (None, False)])
def test_without_slacks_word_a_channel_is_private_only_if_its_message_said_so(
    office: Office, channel_type: str | None, shown: bool
) -> None:
    office.slack.faults["conversations.info"] = ["missing_scope"] * 9
    office.says("<@UBOT> fix it", channel_type=channel_type)
    office.ask(office.begin())
    assert ("Approve" in buttons(office.slack.shown()[-1])) is shown


def test_a_channel_that_became_public_is_found_after_a_while() -> None:
    now, about = [0.0], {"is_private": True}

    class Web:
        def conversations_info(self, channel: str) -> dict[str, Any]:
            return {"channel": dict(about)}

    channels = Channels(Web(), lambda: now[0])
    assert channels.is_private("C1") is True
    about["is_private"] = False
    assert channels.is_private("C1") is True
    now[0] = 301.0
    assert channels.is_private("C1") is False
    assert channels.is_private("D1") is True


# ---- The rates


@dataclass
class Limited:
    """A Slack without a network, with the instants at which it was called on the clock of a test."""

    now: float = 1000.0
    posts: list[tuple[float, str]] = field(default_factory=list)
    updates: list[tuple[float, str, str]] = field(default_factory=list)

    def chat_postMessage(self, **values: Any) -> dict[str, Any]:
        self.posts.append((self.now, values["text"]))
        return {"ts": f"1.{len(self.posts):06}"}

    def chat_update(self, **values: Any) -> dict[str, Any]:
        self.updates.append((self.now, values["ts"], values["text"]))
        return {}

    def conversations_info(self, **_: Any) -> dict[str, Any]:
        return {"channel": {}}


RUNS = 100


def test_a_hundred_runs_in_one_channel_stay_inside_the_rates(tmp_path: Path, slack: FakeSlack) -> None:
    with office_in(tmp_path, slack) as office:
        limited = Limited()
        for part in (office.process.sender, office.process.composer):
            part.clock = lambda: limited.now
        office.process.sender.web = limited
        for number in range(RUNS):
            office.hub.workspace(f"w{number}")
        with office.hub.database.write() as connection:
            connection.execute("UPDATE workspaces SET owner_id = ?", (office.owners["UADA"],))
        for number in range(RUNS):
            office.commands(f"use w{number}")
            office.says(f"<@UBOT> {number}")
        office.slack.ephemeral.clear()

        def pass_time(seconds: int) -> None:
            for _ in range(seconds):
                limited.now += 1
                office.process.composer.compose()
                while office.process.sender.send_next():
                    pass

        begun = [office.begin() for _ in range(RUNS)]
        pass_time(400)
        assert len(limited.posts) >= RUNS
        shown = {ts for _, ts, _ in limited.updates}
        assert len(shown) == RUNS  # each shows its progress, the last as well as the first
        newest = {ts: at for at, ts, _ in limited.updates}
        assert min(newest.values()) > limited.now - 2 * RUNS * 1.2
        asked = limited.now
        office.ask(begun[RUNS // 2])
        for execution in begun[: RUNS // 2]:
            office.finish(execution)
        pass_time(90)
        approval = next(at for at, text in limited.posts if text.startswith("Claude wants"))
        assert approval <= asked + 2
        after = [text for at, _, text in limited.updates if at > asked]
        assert all("Done" in text for text in after[: RUNS // 2])  # before any progress
        for times in ([at for at, _ in limited.posts], [at for at, _, _ in limited.updates]):
            assert all(late - early >= 60 for early, late in zip(times, times[51:], strict=False))
        posts = [at for at, _ in limited.posts]
        assert all(late - early >= 1 for early, late in itertools.pairwise(posts))
