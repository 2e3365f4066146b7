"""occ run: a folder and a prompt to an agent, its answer to the terminal."""

from __future__ import annotations

import contextlib
import re
import shlex
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from occ_app import errors
from occ_app.cli import ids, output, output_failed, remote, transcript
from occ_app.cli.approvals import asking
from occ_app.cli.pull import bring, show_changes
from occ_app.cli.upload import upload
from occ_app.client.agent_client import AgentClient
from occ_app.client.sse import StreamEvent
from occ_app.config.settings import PERMISSIONS
from occ_app.system.short_ids import new_execution_id

_LOOK_SECONDS = 2.0


class Limit(click.ParamType[float]):
    """A time limit in seconds; with a unit as in 90s, 5m or 2h, too."""

    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        match = re.fullmatch(r"(\d{1,8}(?:\.\d{1,3})?)([smh]?)", str(value).strip())
        seconds = 0.0 if match is None else float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]
        if seconds <= 0:
            self.fail(f"{value!r} is no time limit; write seconds, as in 300, or 90s, 5m, 2h.", param, ctx)
        return seconds


def _one_prompt(context: click.Context, parameter: click.Parameter, words: tuple[str, ...]) -> str:
    """Return the prompt. Raises UsageError for one whose quotes are missing."""
    if len(words) == 1:
        return words[0]
    if not words:
        raise click.MissingParameter(ctx=context, param=parameter)
    example = shlex.quote(" ".join(words)[:200])
    raise click.UsageError(f"The prompt must be one argument; put it in quotes: occ run {example}", context)


@click.command()
@click.argument("prompt", nargs=-1, required=True, callback=_one_prompt)
@click.option(
    "--dir",
    "folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder to send as a new workspace: the files that git lists.  [default: .]",
)
@click.option("--workspace", metavar="ID", help="Go on in this workspace instead of sending a folder.")
@click.option("--project", metavar="NAME", help="Run in this project of the machine; on a hub NAME@MACHINE.")
@click.option("--session", metavar="UUID", help="Go on with this Claude session of the workspace.")
@click.option("--model", metavar="MODEL", help="Model to use.")
@click.option("--timeout", type=Limit(), metavar="SECONDS", help="Time limit: 300, 90s, 5m, 2h.")
@click.option(
    "--permissions",
    type=click.Choice(PERMISSIONS),
    help="plan: read and plan; edit: edit files; ask: ask you about all other tools; full: ask about none.",
)
@click.option("--max-turns", type=click.IntRange(1), metavar="N", help="Limit on turns.")
@click.option("--agent", metavar="NAME", help="On a hub: the machine to run it on.")
@click.option("--label", metavar="LABEL", multiple=True, help="On a hub: what the machine must have; may be repeated.")
@remote.options("Agent or hub to send it to.")
@click.option("-d", "--detach", is_flag=True, help="Return once it is accepted, and print its id alone on a line.")
@click.option("--apply", is_flag=True, help="Write the changes into the folder, as `occ pull` does.")
@click.option("--json", "as_json", is_flag=True, help="Print each event as one line of JSON.")
def run(
    prompt: str,
    folder: Path | None,
    workspace: str | None,
    project: str | None,
    session: str | None,
    model: str | None,
    timeout: float | None,
    permissions: str | None,
    max_turns: int | None,
    agent: str | None,
    label: tuple[str, ...],
    url: str | None,
    token: str | None,
    pin: str | None,
    detach: bool,
    apply: bool,
    as_json: bool,
) -> int:
    """Send a folder and PROMPT to an agent and print the answer.

    The answer is printed as it arrives. The folder becomes a new workspace, named after it; nothing is overwritten.
    The exit code is the outcome of the execution. Ctrl-C asks whether to leave it running. With - the prompt is read
    from standard input.

    \b
    Examples:
      occ run --dir my-project "Read this project and write its README."
      occ run --workspace my-project-3f9a "Now translate it."
    """
    prompt = _prompt(prompt)
    _check_place(folder, workspace, project, session)
    if apply and (detach or project is not None):
        raise click.UsageError("--apply waits for the end of a run, and a project has its changes already.")
    client = remote.chosen(url, token, pin)
    workspace = _existing(client, workspace, project)
    if agent or label:
        _check_hub(client)
    sent = workspace is None
    if workspace is None:
        workspace = upload(client, folder or _here())
    execution_id = new_execution_id()
    settings: dict[str, Any] = {"sessionId": session, "model": model, "timeoutSeconds": timeout, "maxTurns": max_turns}
    settings |= {"permissions": permissions, "agent": agent, "labels": list(label) or None}
    options = {name: value for name, value in settings.items() if value is not None}
    accepted = f"{execution_id} in workspace {workspace}"
    events = _announced(client.execute(workspace, prompt, executionId=execution_id, **options), accepted)
    events = asking(client, events, here=not as_json)
    try:
        if detach:
            return _detached(events, execution_id, remote.again(url, token, pin))
        with _telling_what_it_waits_for(client, execution_id):
            final = transcript.print_events(events, as_json=as_json, waiting="waiting for the answer")
    except errors.Lost:
        _tell_it_goes_on(execution_id, remote.again(url, token, pin))
        raise
    except errors.Refused:
        if sent:
            _take_back(client, workspace, execution_id)
        raise
    except OSError as error:  # nobody reads the output any more, or it cannot be written
        output_failed(error)
        _tell_it_goes_on(execution_id, remote.again(url, token, pin))
        return 1
    except KeyboardInterrupt:
        return _interrupted(client, execution_id, workspace if sent else None, remote.again(url, token, pin))
    if not as_json:
        output.summary(final, _record(client, execution_id))
        if not apply:
            show_changes(client, execution_id, remote.again(url, token, pin), project=project is not None)
        _tell_session(final, workspace, remote.again(url, token, pin))
    return output.outcome(final) or (_applied(client, execution_id, folder) if apply else 0)


