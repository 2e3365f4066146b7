"""occ approvals, approve, deny, answer: tool calls and questions for a person."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from occ_app.cli import ids, output, remote
from occ_app.cli.approval_prompts import (
    ask_each,
    described,
    questions_of,
    rules_line,
    send_answer,
    stored,
    summary,
    time_left,
)
from occ_app.system.foreign_text import revealed_line

if TYPE_CHECKING:
    from occ_app.client.agent_client import AgentClient


def _with_client(command: Any) -> Any:
    """Give the command a client of the agent or hub that its options name."""

    @click.option("--hub", is_flag=True, help="Ask this machine's hub instead of its agent.")
    @remote.options("Agent or hub to ask; a hub has the approvals of all its machines.")
    @wraps(command)
    def asking(*, url: str | None, token: str | None, pin: str | None, hub: bool, **others: Any) -> None:
        command(remote.chosen(url, token, pin, hub=hub), **others)

    return asking


def _choosing(command: Any) -> Any:
    """Give the command a client, the chosen approval, and the words after the ID.

    The approval is chosen by its ID or --last.
    """

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
        command(client, stored(client, ids.approval_id(client, approval_id, last=last)), words, **others)

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
            time_left(each) if each["state"] == "open" else "",
            summary(each),
        )
        for each in reply["approvals"]
    ]
    machine = ("MACHINE",) if names else ()
    output.table([("ID", *machine, "EXECUTION", "STATE", "AGE", "EXPIRES", "WHAT"), *rows])


def _machines(client: AgentClient, asked: Sequence[Mapping[str, Any]]) -> Mapping[str, str]:
    """Return the names of the machines of a hub's approvals by id.

    Empty for an agent's.
    """
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
        output.echo(rules_line(asked))
    if sys.stdin.isatty() and sys.stdout.isatty():
        click.confirm("Let it run?", abort=True, err=True)
    send_answer(client, asked, {"decision": "allow"} | ({"remember": "workspace"} if always else {}))


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
    send_answer(client, asked, {"decision": "deny"} | ({"message": words[0]} if words and words[0] else {}))


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
    questions = questions_of(asked)
    if words and len(words) != len(questions):
        count = (
            "is 1 question; give one answer"
            if len(questions) == 1
            else f"are {len(questions)} questions; give as many answers"
        )
        raise click.UsageError(f"There {count}.")
    given = dict(zip(questions, words, strict=True)) if words else ask_each(asked)
    send_answer(client, asked, {"decision": "allow", "answers": given})
