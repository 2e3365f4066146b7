"""occ rules list | add | remove: calls that run unasked, are asked or denied."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import wraps
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

import click

from occ_app import errors
from occ_app.cli import ids, output, remote
from occ_app.system.foreign_text import visible_line

if TYPE_CHECKING:
    from occ_app.client.agent_client import AgentClient


@click.group()
def rules() -> None:
    """List, add and remove rules on the tool calls of runs.

    A rule that denies is looked at first, then one that asks, then one that allows. Without a rule a person is asked.

    \b
    Examples:
      occ rules list
      occ rules add "Bash(pytest *)" --workspace my-project
    """


def _with_client(command: Any) -> Any:
    """Give the command a client of the agent or hub that its options name."""

    @click.option("--hub", is_flag=True, help="Ask this machine's hub instead of its agent.")
    @remote.options("Agent or hub to ask. A hub needs --workspace.")
    @wraps(command)
    def asking(*, url: str | None, token: str | None, pin: str | None, hub: bool, **others: Any) -> None:
        command(remote.chosen(url, token, pin, hub=hub), **others)

    return asking


def _place(client: AgentClient, workspace: str | None) -> str:
    """Return the query for the rules of a workspace on a hub, empty for an agent.

    Raises UsageError without a workspace on a hub.
    """
    if not remote.is_hub(client):
        return ""
    if workspace is None:
        raise click.UsageError("The machines of a hub keep the rules: name a workspace with --workspace.")
    return f"?{urlencode({'workspaceId': ids.workspace(client, workspace)['workspaceId']})}"


@rules.command("list")
@click.option("--workspace", metavar="ID", help="Only of this workspace or project; needed on a hub.")
@click.option("--json", "as_json", is_flag=True, help="Print what GET /rules answers.")
@_with_client
def listing(client: AgentClient, workspace: str | None, as_json: bool) -> None:
    """List the rules of the operator and of people.

    A rule without an ID is a setting of the agent: OCC_ALLOW, OCC_DENY or OCC_TOOLS.

    \b
    Example:
      occ rules list
    """
    reply = client.call("GET", f"/rules{_place(client, workspace)}")
    if workspace is not None:
        whole = ids.workspace(client, workspace)["workspaceId"]
        reply = {"rules": [each for each in reply["rules"] if each["workspaceId"] == whole]}
    if as_json:
        output.echo(json.dumps(reply))
        return
    if not reply["rules"]:
        output.echo("No rules: a person is asked about every call but edits in the workspace.")
        return
    rows = [
        (each["ruleId"] or "", each["decision"], visible_line(each["rule"]), each["scope"], _subject(each))
        for each in reply["rules"]
    ]
    output.table([("ID", "DECISION", "RULE", "SCOPE", "OF"), *rows])


@rules.command()
@click.argument("rule")
@click.option("--deny", "decision", flag_value="deny", help="Refuse such calls.")
@click.option("--ask", "decision", flag_value="ask", help="Ask a person, also where another rule allows it.")
@click.option("--workspace", metavar="ID", help="Only for runs in this workspace or project.")
@click.option("--run", "execution_id", metavar="ID", help="Only for the conversation of this run.")
@_with_client
def add(client: AgentClient, rule: str, decision: str | None, workspace: str | None, execution_id: str | None) -> None:
    """Let calls like RULE run unasked, or refuse them, or ask about them.

    RULE is a tool, as in WebSearch or mcp__tickets, or a tool with a pattern: Bash(pytest *) for commands,
    WebFetch(domain:example.com) for a site. A line of Bash runs unasked when every command of it has such a rule and
    consists of plain words. Bash(pytest *) gives as much as Bash: a run that edits files can edit the tests.

    \b
    Examples:
      occ rules add "Bash(pytest *)" --workspace my-project
      occ rules add "Bash(git push *)" --deny
    """
    if workspace is not None and execution_id is not None:
        raise click.UsageError("Give --workspace or --run, not both.")
    body: dict[str, Any] = {"rule": rule, "decision": decision or "allow"}
    if execution_id is not None and remote.is_hub(client):
        raise click.UsageError("On a hub a rule is for a workspace: use --workspace.")
    _place(client, workspace)
    if workspace is not None:
        body["workspaceId"] = ids.workspace(client, workspace)["workspaceId"]
    if execution_id is not None:
        whole = ids.execution_id(ids.ServedExecutions(client), execution_id, last=False)
        body |= {"executionId": whole, "scope": "conversation"}
    added = client.call("POST", "/rules", body)
    output.echo(f"{added['ruleId']}: {added['decision']} {visible_line(added['rule'])} ({added['scope']})")


@rules.command()
@click.argument("rule_id", metavar="ID")
@click.option("--workspace", metavar="ID", help="On a hub: the workspace or project.")
@_with_client
def remove(client: AgentClient, rule_id: str, workspace: str | None) -> None:
    """Remove a rule.

    Any beginning of its ID is enough.

    \b
    Example:
      occ rules remove rule-3f9c
    """
    place = _place(client, workspace)
    known = [str(each["ruleId"]) for each in client.call("GET", f"/rules{place}")["rules"] if each["ruleId"]]
    whole = ids.the_one(rule_id, [each for each in known if each.startswith(rule_id)], errors.rule_not_found)
    client.call("DELETE", f"/rules/{quote(whole, safe='')}{place}")
    output.echo(f"{whole} is removed")


def _subject(rule: Mapping[str, Any]) -> str:
    return str(rule["conversationId"] or rule["executionId"] or rule["workspaceId"] or "")
