"""`occ hub agents`: the machines of a hub, and whether they are given work."""

from __future__ import annotations

import json

import click

from occ_app.cli import output
from occ_app.cli.remote import hub_client, quoted


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print what GET /agents answers.")
@click.pass_context
def agents(context: click.Context, as_json: bool) -> None:
    """List the machines with their state, workers and labels.

    ALLOWS is the most that a run may do there: its OCC_PERMISSIONS.

    \b
    Examples:
      occ hub agents
      occ hub agents drain box
    """
    if context.invoked_subcommand is not None:
        return
    client = hub_client()
    reply = client.call("GET", "/agents")
    while reply["next"] is not None:
        more = client.call("GET", f"/agents?after={quoted(reply['next'])}")
        reply = {"agents": reply["agents"] + more["agents"], "next": more["next"]}
    if as_json:
        output.echo(json.dumps(reply))
        return
    rows = [
        (
            agent["name"],
            agent["agentId"],
            agent["state"],
            agent["via"] or "-",
            f"{agent['workers']['busy']}/{agent['workers']['total']}",
            agent["permissions"] or "edit",
            ",".join(agent["labels"]),
            ",".join(project["name"] for project in agent["projects"]),
            f"{agent['version']}, Claude {agent['claudeVersion'] or '-'}",
            f"{output.since(agent['lastSeenAt'])} ago",
        )
        for agent in reply["agents"]
    ]
    output.table(
        [("NAME", "ID", "STATE", "VIA", "BUSY", "ALLOWS", "LABELS", "PROJECTS", "VERSIONS", "LAST SEEN"), *rows],
        state=2,
    )


@agents.command()
@click.argument("name")
def drain(name: str) -> None:
    """Place no further runs on a machine; current runs continue.

    \b
    Example:
      occ hub agents drain box
    """
    hub_client().call("POST", f"/agents/{quoted(name)}/drain")
    output.echo(f"{name} is draining.")


@agents.command()
@click.argument("name")
def resume(name: str) -> None:
    """Place runs on a machine again.

    \b
    Example:
      occ hub agents resume box
    """
    hub_client().call("POST", f"/agents/{quoted(name)}/resume")
    output.echo(f"{name} takes work again.")


@agents.command()
@click.argument("name")
def remove(name: str) -> None:
    """Remove a machine.

    Its runs end, and its workspaces are placed again from their zips.

    \b
    Example:
      occ hub agents remove box
    """
    hub_client().call("DELETE", f"/agents/{quoted(name)}")
    output.echo(f"{name} is removed. It registers again while it runs: stop it there, or revoke its key.")
