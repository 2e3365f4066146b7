"""Parking a call that waits for a person, by deferring it.

A deferred call must never run unasked when Claude Code is started again. So only a call whose hook is open is
deferred, by a version that is known to ask again, and only if none of the CLI's own rules grants its tool. The process
that resumes it runs in the CLI's `default` mode with a rule that asks about the tool (command.py), so that it is asked
even where it would be judged before the hook is registered.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from occ_app.errors import OCCError
from occ_app.executions import holding, parking
from occ_app.executions.answers import Approval
from occ_app.executions.records import Execution
from occ_app.executions.spent import Spent
from occ_worker.execution import outcome
from occ_worker.execution.context import ExecutionContext
from occ_worker.execution.replies import Call, deferred, input_hash
from occ_worker.execution.resumable import Resumable

log = logging.getLogger("occ.deferral")

RULES_SECONDS = 5.0  # for the CLI to list its rules, and to leave after it deferred a call
_RULES_REQUEST = "occ-rules"
_HELD_REQUEST = "occ-rules-held"  # the same list, asked for when a call begins to wait


@dataclass(frozen=True)
class Suspension:
    """The end of a process whose execution is parked.

    `spent` are the figures so far; None if it reported none.
    """

    spent: Spent | None


class Deferral:
    """The parking of the calls of one process. Used by the driver's thread alone.

    `is_alone` returns whether a call is the only one that its message left open, `spent` the figures of this process
    and those before it.
    """

    def __init__(
        self,
        context: ExecutionContext,
        execution: Execution,
        resumable: Resumable,
        send: Callable[[bytes], None],
        is_alone: Callable[[str], bool],
        spent: Callable[[], Spent],
    ) -> None:
        self._context = context
        self._execution = execution
        self._resumable = resumable
        self._send = send
        self._is_alone = is_alone
        self._spent = spent
        self._carried = resumable.parked
        self._granted: dict[str, str] = {}  # the hashes of the inputs of allowed calls, by the id of the call
        self._checking: tuple[str, Call] | None = None
        self._checked_until = 0.0
        self._held: tuple[str, Call] | None = None  # until the CLI lists its rules
        self._refused: set[str] = set()  # approvals whose calls cannot be parked
        self.deferred: str | None = None  # the id of the call that the CLI was asked to defer

    @property
    def undelivered(self) -> bool:
        """Whether this process resumes a call whose answer it has not delivered yet."""
        return self._carried is not None

    @property
    def knows_defer(self) -> bool:
        return self._resumable.knows_defer

    @property
    def resumes(self) -> bool:
        """Whether the CLI asks about each call once more after its hook (command.py)."""
        return self._resumable.parked is not None

    # -- the answer of a call that was deferred

    def answer_for(self, call: Call) -> Approval | None:
        """Return the answer to the call that this process resumes.

        None for any other call, which drops the answer.
        """
        if self._carried is None:
            return None
        approval = self._carried.approval
        same = (call.tool_use_id, call.tool, call.subagent) == (self._carried.tool_use_id, approval.tool, None)
        if same and input_hash(call.input) == approval.input_hash:
            return approval
        log.warning("execution %s: its parked call did not come again", self._execution.execution_id)
        self._carried = None
        with contextlib.suppress(OCCError):  # a held database; the call is compared again, should this process die
            parking.settle(self._context.db, self._execution.number)
        return None

    def delivered(self) -> None:
        """Note that the answer is about to be given to the CLI."""
        self._carried = None

    def grant(self, call: Call, given: Mapping[str, Any]) -> None:
        """Note that a hook allowed a call.

        Where a rule asks about every call, the CLI asks about it once more.
        """
        if self.resumes and call.tool_use_id is not None:
            self._granted[call.tool_use_id] = input_hash(given)

    def is_granted(self, call: Call) -> bool:
        """Return whether the hook allowed this very call a moment ago."""
        granted = None if call.tool_use_id is None else self._granted.pop(call.tool_use_id, None)
        return granted is not None and granted == input_hash(call.input)

    # -- deferring an open call

    def is_done(self, result: Mapping[str, Any]) -> bool:
        """Return whether a result says that the CLI deferred the requested call alone."""
        call = result.get("deferred_tool_use")
        named = call.get("id") if isinstance(call, Mapping) else None
        return self.deferred is not None and named == self.deferred and outcome.is_deferred(result)

    def begin(self, approval_id: str, call: Call, kind: str, others: int) -> bool:
        """Begin to park an open call: ask the CLI for its rules.

        False when the call cannot be parked.
        """
        if self._checking is not None and self._checking[0] == approval_id:
            if time.monotonic() < self._checked_until:
                return True
            self._refuse(approval_id)
        if others or self._checking is not None or approval_id in self._refused or not self._can_defer(call, kind):
            return False
        self._checking, self._checked_until = (approval_id, call), time.monotonic() + RULES_SECONDS
        self._list_rules(_RULES_REQUEST)
        return True

    def hold(self, approval_id: str, call: Call, kind: str) -> None:
        """Note a call that begins to wait, for the case that this process dies.

        The transcript shows whether it is alone.
        """
        if self._may_defer(call, kind):
            self._held = (approval_id, call)
            self._list_rules(_HELD_REQUEST)

    def deadline(self, approval_id: str) -> float | None:
        """Return until when the CLI may list its rules because of this call.

        None when it was not asked.
        """
        checks = self._checking is not None and self._checking[0] == approval_id
        return self._checked_until if checks else None

    def end(self, approval_id: str) -> None:
        """Note that a call is not open any more."""
        if self._checking is not None and self._checking[0] == approval_id:
            self._checking = None

    def take(self, content: Mapping[str, Any]) -> str | None:
        """Handle a response of the CLI.

        Returns the approval of the call that is deferred now, None without one.
        """
        request_id = content["response"].get("request_id")
        if request_id == _HELD_REQUEST:
            self._note_held(content["response"].get("response"))
        if self._checking is None or request_id != _RULES_REQUEST:
            return None
        approval_id, call = self._checking
        if grants(call.tool, content["response"].get("response")) or not self._intend(approval_id, call):
            self._refuse(approval_id)
            return None
        self._checking = None
        self.deferred = call.tool_use_id
        self._send(deferred(call))
        return approval_id

    def _list_rules(self, request_id: str) -> None:
        request = {"type": "control_request", "request_id": request_id, "request": {"subtype": "list_permission_rules"}}
        self._send(json.dumps(request).encode() + b"\n")

    def _note_held(self, listed: object) -> None:
        if self._held is None:
            return
        (approval_id, call), self._held = self._held, None
        if not grants(call.tool, listed):
            with contextlib.suppress(OCCError):  # a held database; then a death of this process ends the execution
                number, tool_use_id = self._execution.number, call.tool_use_id or ""
                holding.hold(self._context.db, number, approval_id, tool_use_id, self._spent())

    def _refuse(self, approval_id: str) -> None:
        self._checking = None
        self._refused.add(approval_id)

    def _intend(self, approval_id: str, call: Call) -> bool:
        try:
            number, tool_use_id = self._execution.number, call.tool_use_id or ""
            return holding.intend(self._context.db, number, approval_id, tool_use_id, self._spent())
        except OCCError as error:
            log.error("execution %s cannot be parked: %s", self._execution.execution_id, error)
            return False

    def _can_defer(self, call: Call, kind: str) -> bool:
        return self._may_defer(call, kind) and self._is_alone(call.tool_use_id or "")

    def _may_defer(self, call: Call, kind: str) -> bool:
        if not (self._resumable.knows_defer and call.by_hook and call.tool_use_id) or self.deferred is not None:
            return False
        # The CLI shows the text of a plan only in a question that cannot be deferred.
        if call.subagent is not None or kind == "plan":
            return False
        limit = self._execution.max_turns
        return limit is None or self._spent().turns < limit


def grants(tool: str, listed: object) -> bool:
    """Return whether the CLI's rules may let a tool run unasked.

    True for a list of an unknown shape. Rules of the session end with its process.
    """
    try:
        rules = listed["state"]["rules"]  # type: ignore[index]  # any other shape is caught
        allowed = [rule["rule"] for rule in rules if rule["behavior"] == "allow" and rule["source"] != "session"]
        names = [str(rule).partition("(")[0].strip() for rule in allowed]
    except (TypeError, KeyError, AttributeError):
        return True
    return any(name == tool or "*" in name or tool.startswith(f"{name}__") for name in names)
