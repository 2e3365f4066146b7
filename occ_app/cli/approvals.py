"""occ approvals, approve, deny, answer: the tool calls and questions of running executions that a person decides on."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import wraps
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

from occ_app import errors
from occ_app.cli import ids, output, remote
from occ_app.system.foreign_text import revealed, revealed_line

if TYPE_CHECKING:
    from occ_app.client.agent_client import AgentClient
    from occ_app.client.sse import StreamEvent

_SUMMARY_CHARACTERS = 200
_CHOICES = {"y": "yes", "a": "always", "n": "no, with a reason", "e": "edit first"}


def _with_client(command: Any) -> Any:
    """Give the command a client of the agent or hub that its options name."""

    @click.option("--hub", is_flag=True, help="Ask this machine's hub instead of its agent.")
    @remote.options("Agent or hub to ask; a hub has the approvals of all its machines.")
    @wraps(command)
    def asking(*, url: str | None, token: str | None, pin: str | None, hub: bool, **others: Any) -> None:
        command(remote.chosen(url, token, pin, hub=hub), **others)

    return asking


def _choosing(command: Any) -> Any:
    """Give the command a client, the approval that its ID or --last names, and the words after the ID."""

    @click.argument("approval_id", metavar="ID", required=False)
    @click.option("--last", is_flag=True, help="Take the newest one that waits instead of an ID.")
    @_with_client
    @wraps(command)
    def choosing(
        client: AgentClient, approval_id: str | None, last: bool, words: tuple[str, ...] = (), **others: Any
    ) -> None:
        if last and approval_id is not None:  # the first word then is none of an id
            words = (approval_id, *words)
            approval_id = None
        command(client, _get(client, ids.approval_id(client, approval_id, last=last)), words, **others)

    return choosing


@click.command("approvals")
@_with_client
@click.option("--all", "closed", is_flag=True, help="Those that are closed, too.")
@click.option("--json", "as_json", is_flag=True, help="Print what GET /approvals answers.")
def approvals(client: AgentClient, closed: bool, as_json: bool) -> None:
    """List the tool calls, questions and plans that wait for you.

    EXPIRES shows the time that is left: of OCC_HOLD_SECONDS, or of OCC_APPROVAL_SECONDS for a parked run. A hub lists
    those of all its machines that belong to your key's owner; an admin's key shows all.

    \b
    Examples:
      occ approvals
      occ approvals --hub
    """
    reply = client.call("GET", "/approvals" if closed else "/approvals?state=open")
    if as_json:
        output.echo(json.dumps(reply))
        return
    if not reply["approvals"]:
        output.echo("Nothing waits for a person.")
        return
    names = _machines(client, reply["approvals"])
    rows = [
        (
            each["approvalId"],
            *((revealed_line(names.get(each["agentId"], each["agentId"])),) if names else ()),
            each["executionId"],
            _state(each),
            output.since(each["askedAt"]),
            _left(each) if each["state"] == "open" else "",
            summary(each),
        )
        for each in reply["approvals"]
    ]
    machine = ("MACHINE",) if names else ()
    output.table([("ID", *machine, "EXECUTION", "STATE", "AGE", "EXPIRES", "WHAT"), *rows])


def _machines(client: AgentClient, asked: Sequence[Mapping[str, Any]]) -> Mapping[str, str]:
    """Return the names of the machines of a hub's approvals by id; none for an agent's."""
    ids_of_machines = {str(each["agentId"]) for each in asked if each.get("agentId")}
    return client.machine_names(ids_of_machines) if ids_of_machines else {}


def _state(asked: Mapping[str, Any]) -> str:
    pending = asked.get("pending")
    return str(asked["state"]) if pending is None else f"{asked['state']} ({pending['decision']} not delivered yet)"


@click.command("approve")
@click.option("--always", is_flag=True, help="Also let such calls run unasked in this workspace or project.")
@_choosing
def approve(client: AgentClient, asked: Mapping[str, Any], words: tuple[str, ...], always: bool) -> None:
    """Show a waiting tool call or plan whole, and let it run.

    Any beginning of its ID is enough. At a terminal you are asked once it is shown. --always also writes a rule for
    each command of the call as it is shown; `occ rules` lists and removes them.

    \b
    Examples:
      occ approve approval-3f9c --always
      occ approve --last
    """
    if words:
        raise click.UsageError("Give an ID or --last, not both.")
    output.echo(described(asked))
    if always:
        output.echo(_always(asked))
    if sys.stdin.isatty() and sys.stdout.isatty():
        click.confirm("Let it run?", abort=True, err=True)
    _answer(client, asked, {"decision": "allow"} | ({"remember": "workspace"} if always else {}))


def _always(asked: Mapping[str, Any]) -> str:
    """Return a line with the rules that allowing this always adds. Raises UsageError when there are none."""
    allowed = asked.get("alwaysAllows") or ()
    if not allowed:
        raise click.UsageError(
            "This cannot be allowed always: only commands of plain words, sites, and tools whose calls are all alike"
            " can. Approve it without --always."
        )
    return f"  always  {', '.join(map(revealed_line, allowed))}"


@click.command("deny")
@_choosing
@click.argument("words", metavar="[WHY]", nargs=-1)
def deny(client: AgentClient, asked: Mapping[str, Any], words: tuple[str, ...]) -> None:
    """Refuse a waiting tool call, question or plan.

    Claude reads WHY and continues. Any beginning of the ID is enough.

    \b
    Examples:
      occ deny approval-3f9c "use the test database"
      occ deny --last
    """
    if len(words) > 1:
        raise click.UsageError("The reason must be one argument; put it in quotes.")
    _answer(client, asked, {"decision": "deny"} | ({"message": words[0]} if words and words[0] else {}))


@click.command("answer")
@_choosing
@click.argument("words", metavar="[ANSWER]...", nargs=-1)
def answer(client: AgentClient, asked: Mapping[str, Any], words: tuple[str, ...]) -> None:
    """Answer a question of Claude.

    Give one ANSWER for each question in it, in order. Without any, each is asked here. Any beginning of the ID is
    enough.

    \b
    Examples:
      occ answer approval-3f9c "Blue"
      occ answer --last "Blue"
    """
    if asked["kind"] != "question":
        raise click.UsageError(f"This is a {asked['kind']}: use occ approve or occ deny.")
    questions = _questions(asked)
    if words and len(words) != len(questions):
        count = (
            "is 1 question; give one answer"
            if len(questions) == 1
            else f"are {len(questions)} questions; give as many answers"
        )
        raise click.UsageError(f"There {count}.")
    given = dict(zip(questions, words, strict=True)) if words else _ask_each(asked)
    _answer(client, asked, {"decision": "allow", "answers": given})


def asking(client: AgentClient, events: Iterator[StreamEvent], *, here: bool) -> Iterator[StreamEvent]:
    """Yield the events; with `here`, after each approval ask the person at this terminal, if there is one."""
    for event in events:
        yield event
        if event.name == "approval" and here and sys.stdin.isatty() and sys.stderr.isatty():
            try:
                asked = _get(client, str(event.data["approvalId"]))
                if asked["state"] == "open":  # of an older event it is closed
                    _decide_here(client, asked)
            except (errors.OCCError, click.UsageError) as error:  # an answer that came too late, say
                output.note(str(error))


def ask_open(client: AgentClient, execution_id: str) -> None:
    """Ask the person at this terminal, if there is one, about the open approvals of an execution."""
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
        subject = "; ".join(_questions(asked))
    line = revealed_line(f"{asked['tool']} {subject}".strip())
    return line if len(line) <= _SUMMARY_CHARACTERS else f"{line[:_SUMMARY_CHARACTERS]}… (`occ approve` shows it whole)"


def _left(asked: Mapping[str, Any]) -> str:
    """Return the time until a call that waits is denied, as in "in 95 s"."""
    left = (datetime.fromisoformat(asked["expiresAt"]) - datetime.now(UTC)).total_seconds()
    return "now" if left <= 0 else f"in {left:.0f} s" if left < 600 else f"in {output.duration(left)}"


def _decide_here(client: AgentClient, asked: Mapping[str, Any]) -> None:
    output.note(f"{described(asked)}\n  the run is parked, or this is denied, {_left(asked)} unless you answer")
    if asked["kind"] == "question":
        _answer(client, asked, {"decision": "allow", "answers": _ask_each(asked)})
        return
    choices = _choices(asked)
    if "a" in choices:
        output.note(_always(asked))
    choice = click.prompt(
        f"Let it run? ({'  '.join(f'{each}: {_CHOICES[each]}' for each in choices)})",
        type=click.Choice(choices),
        show_choices=False,
        err=True,
    )
    if choice == "n":
        why = click.prompt("Why (Claude reads this)", default="", show_default=False, err=True)
        _answer(client, asked, {"decision": "deny"} | ({"message": why} if why else {}))
    elif choice == "e":
        _answer(client, asked, {"decision": "allow", "updatedInput": _edited(asked["input"])})
    else:
        _answer(client, asked, {"decision": "allow"} | ({"remember": "workspace"} if choice == "a" else {}))


def _choices(asked: Mapping[str, Any]) -> list[str]:
    """Return the answers that fit: a call that is shown whole may be edited, and some may be allowed always."""
    edit = asked["kind"] == "tool" and not asked["redacted"]
    return ["y", *(["a"] if asked.get("alwaysAllows") else []), "n", *(["e"] if edit else [])]


def _edited(given: Any) -> Any:
    """Open the input in the person's editor. Raises UsageError when it is no JSON object any more."""
    text = click.edit(json.dumps(given, indent=2, ensure_ascii=False), extension=".json")
    try:
        changed = given if text is None else json.loads(text)
    except ValueError as error:
        raise click.UsageError(f"This is not valid JSON ({error}); no answer was sent.") from None
    if not isinstance(changed, dict):
        raise click.UsageError("The input must be one JSON object; no answer was sent.")
    return changed


