"""A hub that is connected to a Slack on loopback, and a person who uses it there."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from occ_app.executions import answers, approvals, events, lifecycle
from occ_app.executions import queries as executions
from occ_app.executions.records import Execution, Outcome
from occ_app.hub import keys
from occ_app.slack import inbox, incoming, people, tokens
from occ_app.slack.people import Asked
from occ_app.slack.tokens import Tokens
from occ_app.system.process_identity import own_identity
from occ_worker.slack import handling
from occ_worker.slack.process import SlackProcess
from tests.fake_slack import FakeSlack
from tests.hub_app import HubApp, hub_app


@dataclass
class Office:
    """A hub that is connected to a Slack, the process that does it, driven by hand, and a person, Ada."""

    hub: HubApp
    slack: FakeSlack
    process: SlackProcess
    count: int = 0
    owners: dict[str, str] = field(default_factory=dict)

    def link(self, name: str, user: str, **more: Any) -> str:
        """Link a Slack user to a new owner; returns the owner's id."""
        self.hub.key(name, "client", **more)
        key = next(one for one in keys.listing(self.hub.database) if one.name == name)
        people.link(self.hub.database, people.new_code(self.hub.database, Asked("T1", user, name)), key.key_id)
        self.owners[user] = key.owner_id
        return key.owner_id

    def says(self, text: str, user: str = "UADA", channel: str = "C1", **more: Any) -> str:
        """A message in Slack, as it comes to the hub; returns its ts."""
        ts = more.pop("ts", None) or self.slack.new_ts()
        self.count += 1
        event = {"type": "message", "user": user, "text": text, "ts": ts, "channel": channel, "channel_type": "channel"}
        payload = {"team_id": "T1", "event_id": f"Ev{self.count}", "event": {**event, **more}}
        self.receive("events_api", payload)
        return str(ts)

    def commands(self, text: str, user: str = "UADA", channel: str = "C1") -> None:
        self.count += 1
        values = {"team_id": "T1", "user_id": user, "user_name": "ada", "channel_id": channel, "text": text}
        self.receive("slash_commands", {**values, "command": "/occ", "trigger_id": f"t{self.count}"})

    def clicks(self, message: dict[str, Any], label: str, user: str = "UADA") -> None:
        """A click on the button with this label."""
        self.count += 1
        buttons = [one for block in message["blocks"] if block["type"] == "actions" for one in block["elements"]]
        button = next(one for one in buttons if one["text"]["text"] == label)
        self.receive(
            "interactive",
            {
                "type": "block_actions",
                "user": {"id": user, "team_id": "T1"},
                "team": {"id": "T1"},
                "container": {
                    "message_ts": message["ts"],
                    "thread_ts": message.get("thread_ts"),
                    "channel_id": message["channel"],
                },
                "trigger_id": f"trigger-{self.count}",
                "actions": [{"action_id": button["action_id"], "value": button["value"], "action_ts": f"{self.count}"}],
            },
        )

    def submits(self, dialog: dict[str, Any], given: Mapping[str, str | Sequence[str]], user: str = "UADA") -> None:
        """Send a dialog with these values by the id of their block; of a select, the name of an option, or several."""
        self.count += 1
        view = {key: dialog[key] for key in ("callback_id", "private_metadata")}
        view |= {"id": f"V{self.count}", "hash": "h", "state": {"values": _values(dialog, given)}}
        self.receive(
            "interactive",
            {"type": "view_submission", "user": {"id": user, "team_id": "T1"}, "team": {"id": "T1"}, "view": view},
        )

    def receive(self, kind: str, payload: dict[str, Any]) -> None:
        inbox.store(self.hub.database, incoming.key_of(kind, payload, f"e{self.count}"), kind, payload)
        self.process.step()
        if handling.handle_all(self.process.hub, slow=True):  # as the process's second thread does
            self.process.step()

    def runs(self) -> list[Execution]:
        """All runs, oldest first."""
        return executions.listing(self.hub.database, limit=1000)[0][::-1]

    def begin(self) -> Execution:
        """Run the next run that waits, as a worker does."""
        claimed = lifecycle.claim(self.hub.database, own_identity())
        assert claimed is not None
        return claimed

    def finish(self, execution: Execution, text: str = "All done.") -> None:
        chunks = [text[at : at + 5000] for at in range(0, len(text), 5000)]
        rows = [("output", json.dumps({"chunk": chunk, "timestamp": 1})) for chunk in chunks]
        first = events.newest(self.hub.database, execution.number) + 1
        events.append(self.hub.database, execution.number, first, rows)
        outcome = Outcome("succeeded", "complete", {"exitCode": 0, "costUsd": 0.12})
        lifecycle.finish(self.hub.database, execution.number, outcome)

    def run(self, text: str = "All done.") -> Execution:
        """Run the next run to its end, and show it."""
        execution = self.begin()
        self.finish(execution, text)
        self.process.step()
        return execution

    def ask(self, execution: Execution, kind: str = "tool", asked: Any = None) -> answers.Approval:
        request = answers.Request(kind, "Bash", asked or {"command": "rm s3cret"}, "0" * 64)
        approval = approvals.ask(self.hub.database, execution.number, request, 60)
        self.process.step()
        return approval


@contextlib.contextmanager
def office_in(folder: Path, slack: FakeSlack) -> Iterator[Office]:
    """An office whose hub has its home in `folder`, and Ada, who owns the workspace `work`."""
    with hub_app(folder, public_url="https://hub.example.com", slack_approval_seconds=7200) as hub:
        hub.workspace("work")
        connected = Tokens("xapp-1", "xoxb-1", "T1", "Acme", "UBOT", slack.api)
        tokens.save(hub.config, connected)
        office = Office(hub, slack, SlackProcess(hub.config, connected))
        office.process.receiver.report(None)  # as after its first connection
        of_ada = office.link("ada", "UADA")
        with hub.database.write() as connection:
            connection.execute("UPDATE workspaces SET owner_id = :owner", {"owner": of_ada})
        try:
            yield office
        finally:
            office.process.db.close()


def _values(dialog: Mapping[str, Any], given: Mapping[str, str | Sequence[str]]) -> dict[str, Any]:
    """The state of a dialog as Slack sends it; a select that nobody touched has its first option."""
    state = dict[str, Any]()
    for block in dialog["blocks"]:
        if block["type"] != "input":
            continue
        element, chosen = block["element"], given.get(block["block_id"])
        sent: dict[str, Any] = {"type": element["type"]}
        if element["type"] == "plain_text_input":
            sent["value"] = chosen
        else:
            options = {option["text"]["text"]: option for option in element["options"]}
            if element["type"].startswith("multi_"):
                sent["selected_options"] = [options[name] for name in chosen or ()]
            else:
                sent["selected_option"] = options[str(chosen)] if chosen else element.get("initial_option")
        state[block["block_id"]] = {element["action_id"]: sent}
    return state


def view_of(opened: Mapping[str, Any]) -> dict[str, Any]:
    """The view of a call of views.open."""
    view = opened["view"]
    return dict(view) if isinstance(view, dict) else dict(json.loads(view))


def texts(message: dict[str, Any]) -> str:
    """Everything that a person reads in a message."""
    found = [
        block["text"] if block["type"] == "markdown" else block["text"]["text"]
        for block in message["blocks"]
        if block["type"] != "actions"
    ]
    return "\n".join(found)


def buttons(message: dict[str, Any]) -> list[str]:
    return [
        one["text"]["text"] for block in message["blocks"] if block["type"] == "actions" for one in block["elements"]
    ]
