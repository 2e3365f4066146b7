"""occ restore: undo the changes of an execution or of an earlier restore."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import click

from occ_app import errors
from occ_app.cli import ids, output, remote
from occ_app.cli.diff import refuse_running
from occ_app.client.agent_client import AgentClient

_RESTORE_ID = r"restore-[0-9a-f]{12}"


@click.command()
@ids.choosing
@click.option(
    "--to",
    type=click.Choice(["start", "end"]),
    default="start",
    show_default=True,
    help="start: undo the changes of the execution; end: make them again.",
)
@click.option("--force", is_flag=True, help="Replace files that were edited there since, too.")
@remote.options("Agent or hub to ask.")
def restore(
    execution_id: str | None, last: bool, to: str, force: bool, url: str | None, token: str | None, pin: str | None
) -> None:
    """Undo the changes of an execution in its workspace.

    Changes by programs that it ran are included. If files were edited there since, they are named and nothing is
    restored. A restore can be undone, too: give its ID.

    Example: occ restore run-k3v9q2x7ab
    """
    client = remote.chosen(url, token, pin)
    served = ids.ServedExecutions(client)
    if execution_id and re.fullmatch(_RESTORE_ID, execution_id) and not served.has(execution_id):
        meant, found = execution_id, _workspaces(client)
    else:
        meant = ids.execution_id(served, execution_id, last=last)
        refuse_running(client, meant)
        found = iter((str(client.execution(meant)["workspaceId"]),))
    workspace, reply = _restored(client, found, {"executionId": meant, "to": to, "force": force})
    output.echo(f"Workspace {workspace}: {output.counted(reply['files'], 'file')} restored.")
    if reply.get("restoreId"):
        output.note(f"undo this with: occ restore {reply['restoreId']}{remote.again(url, token, pin)}")


def _workspaces(client: AgentClient) -> Iterator[str]:
    """Yield the workspaces that a restore may be of: no list of the API names it."""
    for each in client.workspaces():
        yield str(each["workspaceId"])


def _restored(client: AgentClient, found: Iterator[str], body: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Restore in the first of these workspaces that has the id.

    Returns the workspace and the reply. Raises Refused.
    """
    refused: errors.Refused | None = None
    for workspace in found:
        try:
            return workspace, client.call("POST", f"/workspaces/{quote(workspace, safe='')}/restore", body)
        except errors.Refused as refusal:
            if refusal.code not in ("EXECUTION_NOT_FOUND", "WORKSPACE_NOT_FOUND", "AGENT_UNREACHABLE"):
                raise
            if refused is None or refused.status == 404:
                refused = refusal  # a machine that was not reached may know the id
    raise refused or errors.execution_not_found(str(body["executionId"]))