def _ask_each(asked: Mapping[str, Any]) -> dict[str, str]:
    answers = {}
    for question in asked["input"]["questions"]:
        labels = [str(option["label"]) for option in question.get("options", ())]
        text = revealed_line(f"{question['question']} ({', '.join(labels)})" if labels else str(question["question"]))
        answers[str(question["question"])] = click.prompt(text, err=True)
    return answers


def _questions(asked: Mapping[str, Any]) -> list[str]:
    given = asked["input"].get("questions", []) if isinstance(asked["input"], dict) else []
    return [str(question.get("question", "")) for question in given if isinstance(question, dict)]


def _get(client: AgentClient, approval_id: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = client.call("GET", f"/approvals/{quote(approval_id, safe='')}")
    return found


def _answer(client: AgentClient, asked: Mapping[str, Any], body: Mapping[str, Any]) -> None:
    path = f"/approvals/{quote(asked['approvalId'], safe='')}"
    where = {"surface": "terminal"} if "surface" in asked else {}  # agents of an older OCC do not know it
    reply = client.call("POST", path, {**body, **where, "inputHash": asked["inputHash"]})
    if reply.get("pending") is None:
        output.note(f"{reply['approvalId']} is {reply['state']}")
    else:
        output.note(
            f"{reply['approvalId']}: the hub has your answer and delivers it once the machine can be reached; it counts"
            " if nobody answers there first"
        )
