"""A call that Claude Code asks about, and the lines that answer it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from occ_app.executions.answers import Approval
from occ_worker.execution.verdicts import Verdict

# The beginning of a line, before the input of the call.
_HEAD_BYTES = 300
_REQUEST = re.compile(rb'^\{"type":"control_request","request_id":"([A-Za-z0-9-]{1,100})"')
_ASKED = b'"subtype":"can_use_tool"'


@dataclass(frozen=True)
class Call:
    """A call that the CLI waits for.

    It has the id of its control request, and whether a hook or the CLI's prompt asks.
    """

    request_id: str
    by_hook: bool
    tool: str
    input: Mapping[str, Any]
    tool_use_id: str | None
    subagent: str | None
    expires: float = 0.0


# The mode of a process that runs from its prompt on, for one that was resumed in a stricter one.
ACCEPT_EDITS = (
    b'{"type":"control_request","request_id":"occ-mode",'
    b'"request":{"subtype":"set_permission_mode","mode":"acceptEdits"}}\n'
)


def unreadable(line: bytes) -> Call | None:
    """Return the call of a line whose JSON cannot be read or stored.

    None for another line.
    """
    found = _REQUEST.search(line[:_HEAD_BYTES])
    if found is None:
        return None
    by_hook = b'"subtype":"hook_callback"' in line[:_HEAD_BYTES]
    return Call(found[1].decode(), by_hook, "", {}, None, None) if by_hook or _ASKED in line[:_HEAD_BYTES] else None


def answered(call: Call, approval: Approval) -> bytes:
    """Return the line for a person's answer."""
    answer = approval.answer
    assert answer is not None  # noqa: S101 - it was decided by a person
    if answer.decision == "deny":
        return denied(call, answer.message or "A person denied this.")
    if approval.kind == "plan":
        # The approved plan is carried out as any run: edits inside the workspace without asking.
        mode = {"type": "setMode", "mode": "acceptEdits", "destination": "session"}
        return allowed(call, call.input, updatedPermissions=[mode])
    return allowed(call, given_input(call, approval))


def given_input(call: Call, approval: Approval) -> Mapping[str, Any]:
    """Return the input with which an allowed call runs."""
    answer = approval.answer
    if answer is None:
        return call.input
    if approval.kind == "question":
        return {**call.input, "answers": answer.answers}
    return answer.updated_input or call.input


def allowed(call: Call, given: Mapping[str, Any], **more: Any) -> bytes:
    if call.by_hook:
        changed = {} if given is call.input else {"updatedInput": given}
        return hook_reply(call, "allow", **changed)
    # 2.1.197 refuses an allow without the input.
    return _reply(call.request_id, {"behavior": "allow", "updatedInput": given, **more})


def denied(call: Call, message: str) -> bytes:
    if call.by_hook:
        return hook_reply(call, "deny", permissionDecisionReason=message)
    return _reply(call.request_id, {"behavior": "deny", "message": message})


def deferred(call: Call) -> bytes:
    """Return the line that has the CLI end its turn.

    It asks about the call again when the session is resumed.
    """
    return hook_reply(call, "defer", permissionDecisionReason="A person is asked.")


def decided(call: Call, verdict: Verdict) -> bytes:
    """Return the line of a hook for a verdict that asks nobody."""
    if verdict.decision == "cli":
        return left_to_cli(call)
    return hook_reply(
        call, verdict.decision, **({"permissionDecisionReason": verdict.message} if verdict.message else {})
    )


def left_to_cli(call: Call) -> bytes:
    """Return the line with which a hook leaves the decision to the CLI.

    The CLI's own rules and prompt decide.
    """
    return _reply(call.request_id, {})


def hook_reply(call: Call, decision: str, **more: Any) -> bytes:
    output = {"hookEventName": "PreToolUse", "permissionDecision": decision, **more}
    return _reply(call.request_id, {"hookSpecificOutput": output})


def input_hash(value: Any) -> str:
    """Return the SHA-256 of an input's JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def _reply(request_id: str, response: Mapping[str, Any]) -> bytes:
    body = {"subtype": "success", "request_id": request_id, "response": response}
    return json.dumps({"type": "control_response", "response": body}).encode() + b"\n"
