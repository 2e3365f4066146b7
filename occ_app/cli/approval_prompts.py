"""Approvals at a terminal: their text, the questions, and the answer."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

from occ_app import errors
from occ_app.cli import output
from occ_app.system.foreign_text import revealed, revealed_line

if TYPE_CHECKING:
    from occ_app.client.agent_client import AgentClient
    from occ_app.client.sse import StreamEvent


_SUMMARY_CHARACTERS = 200
_CHOICES = {"y": "yes", "a": "always", "n": "no, with a reason", "e": "edit first"}


def rules_line(asked: Mapping[str, Any]) -> str:
    """Return a line with the rules that allowing this always adds.

    Raises UsageError when there are none.
    """
    allowed = asked.get("alwaysAllows") or ()
    if not allowed:
        raise click.UsageError(
            "This cannot be allowed always: only commands of plain words, sites, and tools whose calls are all alike"
            " can. Approve it without --always."
        )
    return f"  always  {', '.join(map(revealed_line, allowed))}"


def asking(client: AgentClient, events: Iterator[StreamEvent], *, here: bool) -> Iterator[StreamEvent]:
    """Yield the events; with `here`, ask at this terminal after each approval.

    Without a terminal nobody is asked.
    """
    for event in events:
        yield event
        if event.name == "approval" and here and sys.stdin.isatty() and sys.stderr.isatty():
            try:
                asked = stored(client, str(event.data["approvalId"]))
                if asked["state"] == "open":  # of an older event it is closed
                    _decide_here(client, asked)
            except (errors.OCCError, click.UsageError) as error:  # an answer that came too late, say
                output.note(str(error))


def ask_open(client: AgentClient, execution_id: str) -> None:
    """Ask at this terminal about the open approvals of an execution.

    Without a terminal nobody is asked.
    """
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return
    try:
        for asked in client.call("GET", "/approvals?state=open")["approvals"]:
            if asked["executionId"] == execution_id:
                _decide_here(client, asked)
    except (errors.OCCError, click.UsageError) as error:  # an answer that came too late, say
        output.note(str(error))


def described(asked: Mapping[str, Any]) -> str:
    """Return an approval for a person to read, with its whole input."""
    lines = [f"{asked['kind']}: {revealed_line(asked['tool'])}"]
    if asked.get("truncated"):
        lines.append("  only the beginning of the input is here: the machine does not answer the hub")
    if asked["reason"]:
        lines.append(f"  reason  {revealed_line(asked['reason'])}")
    for name, value in asked["input"].items() if isinstance(asked["input"], dict) else [("input", asked["input"])]:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        first, *rest = revealed(text).split("\n")
        lines.append(f"  {revealed_line(str(name))}: {first}")
        lines += [f"    {line}" for line in rest]
    return "\n".join(lines)


def summary(asked: Mapping[str, Any]) -> str:
    """Return one line that names the call."""
    given = asked["input"] if isinstance(asked["input"], dict) else {}
    subject = next((given[name] for name in ("command", "file_path", "url", "plan", "prompt") if name in given), "")
    if asked["kind"] == "question":
        subject = "; ".join(questions_of(asked))
    line = revealed_line(f"{asked['tool']} {subject}".strip())
    return line if len(line) <= _SUMMARY_CHARACTERS else f"{line[:_SUMMARY_CHARACTERS]}… (`occ approve` shows it whole)"


def time_left(asked: Mapping[str, Any]) -> str:
    """Return the time until a call that waits is denied, as in "in 95 s"."""
    left = (datetime.fromisoformat(asked["expiresAt"]) - datetime.now(UTC)).total_seconds()
    return "now" if left <= 0 else f"in {left:.0f} s" if left < 600 else f"in {output.duration(left)}"


def _decide_here(client: AgentClient, asked: Mapping[str, Any]) -> None:
    output.note(f"{described(asked)}\n  the run is parked, or this is denied, {time_left(asked)} unless you answer")
    if asked["kind"] == "question":
        send_answer(client, asked, {"decision": "allow", "answers": ask_each(asked)}, followed=True)
        return
    choices = _choices(asked)
    if "a" in choices:
        output.note(rules_line(asked))
    choice = click.prompt(
        f"Let it run? ({'  '.join(f'{each}: {_CHOICES[each]}' for each in choices)})",
        type=click.Choice(choices),
        show_choices=False,
        err=True,
    )
    if choice == "n":
        why = click.prompt("Why (Claude reads this)", default="", show_default=False, err=True)
        body: dict[str, Any] = {"decision": "deny"} | ({"message": why} if why else {})
    elif choice == "e":
        body = {"decision": "allow", "updatedInput": _edited(asked["input"])}
    else:
        body = {"decision": "allow"} | ({"remember": "workspace"} if choice == "a" else {})
    send_answer(client, asked, body, followed=True)


def _choices(asked: Mapping[str, Any]) -> list[str]:
    """Return the possible answers.

    A call that is shown whole may be edited, and some calls may be allowed always.
    """
    edit = asked["kind"] == "tool" and not asked["redacted"]
    return ["y", *(["a"] if asked.get("alwaysAllows") else []), "n", *(["e"] if edit else [])]


def _edited(given: Any) -> Any:
    """Open the input in the person's editor.

    Raises UsageError when the result is not a JSON object.
    """
    text = click.edit(json.dumps(given, indent=2, ensure_ascii=False), extension=".json")
    try:
        changed = given if text is None else json.loads(text)
    except ValueError as error:
        raise click.UsageError(f"This is not valid JSON ({error}); no answer was sent.") from None
    if not isinstance(changed, dict):
        raise click.UsageError("The input must be one JSON object; no answer was sent.")
    return changed


def ask_each(asked: Mapping[str, Any]) -> dict[str, str]:
    answers = {}
    for question in asked["input"]["questions"]:
        labels = [str(option["label"]) for option in question.get("options", ())]
        text = revealed_line(f"{question['question']} ({', '.join(labels)})" if labels else str(question["question"]))
        answers[str(question["question"])] = click.prompt(text, err=True)
    return answers


def questions_of(asked: Mapping[str, Any]) -> list[str]:
    given = asked["input"].get("questions", []) if isinstance(asked["input"], dict) else []
    return [str(question.get("question", "")) for question in given if isinstance(question, dict)]


def stored(client: AgentClient, approval_id: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = client.call("GET", f"/approvals/{quote(approval_id, safe='')}")
    return found


def send_answer(
    client: AgentClient, asked: Mapping[str, Any], body: Mapping[str, Any], *, followed: bool = False
) -> None:
    """Send an answer and print what became of it.

    A run that is `followed` shows the answer as one of its events, so that nothing is printed here.
    """
    path = f"/approvals/{quote(asked['approvalId'], safe='')}"
    where = {"surface": "terminal"} if "surface" in asked else {}  # agents of an older OCC do not know it
    reply = client.call("POST", path, {**body, **where, "inputHash": asked["inputHash"]})
    if reply.get("pending") is None:
        if not followed:
            output.note(f"{reply['approvalId']} is {reply['state']}")
    else:
        output.note(
            f"{reply['approvalId']}: the hub has your answer and delivers it once the machine can be reached; it counts"
            " if nobody answers there first"
        )
