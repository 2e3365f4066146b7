"""The hub's messages in Slack, as blocks.

They show a run in progress, a finished run, an approval, or a few sentences.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from occ_app.executions.answers import Approval
from occ_app.executions.records import Execution
from occ_app.slack import questions
from occ_app.slack.outbox import Content
from occ_app.system.foreign_text import revealed, revealed_line

CANCEL, DROP, ALLOW, ALWAYS, DENY = "occ_cancel", "occ_drop", "occ_allow", "occ_always", "occ_deny"
DIFF, FILES, UNDO, ANSWER = "occ_diff", "occ_files", "occ_undo", "occ_answer"
REASON = "occ_reason"  # the button that opens the dialog
LONGEST_PART = 11_000  # characters of a markdown block; Slack takes 12,000
MOST_PARTS = 10
_LONGEST_TAIL, _LONGEST_INPUT, _LONGEST_RULES = 1200, 2600, 500
_MOST_FILES, _LONGEST_LIST = 50, 2500
_WORDS = {"succeeded": "Done", "failed": "Failed", "cancelled": "Cancelled"}
_SIGNS = {"succeeded": ":white_check_mark:", "failed": ":x:", "cancelled": ":no_entry_sign:"}


def escaped(text: str) -> str:
    """Return text escaped for mrkdwn, so that it mentions nobody and links nothing."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def duration(seconds: float) -> str:
    """Return a time in seconds as text for people."""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole} s"
    return (
        f"{whole // 60}:{whole % 60:02}" if whole < 3600 else f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
    )


def under_way(
    execution: Execution, machine: str | None, seconds: float, doing: str | None, tail: str, url: str | None
) -> Content:
    """Return the message of a waiting or running run.

    It shows the state, Claude's current tool, and the last lines of its text.
    """
    if execution.cancel_code:
        head = ":hourglass: Cancelling"
    elif execution.state == "queued":
        head = f":hourglass: Waiting{f' for {escaped(execution.waits_for)}' if execution.waits_for else ''}"
    elif execution.state == "parked":
        head = ":raised_hand: Waiting for you"
    else:
        head = f":gear: Running{f' on {escaped(machine)}' if machine else ''} · {duration(seconds)}"
        head += f" · {escaped(doing)}" if doing else ""
    blocks = [_section(head)]
    if tail.strip():
        shown = tail.strip()[-_LONGEST_TAIL:]
        blocks.append({"type": "section", "text": {"type": "plain_text", "text": shown, "emoji": False}})
    follow_up = execution.state == "queued" and execution.continues is not None
    label, action = ("Drop", DROP) if follow_up else ("Cancel", CANCEL)
    buttons = [] if execution.cancel_code else [_button(label, action, execution.execution_id, "danger")]
    blocks += _actions([*buttons, *_page(url)])
    return Content(_first_line(head), tuple(blocks))


def ended(execution: Execution, seconds: float, answer: str, url: str | None) -> tuple[Content, list[Content]]:
    """Return the message of a finished run, and the messages that follow it.

    The first has the beginning of the answer, the others its other parts.
    """
    word = _WORDS.get(execution.state, execution.state)
    facts = [f"{_SIGNS.get(execution.state, '')} {word}", duration(seconds), *_changed(execution), *_cost(execution)]
    head = " · ".join(facts)
    blocks = [_section(head)]
    if execution.state == "failed" and execution.error_message:
        blocks.append(_section(escaped(execution.error_message[:2000])))
    parts = list(split(answer.strip()))
    if parts:
        blocks.append(_markdown(parts[0]))
    more = [Content("The answer continues.", (_markdown(part),)) for part in parts[1:MOST_PARTS]]
    if len(parts) > MOST_PARTS:
        more.append(
            Content("The rest of the answer is on the page.", (_section("The rest is on the page of the run."),))
        )
    return Content(_first_line(head), (*blocks, *_actions([*_of_changes(execution), *_page(url)]))), more


def files(entries: Sequence[Mapping[str, Any]], url: str | None) -> Content:
    """List the files that a run changed, each with its added and deleted lines."""
    lines = list[str]()
    for entry in entries[:_MOST_FILES]:
        former = f"{entry['old_path']} → " if entry.get("old_path") else ""
        line = f"{former}{entry['path']} ({entry['status']}, +{entry['additions']} \u2212{entry['deletions']})"
        if sum(map(len, lines)) + len(lines) + len(line) > _LONGEST_LIST:
            break
        lines.append(line)
    left = len(entries) - len(lines)
    text = "\n".join([*lines, *([f"… and {left} more on the page of the run"] if left else [])])
    shown = {"type": "section", "text": {"type": "plain_text", "text": text or "None.", "emoji": False}}
    head = f"Files that the run changed: {len(entries)}"
    return Content(head, (_section(head), shown, *_actions(_page(url))))


def short(content: Content, url: str | None) -> Content:
    """Return a message without its text, which was too long for Slack."""
    head = content.text[:500]
    return Content(head, (_section(escaped(head)), _section("Its text is too long for Slack."), *_actions(_page(url))))


