"""Claude's questions in Slack, and the answers of a dialog."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from occ_app.errors import RequestError
from occ_app.executions.answers import Approval

MOST = 10
_MOST_OPTIONS, _LONGEST_TEXT = 50, 2000
_MOST_BUTTONS, _LONGEST_BUTTON = 5, 70
CHOICE, WORDS = "choice", "words"  # prefixes of a dialog's block ids, followed by the question's number


@dataclass(frozen=True)
class Question:
    """A question and the labels of its options; `several` may be chosen."""

    text: str
    options: tuple[str, ...]
    several: bool

    @property
    def fits_buttons(self) -> bool:
        """Return whether buttons can answer it.

        It must have few short options, of which one is chosen.
        """
        short = all(len(option) <= _LONGEST_BUTTON for option in self.options)
        return not self.several and 0 < len(self.options) <= _MOST_BUTTONS and short


def of(asked: Approval) -> tuple[Question, ...]:
    """Return the questions of an approval.

    Returns none unless each of them can be shown whole.
    """
    found = asked.input.get("questions") if asked.kind == "question" and isinstance(asked.input, dict) else None
    if asked.truncated or not isinstance(found, list) or not 0 < len(found) <= MOST:
        return ()
    questions = [_question(each) for each in found]
    return tuple(each for each in questions if each is not None) if None not in questions else ()


def answers(questions: Sequence[Question], fields: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """Return the answers of a dialog, keyed by the texts of their questions.

    Raises RequestError when one is missing.
    """
    found = dict[str, str]()
    for number, question in enumerate(questions):
        chosen = [int(value) for value in fields.get(f"{CHOICE}{number}", ()) if value.isdecimal()]
        labels = [question.options[index] for index in chosen if index < len(question.options)]
        text = ", ".join([*labels, *fields.get(f"{WORDS}{number}", ())])
        if not text:
            raise RequestError("INVALID_REQUEST", f"Answer this question, too: {question.text}")
        found[question.text] = text
    return found


def _question(given: object) -> Question | None:
    """Return a question.

    Returns None for one that does not have Claude Code's form or is too long for a dialog.
    """
    if not isinstance(given, dict):
        return None
    text, listed = given.get("question"), given.get("options") or []
    if not isinstance(text, str) or not 0 < len(text) <= _LONGEST_TEXT or not isinstance(listed, list):
        return None
    labels = [each.get("label") for each in listed if isinstance(each, dict)]
    if len(labels) != len(listed) or len(labels) > _MOST_OPTIONS:
        return None
    if not all(isinstance(label, str) and label.strip() for label in labels):
        return None
    return Question(text, tuple(str(label) for label in labels), given.get("multiSelect") is True)
