"""Asking a person before a tool runs, over the CLI's standard input and output.

A hook that OCC registers is called before each tool call. For the tools that edit inside the workspace it leaves the
decision to the CLI, which asks where a call leaves the workspace; every other tool waits for a person. The execution of
a call that nobody answers within the hold is parked (deferral.py), or the call is denied, so no call runs that neither
a person nor the operator allowed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from occ_app.errors import OCCError
from occ_app.executions import approvals, parking, queries
from occ_app.executions.answers import Approval, Request
from occ_app.executions.events import NewEvent
from occ_app.executions.records import Execution
from occ_app.executions.remembering import MAX_INPUT_BYTES
from occ_app.home import daemon
from occ_app.system.compact_json import to_json
from occ_app.system.timestamps import milliseconds
from occ_worker.execution import outcome, servers, texts, verdicts
from occ_worker.execution.context import ExecutionContext
from occ_worker.execution.deferral import Deferral
from occ_worker.execution.replies import (
    ACCEPT_EDITS,
    Call,
    allowed,
    answered,
    decided,
    denied,
    given_input,
    input_hash,
    left_to_cli,
    unreadable,
)
from occ_worker.execution.verdicts import Verdict

log = logging.getLogger("occ.permissions")

ASK = Verdict("ask")
_QUESTION, _PLAN = "AskUserQuestion", "ExitPlanMode"
_CALLBACK = "occ-tool"
_SPARE_SECONDS = 3600.0  # by which the CLI waits longer for the hook than OCC holds a call

_UNANSWERED = "Nobody answered within {:g} s, so this did not run. Go on without it, or ask for one thing at a time."
_WORKER_NEEDED = "Nobody answered, and others wait for this worker, so this did not run. Go on without it."
_ONE_AT_A_TIME = "Another call waits for a person, so this did not run. Ask for one thing at a time."
_TOO_LARGE = "This input is too large to be shown to a person, so it did not run. Ask for less at once."
_UNREADABLE = "This input cannot be shown to a person as it is, so it did not run. Use ordinary text."
_PLANNING = "This run may only read and plan. Finish the plan and present it."


class Permissions:
    """The calls of one execution that wait for a person.

    `send` writes a line to the CLI, and `store` stores events. Used by the driver's thread alone.
    """

    def __init__(
        self,
        context: ExecutionContext,
        execution: Execution,
        deferral: Deferral,
        send: Callable[[bytes], None],
        store: Callable[[list[NewEvent]], None],
    ) -> None:
        self._context = context
        self._execution = execution
        self._deferral = deferral
        self._send = send
        self._store = store
        self._open: dict[str, Call] = {}  # by approval
        self._owed: tuple[Call, Approval] | None = None  # the parked call's answer, while it cannot be delivered

    @property
    def waiting(self) -> bool:
        """Whether a person is asked, so that the time does not count."""
        return bool(self._open)

    @property
    def next_expiry(self) -> float | None:
        """When the first open call expires, on the monotonic clock."""
        return min((self._deferral.deadline(key) or call.expires for key, call in self._open.items()), default=None)

    def take(self, line: bytes) -> None:
        """Handle a control line of the CLI; a call that cannot be read or shown is denied."""
        try:
            content = json.loads(line)
            kind, request_id = content["type"], content.get("request_id")
            if kind == "control_cancel_request":
                self._withdraw(request_id)
            elif kind == "control_request":
                self._asked(str(request_id), content["request"])
            elif kind == "control_response":
                self._checked(content)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            log.warning("execution %s: an unreadable control line", self._execution.execution_id)
            call = unreadable(line)
            if call is not None:  # the CLI would wait for an answer
                self._send(denied(call, _UNREADABLE))

    def look(self) -> None:
        """Deliver new answers, and end the hold of calls whose worker others wait for."""
        if self._owed is not None:
            self._answer_parked(*self._owed)
        if not self._open:
            return
        for approval in approvals.undelivered(self._context.db, self._execution.number):
            call = self._open.get(approval.approval_id)
            if call is not None and self._deliver(call, approval):
                del self._open[approval.approval_id]
                self._deferral.end(approval.approval_id)
        workers = self._context.config.workers
        if self._open and approvals.holding(self._context.db) >= workers and queries.claimable(self._context.db):
            self._park_or_expire(list(self._open), _WORKER_NEEDED)
        elif self._open and not daemon.takes_work(self._context.config):
            self.park()  # the stop waits for it; what cannot be parked is held to its end

    def expire(self, now: float) -> None:
        """End the hold of unanswered calls: park the execution, or deny them."""
        over = [key for key, call in self._open.items() if (self._deferral.deadline(key) or call.expires) <= now]
        self._park_or_expire(over, _UNANSWERED.format(self._context.config.hold_seconds))

    def park(self) -> bool:
        """Begin to park the execution before its hold is over; False if it cannot be."""
        if self._deferral.deferred is not None:
            return True
        return any(self._begin_parking(approval_id) for approval_id in list(self._open))

    def _park_or_expire(self, approval_ids: list[str], message: str) -> None:
        denied_ids = [approval_id for approval_id in approval_ids if not self._begin_parking(approval_id)]
        self._expire(denied_ids, message)

    def _begin_parking(self, approval_id: str) -> bool:
        call = self._open[approval_id]
        return self._deferral.begin(approval_id, call, _kind(call.tool), others=len(self._open) - 1)

    def _checked(self, content: Mapping[str, Any]) -> None:
        """Handle the CLI's list of rules: defer the call now, or hold and then deny it."""
        deferred = self._deferral.take(content)
        if deferred is not None:
            self._open.pop(deferred, None)
        with contextlib.suppress(OCCError):  # a held database: the clock ends the hold again
            self.expire(time.monotonic())

    def _deliver(self, call: Call, approval: Approval) -> bool:
        """Give an answer to the CLI, once, noted on the disk; False when given before."""
        if not parking.deliver(self._context.db, approval.approval_id):
            return False
        if call.by_hook and approval.state != "denied":
            self._deferral.grant(call, given_input(call, approval))
        self._send(self._answered(call, approval))
        self._resolved(approval.approval_id, approval.state, approval.actor, approval.message)
        return True

    def _answer_parked(self, call: Call, approval: Approval) -> None:
        """Answer the call this process resumes: deny now, else where the CLI asks last."""
        if call.by_hook and approval.state != "denied":
            self._send(left_to_cli(call))
            return
        self._owed = (call, approval)
        with contextlib.suppress(OCCError):  # a held database is looked at again
            self._deliver(call, approval)
            self._owed = None
            self._deferral.delivered()
            if self._execution.permissions != "plan":
                self._send(ACCEPT_EDITS)  # as before it was parked

    def _expire(self, approval_ids: list[str], message: str) -> None:
        for approval_id in approval_ids:
            if approvals.close(self._context.db, approval_id, "expired", message):
                self._send(denied(self._open.pop(approval_id), message))
                self._resolved(approval_id, "expired", None, message)

    def _withdraw(self, request_id: str) -> None:
        for approval_id in [key for key, call in self._open.items() if call.request_id == request_id]:
            del self._open[approval_id]
            self._deferral.end(approval_id)
            message = "Claude Code took the call back."
            with contextlib.suppress(OCCError):  # a held database: the end of the execution closes it
                approvals.close(self._context.db, approval_id, "withdrawn", message)
            self._resolved(approval_id, "withdrawn", None, message)

    def _asked(self, request_id: str, request: Mapping[str, Any]) -> None:
        call = self._call(request_id, request)
        if call is None:
            return
        parked = self._deferral.answer_for(call)
        verdict = self._verdict(call.tool, call.input) if call.by_hook else ASK
        if parked is not None:
            self._answer_parked(call, parked)
        elif self._deferral.deferred is not None:
            self._send(denied(call, _ONE_AT_A_TIME))
        elif not call.by_hook and self._deferral.is_granted(call):
            self._send(allowed(call, call.input))
        elif verdict.decision != "ask":
            if verdict.decision == "allow":
                self._deferral.grant(call, call.input)
            self._send(decided(call, verdict))
        elif self._execution.permissions == "plan" and call.tool not in (_PLAN, _QUESTION):
            self._send(denied(call, _PLANNING))
        elif len(to_json(call.input).encode()) > MAX_INPUT_BYTES:
            self._send(denied(call, _TOO_LARGE))
        else:
            self._ask(call, None if call.by_hook else texts.text_of(request.get("decision_reason")))

    def _call(self, request_id: str, request: Mapping[str, Any]) -> Call | None:
        """Return the call that a control request asks about; None for another request."""
        expires = time.monotonic() + self._context.config.hold_seconds
        if request["subtype"] == "hook_callback":
            asked, tool, given, by_hook = request["input"], "tool_name", "tool_input", True
        elif request["subtype"] == "can_use_tool":
            asked, tool, given, by_hook = request, "tool_name", "input", False
        else:
            return None
        return Call(
            request_id,
            by_hook,
            str(asked[tool]),
            asked[given],
            texts.text_of(asked.get("tool_use_id")),
            texts.text_of(asked.get("agent_id")),
            expires,
        )

    def _answered(self, call: Call, approval: Approval) -> bytes:
        """Return the line for an answer; an edited input passes the present rules."""
        edited = approval.answer.updated_input if approval.answer is not None else None
        verdict = self._verdict(approval.tool, call.input if edited is None else edited)
        if verdict.decision == "deny" and approval.kind == "tool":
            return denied(call, verdict.message)
        if self._execution.permissions == "plan" and approval.kind == "tool":
            return denied(call, _PLANNING)  # a ceiling that was lowered while it was parked
        return answered(call, approval)

    def _verdict(self, tool: str, given: Any) -> Verdict:
        try:
            verdict = verdicts.of(self._context.db, self._context.config, self._execution, tool, given)
        except OCCError as error:
            return Verdict("deny", f"OCC could not read its rules, so this did not run: {error}")
        # A question that is asked at its hook can be parked, the CLI's own one after it cannot.
        return ASK if tool == _QUESTION and verdict.decision == "cli" and self._deferral.knows_defer else verdict

    def _ask(self, call: Call, reason: str | None) -> None:
        kind = _kind(call.tool)
        shown = outcome.redacted_value(call.input, servers.secrets(self._context.config))
        redacted = shown != call.input
        request = Request(kind, call.tool, shown, input_hash(call.input), redacted, reason, call.subagent)
        try:
            approval = approvals.ask(
                self._context.db, self._execution.number, request, self._context.config.hold_seconds
            )
        except OCCError as error:
            self._send(denied(call, f"OCC could not store the question, so this did not run: {error}"))
            return
        self._open[approval.approval_id] = call
        self._deferral.hold(approval.approval_id, call, kind)
        value, truncated = texts.cut(shown)
        data = {
            "approvalId": approval.approval_id,
            "kind": kind,
            "tool": texts.text_of(call.tool),
            "input": value,
            "inputHash": request.input_hash,
            "redacted": request.redacted,
            "reason": reason,
            "subagent": call.subagent,
            "askedAt": approval.asked_at,
            "expiresAt": approval.expires_at,
            "timestamp": milliseconds(),
        }
        self._store([("approval", to_json(data | ({"truncated": True} if truncated else {})))])

    def _resolved(self, approval_id: str, state: str, actor: str | None, message: str | None) -> None:
        data = {"approvalId": approval_id, "state": state, "actor": actor, "message": message}
        self._store([("approval_resolved", to_json(data | {"timestamp": milliseconds()}))])


def _kind(tool: str) -> str:
    return {_QUESTION: "question", _PLAN: "plan"}.get(tool, "tool")


def initialize_line() -> bytes:
    """Return the control request that registers OCC's hook, sent before the prompt."""
    hook = {"matcher": ".*", "hookCallbackIds": [_CALLBACK], "timeout": int(_SPARE_SECONDS) + 86400}
    request = {"subtype": "initialize", "hooks": {"PreToolUse": [hook]}}
    return json.dumps({"type": "control_request", "request_id": "occ-initialize", "request": request}).encode() + b"\n"
