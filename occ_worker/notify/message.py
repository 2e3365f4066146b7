"""The text of a notification.

It is short, and does not include the input of a tool call, which may hold secrets.
"""

from __future__ import annotations

from dataclasses import dataclass

from occ_app.executions.records import Execution
from occ_app.hub import channels
from occ_app.hub.deliveries import TEST, Claimed
from occ_app.system.foreign_text import visible_line

_LONGEST_TITLE, _LONGEST_TEXT = 80, 160
_STATES = {"succeeded": "done", "failed": "failed", "cancelled": "cancelled"}


@dataclass(frozen=True)
class Message:
    """A notification for a person to read.

    `url` is the page of the run, None for a hub without a public address; `path` is that page on the hub. Messages
    with the same `tag` are about the same thing: a later one replaces an earlier one where the channel can do that.
    """

    title: str
    text: str
    url: str | None
    urgent: bool
    mark: str  # the short name of an emoji
    tag: str
    path: str = "/"


def message_of(claimed: Claimed, public_url: str | None) -> Message:
    """Return the text of a claimed notification."""
    execution = claimed.execution
    if claimed.event == TEST or execution is None:
        return Message("Test from your OCC hub", "Notifications arrive here.", public_url, False, "bell", "occ-test")
    place = claimed.place or execution.workspace_id
    path = f"/runs/{execution.execution_id}"
    url = None if public_url is None else f"{public_url}{path}"
    if claimed.event == channels.NEEDS_YOU:
        text = f"{'Still open: ' if claimed.repeats else ''}{_question(claimed)} {_prompt(execution)}"
        tag = claimed.approval.approval_id if claimed.approval is not None else execution.execution_id
        title = _cut(f"{place} needs you", _LONGEST_TITLE)
        return Message(title, _cut(text, _LONGEST_TEXT), url, True, "raised_hand", tag, path)
    state = _STATES.get(execution.state, execution.state)
    failed = execution.state == "failed"
    reason = f" ({execution.error_message})" if failed and execution.error_message else ""
    return Message(
        title=_cut(f"{place}: {state}", _LONGEST_TITLE),
        text=_cut(f"{_prompt(execution)}{reason}", _LONGEST_TEXT),
        url=url,
        urgent=False,
        mark="x" if failed else "white_check_mark",
        tag=execution.execution_id,
        path=path,
    )


def _question(claimed: Claimed) -> str:
    """Return the reason why the run waits."""
    approval = claimed.approval
    if approval is None:
        return "Claude Code is not logged in on the machine; log in there."
    if approval.kind == "question":
        return "Claude has a question."
    return "Claude has a plan for you." if approval.kind == "plan" else f"Claude wants to use {approval.tool}."


def _prompt(execution: Execution) -> str:
    return _cut(execution.prompt or execution.execution_id, 80)


def _cut(text: str, most: int) -> str:
    """Return the beginning of a text as one line."""
    line = visible_line(" ".join(text.split()))
    return line if len(line) <= most else f"{line[: most - 1]}…"