def _existing(client: AgentClient, workspace: str | None, project: str | None) -> str | None:
    """Return the whole id of the named workspace or project; None when a folder is to be sent."""
    if project is not None:
        return _project(client, project)
    return None if workspace is None else ids.workspace_id(client, workspace)


def _project(client: AgentClient, name: str) -> str:
    """Return the name by which an agent or hub knows a project. Raises NotFound."""
    found = [each for each in client.workspaces() if each.get("source") == "folder"]
    known = [each.get("alias") or each["workspaceId"] for each in found]
    meant = [
        known[place] for place, each in enumerate(found) if name in (each["name"], each["workspaceId"], known[place])
    ]
    if len(meant) == 1:
        return str(meant[0])
    which = f"Several machines have a project {name}" if meant else f"There is no project {name}"
    listed = f": {', '.join(meant or known)}" if known else "; `occ projects add PATH` on a machine adds one"
    raise errors.NotFound("WORKSPACE_NOT_FOUND", f"{which}{listed}.")


def _applied(client: AgentClient, execution_id: str, folder: Path | None) -> int:
    """Write the changes of a run that succeeded into the folder. Raises NotWritten for conflicts."""
    return bring(client, execution_id, folder or Path(), report=output.note)


def _detached(events: Iterator[StreamEvent], execution_id: str, again: str) -> int:
    """Print the id of an execution once it is accepted, and leave it running."""
    next(events)
    close = getattr(events, "close", None)
    if close is not None:
        close()
    output.echo(execution_id)
    output.note(f"watch it with: occ jobs tail --follow {execution_id}{again}")
    return 0


def _announced(events: Iterator[StreamEvent], accepted: str) -> Iterator[StreamEvent]:
    """Yield the events, after a line that names the execution once the first event shows that it was accepted."""
    for index, event in enumerate(events):
        if index == 0:
            output.note(accepted)
        yield event


def _record(client: AgentClient, execution_id: str) -> dict[str, Any] | None:
    with contextlib.suppress(errors.OCCError):
        return client.execution(execution_id)
    return None


def _take_back(client: AgentClient, workspace: str, execution_id: str) -> None:
    """Remove the upload of a prompt that was not accepted; an accepted one keeps its files."""
    with contextlib.suppress(errors.OCCError):
        try:
            client.execution(execution_id)
        except errors.Refused as unknown:
            if unknown.code == "EXECUTION_NOT_FOUND":
                client.delete_workspace(workspace)


