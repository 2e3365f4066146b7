"""Asking a person before a tool runs, over the CLI's standard input and output.

A hook that OCC registers is called before each tool call. For the tools that edit inside the workspace it leaves the
decision to the CLI, which asks where a call leaves the workspace; every other tool waits for a person. A call that
nobody answers within the hold is denied, so no call runs that neither a person nor the operator allowed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from occ_app.errors import OCCError
from occ_app.executions import approvals, queries
from occ_app.executions.approvals import Approval, Request
from occ_app.executions.events import NewEvent
from occ_app.executions.records import Execution
from occ_app.executions.remembering import MAX_INPUT_BYTES
from occ_app.system.compact_json import to_json
from occ_app.system.timestamps import milliseconds
from occ_worker.execution import outcome, texts, verdicts
from occ_worker.execution.context import ExecutionContext
from occ_worker.execution.verdicts import Verdict

log = logging.getLogger("occ.permissions")

_QUESTION, _PLAN = "AskUserQuestion", "ExitPlanMode"
_CALLBACK = "occ-tool"
_SPARE_SECONDS = 3600.0  # by which the CLI waits longer for the hook than OCC holds a call

_UNANSWERED = "Nobody answered within {:g} s, so this did not run. Go on without it, or ask for one thing at a time."
_WORKER_NEEDED = "Nobody answered, and others wait for this worker, so this did not run. Go on without it."
_TOO_LARGE = "This input is too large to be shown to a person, so it did not run. Ask for less at once."
_PLANNING = "This run may only read and plan. Finish the plan and present it."


@dataclass(frozen=True)
class _Call:
    """A call that the CLI waits for: the id of its control request, and whether a hook or the CLI's prompt asks."""

    request_id: str
    by_hook: bool
    input: Mapping[str, Any]
    expires: float


class Permissions:
    """The calls of one execution that wait for a person.

    `send` writes a line to the CLI, and `store` stores events. Used by the driver's thread alone.
    """

    def __init__(
        self,
        context: ExecutionContext,
        execution: Execution,
        send: Callable[[bytes], None],
        store: Callable[[list[NewEvent]], None],
    ) -> None:
        self._context = context
        self._execution = execution
        self._send = send
        self._store = store
        self._open: dict[str, _Call] = {}  # by approval

    @property
    def waiting(self) -> bool:
        """Whether a person is asked, so that the time does not count."""
        return bool(self._open)

    @property
    def next_expiry(self) -> float | None:
        """When the first open call expires, on the monotonic clock."""
        return min((call.expires for call in self._open.values()), default=None)

    def take(self, line: bytes) -> None:
        """Handle a control line of the CLI; one of an unknown shape is left out."""
        try:
            content = json.loads(line)
            kind, request_id = content["type"], content.get("request_id")
            if kind == "control_cancel_request":
                self._withdraw(request_id)
            elif kind == "control_request":
                self._asked(str(request_id), content["request"])
        except (ValueError, KeyError, TypeError, AttributeError):
            log.warning("execution %s: an unreadable control line", self._execution.execution_id)

    def look(self) -> None:
        """Deliver the answers that came, and deny the calls that hold a worker others wait for."""
        if not self._open:
            return
        for approval in approvals.undelivered(self._context.db, self._execution.number):
            call = self._open.get(approval.approval_id)
            if call is not None and approvals.mark_delivered(self._context.db, approval.approval_id):
                del self._open[approval.approval_id]
                self._send(self._answered(call, approval))
                self._resolved(approval.approval_id, approval.state, approval.actor, approval.message)
        workers = self._context.config.workers
        if self._open and approvals.holding(self._context.db) >= workers and queries.claimable(self._context.db):
            self._expire(list(self._open), _WORKER_NEEDED)

    def expire(self, now: float) -> None:
        """Deny the calls whose hold is over."""
        over = [approval_id for approval_id, call in self._open.items() if call.expires <= now]
        self._expire(over, _UNANSWERED.format(self._context.config.hold_seconds))

    def _expire(self, approval_ids: list[str], message: str) -> None:
        for approval_id in approval_ids:
            if approvals.close(self._context.db, approval_id, "expired", message):
                self._send(_denied(self._open.pop(approval_id), message))
                self._resolved(approval_id, "expired", None, message)

    def _withdraw(self, request_id: str) -> None:
        for approval_id in [key for key, call in self._open.items() if call.request_id == request_id]:
            del self._open[approval_id]
            message = "Claude Code took the call back."
            with contextlib.suppress(OCCError):  # a held database: the end of the execution closes it
                approvals.close(self._context.db, approval_id, "withdrawn", message)
            self._resolved(approval_id, "withdrawn", None, message)

    def _asked(self, request_id: str, request: Mapping[str, Any]) -> None:
        if request["subtype"] == "hook_callback":
            call = request["input"]
            tool, given, by_hook = str(call["tool_name"]), call["tool_input"], True
            verdict = self._verdict(tool, given)
            if verdict.decision != "ask":
                self._send(_reply(request_id, _decided(verdict)))
                return
            reason, subagent = None, call.get("agent_id")
        elif request["subtype"] == "can_use_tool":
            tool, given, by_hook = str(request["tool_name"]), request["input"], False
            reason, subagent = request.get("decision_reason"), request.get("agent_id")
        else:
            return
        waiting = _Call(request_id, by_hook, given, time.monotonic() + self._context.config.hold_seconds)
        if self._execution.permissions == "plan" and tool not in (_PLAN, _QUESTION):
            self._send(_denied(waiting, _PLANNING))
        elif len(to_json(given).encode()) > MAX_INPUT_BYTES:
            self._send(_denied(waiting, _TOO_LARGE))
        else:
            self._ask(waiting, tool, texts.text_of(reason), texts.text_of(subagent))

    def _answered(self, call: _Call, approval: Approval) -> bytes:
        """Return the line for an answer. An edited input passes the rules once more: they may be others by now."""
        edited = approval.answer.updated_input if approval.answer is not None else None
        verdict = self._verdict(approval.tool, call.input if edited is None else edited)
        if verdict.decision == "deny" and approval.kind == "tool":
            return _denied(call, verdict.message)
        return _answered(call, approval)

    def _verdict(self, tool: str, given: Any) -> Verdict:
        try:
            return verdicts.of(self._context.db, self._context.config, self._execution, tool, given)
        except OCCError as error:
            return Verdict("deny", f"OCC could not read its rules, so this did not run: {error}")

    def _ask(self, call: _Call, tool: str, reason: str | None, subagent: str | None) -> None:
        kind = {_QUESTION: "question", _PLAN: "plan"}.get(tool, "tool")
        shown = outcome.redacted_value(call.input, self._context.config.cli_environment)
        request = Request(kind, tool, shown, _hash(call.input), shown != call.input, reason, subagent)
        try:
            approval = approvals.ask(
                self._context.db, self._execution.number, request, self._context.config.hold_seconds
            )
        except OCCError as error:
            self._send(_denied(call, f"OCC could not store the question, so this did not run: {error}"))
            return
        self._open[approval.approval_id] = call
        value, truncated = texts.cut(shown)
        data = {
            "approvalId": approval.approval_id,
            "kind": kind,
            "tool": texts.text_of(tool),
            "input": value,
            "inputHash": request.input_hash,
            "redacted": request.redacted,
            "reason": reason,
            "subagent": subagent,
            "askedAt": approval.asked_at,
            "expiresAt": approval.expires_at,
            "timestamp": milliseconds(),
        }
        self._store([("approval", to_json(data | ({"truncated": True} if truncated else {})))])

    def _resolved(self, approval_id: str, state: str, actor: str | None, message: str | None) -> None:
        data = {"approvalId": approval_id, "state": state, "actor": actor, "message": message}
        self._store([("approval_resolved", to_json(data | {"timestamp": milliseconds()}))])


