"""The current content of the messages of runs and approvals.

Nothing is sent here.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from occ_app.executions import approvals, events
from occ_app.executions import queries as executions
from occ_app.executions.answers import Approval
from occ_app.executions.records import Execution
from occ_app.slack import blocks, outbox, threads
from occ_app.slack.outbox import Message
from occ_worker.slack.hub import SlackHub

_LEAST_SECONDS, _SECONDS_A_RUN = 3.0, 1.2  # between two updates of a message; Slack takes about 50 updates a minute
_EVENTS_READ = 200
_CHANGES_SECONDS = 600.0  # how long a finished run's changes are awaited
_LONGEST_ANSWER = blocks.LONGEST_PART * blocks.MOST_PARTS + 1


@dataclass
class Composer:
    """Composes messages as often as Slack's rate limits allow.

    `_composed` is the time at which each message was last composed, in seconds on the clock. `ended` are the numbers
    of the messages whose runs are over.
    """

    hub: SlackHub
    clock: Callable[[], float] = time.monotonic
    ended: set[int] = field(default_factory=set)
    _composed: dict[int, float] = field(default_factory=dict)

    def compose(self) -> bool:
        """Store the wanted content of unfinished messages.

        Returns whether any run is shown whose message is not final.
        """
        shown = outbox.unfinished(self.hub.db, outbox.RUN)
        interval = max(_LEAST_SECONDS, len(shown) * _SECONDS_A_RUN)
        for message in shown:
            self._run(message, interval)
        self._approvals(shown)
        still = {message.number for message in shown}
        self._composed = {number: at for number, at in self._composed.items() if number in still}
        self.ended &= still  # in place, because the sender shares the set
        return bool(shown)

    def _run(self, message: Message, interval: float) -> None:
        assert message.execution is not None  # noqa: S101 - a run's message has one
        with self.hub.db.read() as connection:
            execution = executions.numbered(connection, message.execution)
        now = self.clock()
        if execution.over:
            awaited = _awaits_changes(execution)
            if not awaited or message.number not in self.ended:
                self.ended.add(message.number)
                self._end(message, execution, final=not awaited)
        elif message.content is None or now - self._composed.get(message.number, now - interval) >= interval:
            self._composed[message.number] = now
            doing, tail = self._latest(execution)
            machine = self.hub.agents.find(execution.agent_id) if execution.agent_id else None
            name = None if machine is None else machine.name
            url = self.hub.page(execution.execution_id)
            outbox.want(
                self.hub.db, message.number, blocks.under_way(execution, name, _seconds(execution), doing, tail, url)
            )

    def _end(self, message: Message, execution: Execution, *, final: bool) -> None:
        """Store the content for a finished run.

        The parts of a long answer are stored first, so that none is missing after a kill.
        """
        url = self.hub.page(execution.execution_id)
        content, more = blocks.ended(execution, _seconds(execution), self._answer(execution), url)
        for number, part in enumerate(more, 1):
            outbox.add(self.hub.db, message, outbox.ANSWER, f"answer {execution.number} {number}", part)
        outbox.want(self.hub.db, message.number, content, final=final)

    def _latest(self, execution: Execution) -> tuple[str | None, str]:
        """Return the tool that is running, and the latest text."""
        newest = events.newest(self.hub.db, execution.number)
        doing, text = None, ""
        for event in events.after(self.hub.db, execution.number, max(0, newest - _EVENTS_READ)):
            data = _data(event.data)
            if event.name == "output":
                text, doing = text + str(data.get("chunk", "")), None
            elif event.name == "tool":
                doing = str(data.get("name") or data.get("tool") or "") or None
        return doing, text

    def _answer(self, execution: Execution) -> str:
        """Return Claude's text, up to the length that is shown."""
        text, after = "", 0
        while len(text) < _LONGEST_ANSWER:
            found = events.after(self.hub.db, execution.number, after)
            if not found:
                break
            text += "".join(str(_data(event.data).get("chunk", "")) for event in found if event.name == "output")
            after = found[-1].seq
        return text

    def _approvals(self, shown: list[Message]) -> None:
        """Show the open approvals of the shown runs, and remove buttons of closed ones."""
        of_run = {message.execution: message for message in shown}
        for asked in approvals.listing(self.hub.db, "open") if of_run else []:
            message = of_run.get(asked.execution)
            if message is not None and asked.pending is None:
                content = self._open_approval(message, asked)
                once = f"approval {asked.approval_id}"
                outbox.add(self.hub.db, message, outbox.APPROVAL, once, content, approval_id=asked.approval_id)
        for message in outbox.unfinished(self.hub.db, outbox.APPROVAL):
            found = approvals.find(self.hub.db, message.approval_id or "")
            if found is None or found.state != "open" or found.pending is not None:
                final = found is None or found.state != "open"
                content = blocks.sentence("It is not open any more.") if found is None else blocks.decided(found)
                outbox.want(self.hub.db, message.number, content, final=final)

    def _open_approval(self, message: Message, asked: Approval) -> outbox.Content:
        thread = threads.thread_of(self.hub.db, self.hub.tokens.team_id, message.channel, message.thread)
        private = self.hub.is_private(message.channel)
        if private is None:
            private = thread is not None and thread.private
        return blocks.approval(asked, private=private, url=self.hub.page(asked.execution_id))


def _seconds(execution: Execution) -> float:
    """Return how long a run took, or has taken so far."""
    if execution.started_at is None:
        return 0.0
    end = datetime.now(UTC) if execution.finished_at is None else datetime.fromisoformat(execution.finished_at)
    return (end - datetime.fromisoformat(execution.started_at)).total_seconds()


def _awaits_changes(execution: Execution) -> bool:
    """Return whether a finished run's changes are still expected from its machine."""
    if execution.changes_reason != "pending" or execution.finished_at is None:
        return False
    since = datetime.now(UTC) - datetime.fromisoformat(execution.finished_at)
    return since.total_seconds() < _CHANGES_SECONDS


def _data(text: str) -> dict[str, object]:
    try:
        loaded = json.loads(text)
    except ValueError:
        return {}
    return loaded if isinstance(loaded, dict) else {}
