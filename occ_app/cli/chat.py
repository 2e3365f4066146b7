"""occ chat: prompts and answers at a terminal, in one conversation."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import click

from occ_app.cli import folders, output, remote, remotes, run_end, run_target
from occ_app.cli.chat_conversation import HELP
from occ_app.cli.chat_input import Reader
from occ_app.cli.chat_session import Chat
from occ_app.cli.run import Limit, answer_within
from occ_app.cli.run_target import Target
from occ_app.client.agent_client import AgentClient
from occ_app.client.results import Changes
from occ_app.client.sse import StreamEvent
from occ_app.config.settings import PERMISSIONS
from occ_app.executions.records import FINAL_STATES


@click.command()
@click.option(
    "--dir",
    "folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder to send as a new workspace with the first prompt.  [default: .]",
)
@click.option("--workspace", metavar="ID", help="Chat in this workspace instead of sending a folder.")
@click.option("--project", metavar="NAME", help="Chat in this project of the machine; on a hub NAME@MACHINE.")
@click.option("--model", metavar="MODEL", help="Model to use.")
@click.option("--timeout", type=Limit(), metavar="SECONDS", help="Time limit of each turn: 300, 90s, 5m, 2h.")
@answer_within
@click.option(
    "--permissions",
    type=click.Choice(PERMISSIONS),
    help="As of occ run; you are asked here.  [default: ask, or less where the agent allows less]",
)
@click.option(
    "-c",
    "--continue",
    "continued",
    is_flag=True,
    help="Continue the newest conversation there; a folder's edits are sent.",
)
@click.option("--hub", is_flag=True, help="Chat through this machine's hub, as --url local-hub does.")
@click.option("--agent", metavar="NAME", help="On a hub: the machine to chat on.")
@click.option("--label", metavar="LABEL", multiple=True, help="On a hub: a label of the machine; may be repeated.")
@remote.options("Agent or hub to chat with.")
def chat(
    folder: Path | None,
    workspace: str | None,
    project: str | None,
    model: str | None,
    timeout: float | None,
    answer_seconds: float | None,
    permissions: str | None,
    continued: bool,
    hub: bool,
    agent: str | None,
    label: tuple[str, ...],
    url: str | None,
    token: str | None,
    pin: str | None,
) -> int:
    """Chat with Claude Code in a workspace.

    Each prompt continues the conversation. /help lists the commands, such as /diff and /undo. While Claude works,
    Ctrl-C lets you send it a text. Leaving the chat ends nothing. --agent and --label choose the machine of a new
    conversation, which stays there.

    \b
    Examples:
      occ chat --dir my-project
      occ chat --workspace my-project-3f9a -c
    """
    url = remotes.LOCAL_HUB if hub and url is None else url
    run_target.check(folder, workspace, project, None, continued=False, git=False)
    client = remote.chosen(url, token, pin)
    if agent or label:
        run_target.check_hub(client)
    place = remote.place_name(url, token, pin)
    options = {"model": model, "timeoutSeconds": timeout, "approvalSeconds": answer_seconds, "permissions": permissions}
    options = {name: value for name, value in options.items() if value is not None}
    where = _Where(client, place, folder, workspace, project)
    last = where.newest() if continued else None
    reader = Reader()
    if output.interactive():
        output.note(HELP.partition("\n\n")[0])
    placement = {name: value for name, value in (("agent", agent), ("labels", list(label))) if value}
    session = Chat(client, reader, where, options, last, placement)
    with reader.history():
        session.run()
    if session.last is not None:
        output.note(f"go on with: occ chat{remote.again(url, token, pin)}{where.option} -c")
    return 0


class _Where:
    """The workspace of a chat.

    It exists, or is a folder that is sent with the first prompt.
    """

    def __init__(
        self, client: AgentClient, place: str, folder: Path | None, workspace: str | None, project: str | None
    ) -> None:
        self._client = client
        self._place = place
        self._folder = folder
        self._named = workspace is not None or project is not None
        self._existing = run_target.existing(client, workspace, project) if self._named else ""
        self._target: Target | None = None
        flag = "--project" if project is not None else "--workspace"
        self.option = f" {flag} {self._existing}" if self._named else folders.option(folder)

    def newest(self) -> str | None:
        """Return the newest turn there, once the edits of a folder are sent.

        None when there is none. Raises UsageError for a folder that was never sent there.
        """
        if self._named:
            known = self._client.workspaces()
            ids = [each["workspaceId"] for each in known if self._existing in (each["workspaceId"], each.get("alias"))]
            found = self._conversation(ids[0]) if ids else None
            return None if found is None else str(found["lastExecutionId"])
        sent = folders.load((self._folder or Path()).resolve(), self._place)
        found = None if sent is None else self._conversation(sent.workspace)
        if sent is not None and found is not None and found["state"] not in FINAL_STATES:
            output.note("Claude still works there; the edits of the folder are sent by the next occ chat -c")
            self._target = Target(sent.workspace, None, sent)
        else:
            self._target = run_target.sent(self._client, self._place, self._folder, continued=True, with_history=False)
        return None if found is None else str(found["lastExecutionId"])

    def _conversation(self, workspace_id: str) -> dict[str, Any] | None:
        query = urlencode({"workspaceId": workspace_id, "limit": 1})
        found: list[dict[str, Any]] = self._client.call("GET", f"/conversations?{query}")["conversations"]
        return found[0] if found else None

    def workspace(self) -> str:
        if self._named:
            return self._existing
        if self._target is None:
            self._target = run_target.sent(self._client, self._place, self._folder, continued=False, with_history=False)
        return self._target.workspace

    def accepted(self) -> None:
        if self._target is not None and self._target.sent is not None:
            run_end.keep(self._target.sent)

    def ended(self, final: StreamEvent | None, changes: Changes | None) -> None:
        if self._target is not None:
            run_end.remember_end(self._target, final, changes)