def approval(asked: Approval, *, private: bool, url: str | None) -> Content:
    """Return the message of an open approval.

    The input is shown, and can be allowed, only in a private channel and only if it fits as a whole.
    """
    what = {"question": "Claude asks you", "plan": "Claude has a plan"}.get(
        asked.kind, f"Claude wants to use {revealed_line(asked.tool)}"
    )
    blocks = [_section(f":raised_hand: *{escaped(what)}*")]
    asking = questions.of(asked) if private else ()
    shown = revealed(json.dumps(asked.input, indent=1, ensure_ascii=False))
    whole = private and not asked.truncated and len(shown) <= _LONGEST_INPUT and asked.kind == "tool"
    buttons: list[dict[str, Any]] = []
    if asking:
        blocks += [_section(escaped(one.text[:2500])) for one in asking]
        if len(asking) == 1 and asking[0].fits_buttons:
            buttons = [
                _button(option, f"{ALLOW}_{number}", _answer(asked, {asking[0].text: option}))
                for number, option in enumerate(asking[0].options)
            ]
        buttons.append(_button("Other…" if buttons else "Answer", ANSWER, asked.approval_id))
    elif whole:
        blocks.append({"type": "section", "text": {"type": "plain_text", "text": shown, "emoji": False}})
        buttons = [_button("Approve", ALLOW, _answer(asked, None), "primary")]
        rules = revealed_line(", ".join(asked.always_allows))
        if 0 < len(rules) <= _LONGEST_RULES:
            blocks.append(_section(f"Always in this workspace: {escaped(rules)}"))
            buttons.append(_button("Always", ALWAYS, _answer(asked, None)))
    else:
        where = "Its input is not shown here" if not private else "Slack cannot show the whole input"
        blocks.append(_section(f"{where}: decide on the page of the run."))
    buttons.append(_button("Deny", DENY, asked.approval_id, "danger"))
    buttons.append(_button("Deny with a reason", REASON, asked.approval_id))
    return Content(what, (*blocks, *_actions([*buttons, *_page(url)])))


def decided(asked: Approval) -> Content:
    """Return the message of a closed approval: the outcome and actor, no buttons."""
    state = "answered, not delivered yet" if asked.state == "open" else asked.state
    actor = asked.actor or (asked.pending.actor if asked.pending is not None else None)
    text = f"{asked.tool}: {state}{f' by {actor}' if actor else ''}"
    return Content(text, (_section(escaped(text)),))


def opening(user: str, prompt: str) -> Content:
    """Return the first message of a thread whose run was started with the form.

    It names the user and quotes the prompt.
    """
    shown = prompt if len(prompt) <= _LONGEST_TAIL else f"{prompt[:_LONGEST_TAIL]}…"
    quoted = "\n".join(f"> {line}" for line in escaped(shown).splitlines())
    return Content(f"<@{user}> started a run.", (_section(f"<@{user}> started a run:\n{quoted}"),))


def sentence(text: str) -> Content:
    """Return a message of mrkdwn text in which foreign text is already escaped."""
    return Content(text[:3000], (_section(text),))


def split(text: str) -> Iterator[str]:
    """Yield Markdown in parts of at most LONGEST_PART characters.

    It is cut between lines where possible. A code block that is cut is closed at the end of its part and opened again
    in the next.
    """
    fence = ""
    while text:
        opened = f"{fence}\n" if fence else ""
        room = LONGEST_PART - len(opened) - 4
        if len(text) <= room:
            yield opened + text
            return
        at = text.rfind("\n", room // 2, room)
        piece, text = (text[:room], text[room:]) if at < 0 else (text[:at], text[at + 1 :])
        for line in piece.split("\n"):
            if line.lstrip().startswith("```"):
                fence = "" if fence else line.strip()[:40]
        yield opened + piece + ("\n```" if fence else "")


def _answer(asked: Approval, answers: Mapping[str, str] | None) -> str:
    """Return the value of a button that allows.

    It has the approval's id, the hash of the input shown, and the answers.
    """
    return json.dumps({"id": asked.approval_id, "hash": asked.input_hash, "answers": answers}, ensure_ascii=False)


def _of_changes(execution: Execution) -> list[dict[str, Any]]:
    """Return the buttons of a run that changed files."""
    if not _changed(execution):
        return []
    undo = _button("Undo", UNDO, execution.execution_id, "danger")
    undo["confirm"] = {
        "title": {"type": "plain_text", "text": "Undo this run?"},
        "text": {"type": "plain_text", "text": "The files that it changed are restored to their earlier content."},
        "confirm": {"type": "plain_text", "text": "Undo"},
        "deny": {"type": "plain_text", "text": "Back"},
    }
    buttons = [_button("Diff", DIFF, execution.execution_id), _button("Files", FILES, execution.execution_id)]
    return [*buttons, undo]


def _changed(execution: Execution) -> list[str]:
    changes = execution.changes
    if not isinstance(changes, dict) or not changes.get("files"):
        return []
    count = changes["files"]
    sums = f"+{changes.get('additions', 0)} \u2212{changes.get('deletions', 0)}"
    return [f"{count} file{'' if count == 1 else 's'} changed ({sums})"]


def _cost(execution: Execution) -> list[str]:
    return [] if execution.cost_usd is None else [f"${execution.cost_usd:.2f}"]


def _first_line(text: str) -> str:
    return text.partition("\n")[0][:500]


def _section(text: str) -> dict[str, Any]:
    return {"type": "section", "text": {"type": "mrkdwn", "text": text[:3000]}}


def _markdown(text: str) -> dict[str, Any]:
    return {"type": "markdown", "text": text}


def _page(url: str | None) -> list[dict[str, Any]]:
    """Return the button that opens the run's page.

    A hub without a public address has none.
    """
    if url is None:
        return []
    label = {"type": "plain_text", "text": "Open"}
    return [{"type": "button", "text": label, "url": url, "action_id": "occ_open"}]


def _button(text: str, action: str, value: str, style: str | None = None) -> dict[str, Any]:
    label = {"type": "plain_text", "text": text}
    made = {"type": "button", "text": label, "action_id": action, "value": value}
    return made if style is None else {**made, "style": style}


def _actions(buttons: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"type": "actions", "elements": buttons}] if buttons else []