def initialize_line() -> bytes:
    """The control request that registers OCC's hook; it goes to the CLI before the prompt."""
    hook = {"matcher": ".*", "hookCallbackIds": [_CALLBACK], "timeout": int(_SPARE_SECONDS) + 86400}
    request = {"subtype": "initialize", "hooks": {"PreToolUse": [hook]}}
    return json.dumps({"type": "control_request", "request_id": "occ-initialize", "request": request}).encode() + b"\n"


def _answered(call: _Call, approval: Approval) -> bytes:
    answer = approval.answer
    assert answer is not None  # noqa: S101 - it was decided by a person
    if answer.decision == "deny":
        return _denied(call, answer.message or "A person denied this.")
    if approval.kind == "question":
        return _allowed(call, {**call.input, "answers": answer.answers})
    if approval.kind == "plan":
        # The approved plan is carried out as any run: edits inside the workspace without asking.
        mode = {"type": "setMode", "mode": "acceptEdits", "destination": "session"}
        return _allowed(call, call.input, updatedPermissions=[mode])
    return _allowed(call, answer.updated_input or call.input)


def _allowed(call: _Call, given: Mapping[str, Any], **more: Any) -> bytes:
    if call.by_hook:
        changed = {} if given is call.input else {"updatedInput": given}
        return _reply(call.request_id, _hook("allow", **changed))
    # 2.1.197 refuses an allow without the input.
    return _reply(call.request_id, {"behavior": "allow", "updatedInput": given, **more})


def _denied(call: _Call, message: str) -> bytes:
    if call.by_hook:
        return _reply(call.request_id, _hook("deny", permissionDecisionReason=message))
    return _reply(call.request_id, {"behavior": "deny", "message": message})


def _decided(verdict: Verdict) -> dict[str, Any]:
    if verdict.decision == "cli":
        return {}
    return _hook(verdict.decision, **({"permissionDecisionReason": verdict.message} if verdict.message else {}))


def _hook(decision: str, **more: Any) -> dict[str, Any]:
    return {"hookSpecificOutput": {"hookEventName": "PreToolUse", "permissionDecision": decision, **more}}


def _reply(request_id: str, response: Mapping[str, Any]) -> bytes:
    body = {"subtype": "success", "request_id": request_id, "response": response}
    return json.dumps({"type": "control_response", "response": body}).encode() + b"\n"


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=True).encode()).hexdigest()
