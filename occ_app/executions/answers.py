"""Approvals and answers as values, and the rules that an answer must keep."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from occ_app.config.permission_rules import Rule
from occ_app.errors import Conflict, InvalidRequest
from occ_app.executions import remembering
from occ_app.system.compact_json import to_json

STATES = ("open", "allowed", "denied", "answered", "expired", "withdrawn")
KINDS = ("tool", "question", "plan")
SURFACES = ("api", "terminal", "page", "slack")
"""Where a person answers."""


@dataclass(frozen=True)
class Request:
    """A tool call that Claude Code asks about.

    `input_hash` is the SHA-256 of the whole input's JSON. `input` is shown; it is `redacted` when secrets were removed
    from it.
    """

    kind: str
    tool: str
    input: Any
    input_hash: str
    redacted: bool = False
    reason: str | None = None
    subagent: str | None = None


@dataclass(frozen=True)
class Answer:
    """The decision of a person.

    `message` explains a denial; `answers` map the questions' texts to their answers. `remember`, one of
    remembering.REMEMBER, also stores rules that allow such calls from now on.
    """

    decision: str
    input_hash: str | None = None
    message: str | None = None
    updated_input: Mapping[str, Any] | None = None
    answers: Mapping[str, Any] | None = None
    remember: str | None = None


@dataclass(frozen=True)
class Person:
    """The person who answers: a name to show, an owner, and the surface.

    The person sees the approvals of this owner (None: all). `key_id` is the key of a hub that the person used, if any.
    """

    actor: str
    visible_to: str | None = None
    surface: str = "api"
    viewer: bool = False
    key_id: str | None = None


@dataclass(frozen=True)
class Pending:
    """An answer that a hub has and the machine does not, as far as the hub knows."""

    answer: Answer
    actor: str
    surface: str
    answered_at: str
    key_id: str | None = None

    @property
    def decision(self) -> str:
        return self.answer.decision


@dataclass(frozen=True)
class Approval:
    """A row of `approvals` with the ids of its execution, workspace and machine.

    Only a hub has a machine's id. A hub copies the rows of its machines. Only there an answer may be `pending`, a
    `problem` (a code and a sentence) is why the last one was refused, and an input is `truncated` while the hub has
    only its beginning.
    """

    approval_id: str
    execution: int
    execution_id: str
    workspace_id: str
    kind: str
    tool: str
    input: Any
    input_hash: str
    redacted: bool
    reason: str | None
    subagent: str | None
    asked_at: str
    expires_at: str
    state: str
    message: str | None
    answer: Answer | None
    actor: str | None
    decided_at: str | None
    delivered_at: str | None
    agent_id: str | None = None
    surface: str | None = None
    pending: Pending | None = None
    problem: Mapping[str, Any] | None = None
    truncated: bool = False

    def always(self, edited: Any = None) -> list[Rule]:
        """Return the rules that allowing this always would add.

        With an edited input, the rules for that.
        """
        whole = not self.redacted and not self.truncated
        return remembering.always(self.kind, self.tool, self.input if edited is None else edited, shown_whole=whole)

    @property
    def always_allows(self) -> list[str]:
        return [rule.text for rule in self.always()]


def check(approval: Approval, answer: Answer) -> None:
    """Raise InvalidRequest when an answer does not fit its approval.

    Raise Conflict for an edit of a redacted input.
    """
    if answer.decision == "deny" or approval.kind != "tool":
        remembering.check_scope(answer.remember, [])
    if answer.decision == "deny":
        return
    remembering.check_scope(answer.remember, approval.always(answer.updated_input))
    if answer.input_hash != approval.input_hash:
        message = "`inputHash` is not that of this approval: read it again, look at the whole input, and answer then."
        raise InvalidRequest(message, {"inputHash": ["Not the hash of the input."]})
    if answer.updated_input is not None and approval.redacted:
        raise Conflict(
            "INPUT_REDACTED",
            "This input has secrets that are not shown, so it cannot be edited; allow or deny it as it is.",
        )
    if answer.updated_input is not None and approval.kind != "tool":
        message = "A question or a plan cannot be edited."
        raise InvalidRequest(message, {"updatedInput": ["Cannot be edited."]})
    if (answer.answers is not None) != (approval.kind == "question"):
        message = (
            "Answer a question with `answers`, an object from the question's text to its answer, and nothing else."
        )
        raise InvalidRequest(message, {"answers": ["Wanted for questions alone."]})


def state_after(approval: Approval, answer: Answer) -> str:
    """Return the state of an open approval once this answer is taken."""
    if answer.decision == "deny":
        return "denied"
    return "answered" if approval.kind == "question" else "allowed"


def stored(answer: Answer) -> str:
    """Return an answer as its row stores it.

    The hash that came with it was checked, and equals that of the row.
    """
    return to_json(
        {
            "decision": answer.decision,
            "message": answer.message,
            "updated_input": answer.updated_input,
            "answers": answer.answers,
            "remember": answer.remember,
        }
    )


def answer_of(value: str | None) -> Answer | None:
    """Return the answer that a row keeps."""
    return None if value is None else Answer(**json.loads(value))


def closed(approval: Approval) -> Conflict:
    """Return the error for an answer to a closed approval."""
    how = f"{approval.state} by {approval.actor}" if approval.actor else approval.state
    return Conflict(
        "APPROVAL_CLOSED",
        f"Approval {approval.approval_id} is {how} already; nothing was changed.",
        closing(approval),
    )


def closing(approval: Approval) -> dict[str, Any]:
    """Return how an approval was closed, as the details of an error."""
    return {
        "approvalId": approval.approval_id,
        "state": approval.state,
        "actor": approval.actor,
        "surface": approval.surface,
    }
