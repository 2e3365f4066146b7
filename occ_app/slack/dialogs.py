"""The hub's dialogs in Slack.

They are the form that starts a run, the reason of a denial, and the answers to questions.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from occ_app.config.settings import PERMISSIONS
from occ_app.executions.answers import Approval
from occ_app.slack.questions import CHOICE, WORDS, Question

REASON, FORM, QUESTIONS = "occ_reason", "occ_form", "occ_questions"  # the callback ids of the dialogs
WHERE, MACHINE, MODEL, LEVEL, PROMPT = "where", "machine", "model", "permissions", "prompt"  # the blocks of the form
DEFAULT_LEVEL = "edit"
LONGEST_PROMPT = 3000  # characters; Slack allows no more in a field
MOST_OPTIONS = 100  # in a select
_LONGEST_OPTION = 75
_LEVELS = {"plan": "Plan only", "edit": "Edit files", "ask": "Ask before other tools", "full": "Everything"}


def reason(approval_id: str, channel: str) -> dict[str, Any]:
    """Return the dialog that asks for the reason of a denial, which Claude reads."""
    field = {"type": "plain_text_input", "action_id": REASON, "multiline": True, "max_length": 2000}
    block = _input(REASON, "Reason, which Claude reads", field)
    return _modal(REASON, {"id": approval_id, "channel": channel}, "Deny", "Deny", [block])


def form(
    channel: str,
    user: str,
    places: Sequence[tuple[str, str]],
    machines: Sequence[tuple[str, str]],
    chosen: str | None,
) -> dict[str, Any]:
    """Return the form that starts a run.

    `places` and `machines` are pairs of value and name; `chosen` is the value of the selected place. A select has at
    most MOST_OPTIONS; further options are left out. Raises ValueError without any place.
    """
    if not places:
        raise ValueError("a form needs a workspace to choose")
    listed = [each for each in places if each[0] == chosen] + [each for each in places if each[0] != chosen]
    levels = [(level, _LEVELS.get(level, level)) for level in PERMISSIONS]
    model = {"type": "plain_text_input", "action_id": MODEL, "max_length": 256}
    prompt = {"type": "plain_text_input", "action_id": PROMPT, "multiline": True, "max_length": LONGEST_PROMPT}
    return _modal(
        FORM,
        {"channel": channel, "user": user},
        "New task",
        "Run",
        [
            _input(PROMPT, "Task", prompt),
            _input(WHERE, "Workspace or project", _select(WHERE, listed, chosen)),
            *([_input(MACHINE, "Machine", _select(MACHINE, machines), optional=True)] if machines else []),
            _input(LEVEL, "Permissions", _select(LEVEL, levels, DEFAULT_LEVEL)),
            _input(MODEL, "Model", model, optional=True),
        ],
    )


def questions(asked: Approval, asking: Sequence[Question], channel: str) -> dict[str, Any]:
    """Return the dialog that answers Claude's questions.

    Each question offers its options, a text field, or both.
    """
    blocks = list[dict[str, Any]]()
    for number, one in enumerate(asking):
        words = {"type": "plain_text_input", "action_id": WORDS, "multiline": True, "max_length": 2000}
        if one.options:
            element = _select(CHOICE, [(str(index), name) for index, name in enumerate(one.options)])
            kind = {"type": "multi_static_select"} if one.several else {}
            blocks.append(_input(f"{CHOICE}{number}", one.text, {**element, **kind}, optional=True))
            blocks.append(_input(f"{WORDS}{number}", "In your own words", words, optional=True))
        else:
            blocks.append(_input(f"{WORDS}{number}", one.text, words))
    metadata = {"id": asked.approval_id, "hash": asked.input_hash, "channel": channel}
    return _modal(QUESTIONS, metadata, "Claude asks you", "Answer", blocks)


def _modal(
    callback: str, metadata: Mapping[str, Any], title: str, submit: str, blocks: list[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "type": "modal",
        "callback_id": callback,
        "private_metadata": json.dumps(metadata),
        "title": _plain(title),
        "submit": _plain(submit),
        "close": _plain("Back"),
        "blocks": blocks,
    }


def _input(block_id: str, label: str, element: Mapping[str, Any], *, optional: bool = False) -> dict[str, Any]:
    made = {"type": "input", "block_id": block_id, "element": element, "label": _plain(label)}
    return {**made, "optional": True} if optional else made


def _select(action: str, options: Iterable[tuple[str, str]], chosen: str | None = None) -> dict[str, Any]:
    """Return a select of pairs of value and name.

    `chosen` is the value selected initially.
    """
    listed = [_option(*each) for each in options][:MOST_OPTIONS]
    made = {"type": "static_select", "action_id": action, "options": listed}
    first = [option for option in listed if option["value"] == chosen]
    return {**made, "initial_option": first[0]} if first else made


def _option(value: str, name: str) -> dict[str, Any]:
    return {"text": _plain(name if len(name) <= _LONGEST_OPTION else f"{name[: _LONGEST_OPTION - 1]}…"), "value": value}


def _plain(text: str) -> dict[str, Any]:
    return {"type": "plain_text", "text": text}