def _check_hub(client: AgentClient) -> None:
    """Raises UsageError before anything is sent, where only a hub accepts the options."""
    try:
        client.call("GET", "/agents")
    except errors.Refused as refusal:
        if refusal.code == "NOT_FOUND":
            raise click.UsageError("--agent and --label are for a hub, and this is an agent; leave them out.") from None


def _prompt(argument: str) -> str:
    try:
        prompt = sys.stdin.buffer.read().decode() if argument == "-" else argument
    except (AttributeError, OSError, UnicodeDecodeError):
        raise click.UsageError("With - the prompt is read from standard input, which is closed or no UTF-8.") from None
    if not prompt.strip():
        raise click.UsageError("The prompt is empty; say what is to be done.")
    return prompt


def _check_place(folder: Path | None, workspace: str | None, project: str | None, session: str | None) -> None:
    if workspace is not None and project is not None:
        raise click.UsageError("--workspace and --project both name the place to run in: give one of them.")
    workspace = workspace or project
    if workspace is not None and folder is not None:
        raise click.UsageError(
            "--workspace and --project run in what is there already, and --dir sends a new one: give one of them."
        )
    if workspace is None and session is not None:
        raise click.UsageError("A session is one of a workspace: give its --workspace or --project too.")


def _here() -> Path:
    """The folder to send when none is named; a person's whole home goes nowhere by mistake."""
    folder = Path.cwd()
    try:
        home = Path.home().resolve()
    except RuntimeError:  # a user without one
        return folder
    if home.is_relative_to(folder):
        raise click.UsageError(
            f"All of {folder} would be sent, your home with it; go to a project, or name what to send with --dir."
        )
    return folder


@contextlib.contextmanager
def _telling_what_it_waits_for(client: AgentClient, execution_id: str) -> Iterator[None]:
    """Report why a hub's execution waits: a machine may not come for an hour."""
    done = threading.Event()

    def look() -> None:
        last = None
        while not done.wait(_LOOK_SECONDS):
            with contextlib.suppress(errors.OCCError):
                record = client.execution(execution_id)
                if record["state"] != "queued":
                    return
                reason = record.get("waitsFor")
                if reason and reason.partition(" (")[0] != last:  # the rest of a sentence may count minutes
                    last = reason.partition(" (")[0]
                    ahead = f", {record['position']} ahead" if record["position"] else ""
                    output.note(f"waiting for {reason}{ahead}; Ctrl-C leaves it or cancels it")

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _interrupted(client: AgentClient, execution_id: str, sent: str | None, again: str) -> int:
    """Ask whether to cancel the execution or leave it running.

    Without a terminal, and at another Ctrl-C, it is left running.

    One that was not accepted leaves nothing: `sent` is the workspace that was made for it, if any.
    """
    try:
        client.execution(execution_id)
    except errors.Refused as refusal:
        if refusal.code != "EXECUTION_NOT_FOUND":
            raise
        if sent is not None:
            _take_back(client, sent, execution_id)
        output.echo("occ: interrupted before it was sent; nothing runs.", err=True)
        return 130
    choice = "l"
    if sys.stdin.isatty():
        output.echo(err=True)
        with contextlib.suppress(click.Abort):
            choices = click.Choice(["l", "c"])
            choice = click.prompt("Leave it running or cancel it?", type=choices, default="l", err=True)
    if choice == "c":
        client.cancel(execution_id)
        output.echo("occ: cancelled.", err=True)
    else:
        _tell_it_goes_on(execution_id, again)
    return 130


def _tell_it_goes_on(execution_id: str, again: str) -> None:
    output.echo(f"occ: {execution_id} goes on; `occ jobs tail --follow {execution_id}{again}` shows it.", err=True)


def _tell_session(final: StreamEvent | None, workspace: str, again: str) -> None:
    session: Any = final.data.get("sessionId") if final else None
    if session and final is not None and final.data.get("code") != "SESSION_NOT_FOUND":
        output.note(f'go on with: occ run{again} --workspace {workspace} --session {session} "…"')
