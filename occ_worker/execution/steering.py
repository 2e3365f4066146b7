"""Texts of a person for the turn that runs.

They are sent while a tool runs, and confirmed by the CLI. It puts such a text into the request after the tool, and
reports that it `started`. A text that misses that request is withdrawn. The CLI reports it as `cancelled` then, and it
becomes a follow-up; if the CLI has begun a turn for it already, that turn belongs to the execution.
"""

from __future__ import annotations

import contextlib
import json
import logging
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from occ_app.claude import program as claude_cli
from occ_app.errors import OCCError
from occ_app.executions import inputs
from occ_app.executions.events import NewEvent
from occ_app.executions.inputs import Input
from occ_app.executions.records import Execution
from occ_app.system.compact_json import to_json
from occ_app.system.timestamps import milliseconds
from occ_worker.execution import command, texts
from occ_worker.execution.context import ExecutionContext
from occ_worker.execution.translator import Translator

log = logging.getLogger("occ.steering")

LINE = b'{"type":"command_lifecycle"'  # the beginning of the CLI's reports on a text

_NO_TOOL = "No tool was running."
_TOO_OLD = "This version of Claude Code cannot take a text during a turn."
_MISSED = "The turn had no place for it any more."


@dataclass
class _Sent:
    """A text that the CLI has.

    `messages` is the number of the model's messages that had begun when it was sent.
    """

    input: Input
    messages: int
    withdrawn: bool = False


class Steering:
    """The texts for one execution.

    `send` writes a line to the CLI, and `store` stores events. Used by the driver's thread alone.
    """

    def __init__(
        self,
        context: ExecutionContext,
        execution: Execution,
        translator: Translator,
        send: Callable[[bytes], None],
        store: Callable[[list[NewEvent]], None],
    ) -> None:
        self._context = context
        self._execution = execution
        self._translator = translator
        self._send = send
        self._store = store
        self._sent: dict[str, _Sent] = {}  # by the id of the line
        self._unsettled: list[tuple[Input, str, str]] = []  # a new state and the reason, which are not stored yet

    @property
    def unconfirmed(self) -> bool:
        """Return whether the CLI has a text that it neither took nor returned."""
        return bool(self._sent)

    def look(self) -> None:
        """Send new texts, or make follow-ups of them.

        Raises the errors of the database.
        """
        self._settle_rest()
        for found in inputs.waiting(self._context.db, self._execution.number):
            reason = self._hindrance()
            if reason is not None:
                self._settle(found, "queued", reason)
            elif inputs.mark_sent(self._context.db, found.number):
                line = str(uuid.uuid4())
                self._sent[line] = _Sent(found, self._translator.messages)
                self._report(found, "sent")
                self._send(command.prompt_line(found.text, line))

    def take(self, line: bytes) -> None:
        """Handle a report of the CLI; one of an unknown shape is left out."""
        try:
            content = json.loads(line)
            message_id, state = content["command_uuid"], content["state"]
        except (ValueError, KeyError, TypeError):
            log.warning("execution %s: an unreadable report on a text", self._execution.execution_id)
            return
        sent = self._sent.get(message_id) if isinstance(message_id, str) else None
        if sent is None:
            return
        if state == "started":
            del self._sent[message_id]
            self._translator.begin_turn()  # none after a result: it is in the turn that runs
            self._settle(sent.input, "delivered")
        elif state == "cancelled":
            del self._sent[message_id]
            self._settle(sent.input, "queued", _MISSED)

    def withdraw_missed(self) -> None:
        """Withdraw texts that the model's next message began without.

        At the end of the turn, withdraw all of them.
        """
        for message_id, sent in self._sent.items():
            missed = self._translator.messages > sent.messages or self._translator.result is not None
            if missed and not sent.withdrawn:
                sent.withdrawn = True
                self._send(command.withdrawal_line(message_id))

    def end(self) -> None:
        """Settle all texts once the CLI has ended.

        The end of the execution settles those that cannot be stored here.
        """
        left = [(sent.input, "unknown", inputs.UNCERTAIN) for sent in self._sent.values()]
        self._sent.clear()
        with contextlib.suppress(OCCError):
            left += [
                (found, "queued", inputs.ENDED) for found in inputs.waiting(self._context.db, self._execution.number)
            ]
        for each in left:
            self._settle(*each)

    def _hindrance(self) -> str | None:
        """Return why a text cannot be sent now; None when it can."""
        said = self._translator.init
        if said is not None and not claude_cli.confirms_inputs(texts.text_of(said.get("claude_code_version"))):
            return _TOO_OLD
        return None if self._translator.open_tools and self._translator.result is None else _NO_TOOL

    def _settle(self, found: Input, state: str, reason: str = "") -> None:
        """Store and report the new state of a text, later if the database is held."""
        if all(found.number != other.number for other, _, _ in self._unsettled):
            self._unsettled.append((found, state, reason))
        try:
            self._settle_rest()
        except OCCError as error:
            log.warning("input %s cannot be settled yet: %s", found.input_id, error)

    def _settle_rest(self) -> None:
        while self._unsettled:
            found, state, reason = self._unsettled[0]
            if state == "queued":
                found = inputs.queue(self._context.db, found.number, reason)
                state = found.state
                won = state in ("queued", "unsent")
            else:
                won = inputs.settle(self._context.db, found.number, state, reason or None)
            del self._unsettled[0]
            if won:
                self._report(found, state, reason)

    def _report(self, found: Input, state: str, reason: str = "") -> None:
        text, truncated = texts.cut(found.text)
        data = {
            "inputId": found.input_id,
            "text": text,
            "state": state,
            "executionId": found.follow_up,
            "reason": reason or None,
            "timestamp": milliseconds(),
        }
        self._store([("input", to_json(data | ({"truncated": True} if truncated else {})))])
