"""Approvals on a page, each with the form for the answer.

An approval is about a tool call, questions or a plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup
from werkzeug.datastructures import MultiDict

from occ_app import errors
from occ_app.api.services import services
from occ_app.executions.answers import Answer, Approval
from occ_app.hub import approvals as hub_approvals
from occ_app.hub.pages import markdown
from occ_app.hub.pages.tools import Call, View, prefix
from occ_app.system.foreign_text import revealed
from occ_app.web import callers

_MAX_QUESTIONS, _MAX_OPTIONS = 10, 20
_MAX_MESSAGE_CHARACTERS = 4000


@dataclass(frozen=True)
class Question:
    """A question with its options, each a label and a description.

    With `several` more than one option may be chosen.
    """

    number: int
    text: str
    options: tuple[tuple[str, str], ...]
    several: bool


@dataclass(frozen=True)
class Asked:
    """An approval as a page shows it, with its whole input."""

    approval: Approval
    folder: str = ""

    @property
    def call(self) -> Call:
        """Return the call as a tool's block, which has no result."""
        return Call(0, self.approval.tool, self.approval.input, folder=prefix(self.folder), over=True, asked=True)

    @property
    def heading(self) -> str:
        """Return the approval as one line."""
        if self.approval.kind == "question":
            return "Claude asks you"
        if self.approval.kind == "plan":
            return "Claude has a plan"
        verbs = {"Bash": "run a command", "Write": "write", "Edit": "edit", "MultiEdit": "edit", "WebFetch": "fetch"}
        verb = verbs.get(self.approval.tool, f"use {self.call.title}")
        subject = self.call.subject if self.approval.tool != "Bash" else ""
        return f"Claude wants to {verb} {subject}".strip()

    @property
    def views(self) -> list[View]:
        """Return the whole input."""
        return self.call.whole

    @property
    def plan(self) -> Markup | None:
        """Return the plan as HTML; None when it is in the answer above."""
        given = self.approval.input
        text = given.get("plan") if isinstance(given, Mapping) else None
        return markdown.html(revealed(text)) if isinstance(text, str) and text.strip() else None

    @property
    def questions(self) -> list[Question]:
        """Return the questions; empty for an approval of another kind."""
        given = self.approval.input
        found = given.get("questions") if isinstance(given, Mapping) else None
        if self.approval.kind != "question" or not isinstance(found, list):
            return []
        asked = [each for each in found[:_MAX_QUESTIONS] if isinstance(each, Mapping)]
        return [_question(number, each) for number, each in enumerate(asked)]


def _question(number: int, given: Mapping[str, Any]) -> Question:
    options = given.get("options")
    listed = [each for each in options[:_MAX_OPTIONS] if isinstance(each, Mapping)] if isinstance(options, list) else []
    pairs = tuple((str(each.get("label", "")), str(each.get("description") or "")) for each in listed)
    return Question(number, str(given.get("question", "")), pairs, given.get("multiSelect") is True)


def of_execution(execution_id: str, folder: str) -> list[Asked]:
    """Return the open approvals of an execution that the caller may see.

    Each has its whole input.
    """
    known, visible_to = services().approvals, callers.caller().visible_to
    open_ones = [each for each in known.listing("open", visible_to) if each.execution_id == execution_id]
    return [Asked(known.get(each.approval_id, visible_to), folder) for each in open_ones]


def waiting() -> list[Asked]:
    """Return the open approvals that the caller may answer, oldest first.

    Long inputs are cut.
    """
    listed = services().approvals.listing("open", callers.caller().visible_to)
    return [Asked(each) for each in listed if each.pending is None]


def answer(approval_id: str, form: MultiDict[str, str]) -> Approval:
    """Answer an approval with the values of a form.

    Raises InvalidRequest when the form has no decision or lacks an answer, and the errors of HubApprovals.answer.
    """
    known, caller = services().approvals, callers.caller()
    approval = known.get(approval_id, caller.visible_to)
    decision = form.get("decision", "")
    if decision not in ("allow", "deny"):
        raise errors.InvalidRequest("Choose whether to allow it or to deny it.")
    message = form.get("message", "").replace("\r\n", "\n").strip()[:_MAX_MESSAGE_CHARACTERS] or None
    given = Answer(
        decision,
        input_hash=form.get("hash") or None,
        message=message if decision == "deny" else None,
        answers=_answers(Asked(approval), form) if decision == "allow" and approval.kind == "question" else None,
        remember=form.get("remember") or None if decision == "allow" else None,
    )
    found: Approval = known.answer(approval_id, given, hub_approvals.person_of(services().db, caller, "page"))
    return found


def _answers(asked: Asked, form: MultiDict[str, str]) -> dict[str, str]:
    """Return the answers, keyed by the texts of their questions.

    Raises InvalidRequest when one is missing.
    """
    found = dict[str, str]()
    for question in asked.questions:
        chosen = [*form.getlist(f"answer-{question.number}"), form.get(f"other-{question.number}", "").strip()]
        text = ", ".join(each for each in chosen if each)
        if not text:
            raise errors.InvalidRequest(f"Answer this question, too: {question.text}")
        found[question.text] = text
    return found
