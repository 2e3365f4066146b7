"""occ run: a folder and a prompt to an agent, its answer to the terminal."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from occ_app import errors
from occ_app.cli import attached, output, output_failed, remote, remotes, run_end, run_target, run_watch, transcript
from occ_app.cli.approval_prompts import asking
from occ_app.cli.run_end import SentRun
from occ_app.cli.run_target import Target
from occ_app.client.sse import StreamEvent
from occ_app.config.settings import PERMISSIONS
from occ_app.system.short_ids import new_execution_id


class Limit(click.ParamType[float]):
    """A time limit in seconds; with a unit as in 90s, 5m, 2h or 3d, too."""

    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        match = re.fullmatch(r"(\d{1,8}(?:\.\d{1,3})?)([smhd]?)", str(value).strip())
        seconds = 0.0 if match is None else float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]
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


answer_within = click.option(
    "--answer-within",
    "answer_seconds",
    type=Limit(),
    metavar="SECONDS",
    help="Time for a person to answer while the run is parked: 12h, 2d.  [default: OCC_APPROVAL_SECONDS there]",
)


@click.command()
@click.argument("prompt", nargs=-1, required=True, callback=_one_prompt)
@click.option(
    "--dir",
    "folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder to send as a new workspace: all files but ignored ones.  [default: .]",
)
@click.option("--workspace", metavar="ID", help="Go on in this workspace instead of sending a folder.")
@click.option("--project", metavar="NAME", help="Run in this project of the machine; on a hub NAME@MACHINE.")
@click.option("--session", metavar="UUID", help="Go on with this Claude session of the workspace.")
@click.option("--model", metavar="MODEL", help="Model to use.")
@click.option(
    "--timeout",
    type=Limit(),
    metavar="SECONDS",
    help="Time limit, counted from the start of Claude Code: 300, 90s, 5m, 2h. On a hub the wait for a machine is"
    " limited by OCC_HUB_WAIT_SECONDS.",
)
@answer_within
@click.option(
    "--permissions",
    type=click.Choice(PERMISSIONS),
    help="plan: read and plan; edit: edit files; ask: ask you about all other tools; full: ask about none. A call that"
    " is asked about waits for OCC_HOLD_SECONDS (120); then the run is parked, or the call denied if it cannot be."
    " A hub takes a machine that allows it.  [default: edit]",
)
@click.option(
    "--deny",
    metavar="RULE",
    multiple=True,
    help="Refuse such tool calls in this run, as in 'Bash(git push *)'; may be repeated.",
)
@click.option("--max-turns", type=click.IntRange(1), metavar="N", help="Limit on turns.")
@click.option("--agent", metavar="NAME", help="On a hub: the machine to run it on.")
@click.option("--label", metavar="LABEL", multiple=True, help="On a hub: a label of the machine; may be repeated.")
@click.option("--notify", is_flag=True, help="On a hub: notify you of its end, also of a short run.")
@click.option("--hub", is_flag=True, help="Send it to this machine's hub, as --url local-hub does.")
@attached.option
@remote.options("Agent or hub to send it to.")
@click.option("-d", "--detach", is_flag=True, help="Return once it is accepted, and print its id alone on a line.")
@click.option(
    "-c",
    "--continue",
    "continued",
    is_flag=True,
    help="Continue where the folder was sent: workspace, session.",
)
@click.option("--git", is_flag=True, help="Send the git history, too, without configuration and hooks.")
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
    answer_seconds: float | None,
    permissions: str | None,
    deny: tuple[str, ...],
    max_turns: int | None,
    agent: str | None,
    label: tuple[str, ...],
    notify: bool,
    hub: bool,
    attach: list[dict[str, str]],
    url: str | None,
    token: str | None,
    pin: str | None,
    detach: bool,
    continued: bool,
    git: bool,
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
    prompt, url = _prompt(prompt), remotes.LOCAL_HUB if hub and url is None else url
    run_target.check(folder, workspace, project, session, continued=continued, git=git)
    _check_apply(apply=apply, detach=detach, project=project)
    client, again = remote.chosen(url, token, pin), remote.again(url, token, pin)
    if agent or label or notify:
        run_target.check_hub(client)
    place = remote.place_name(url, token, pin)
    if workspace is not None or project is not None:
        target = Target(run_target.existing(client, workspace, project), session, None)
    else:
        target = run_target.sent(client, place, folder, continued=continued, with_history=git)
    limits = {"model": model, "timeoutSeconds": timeout, "maxTurns": max_turns, "approvalSeconds": answer_seconds}
    choices: dict[str, Any] = {"sessionId": target.session, "permissions": permissions, "agent": agent, **limits}
    choices |= {"labels": list(label) or None, "notify": notify or None}
    choices |= {"attachments": attach or None, "deny": list(deny) or None}
    options = {name: value for name, value in choices.items() if value is not None}
    sent = SentRun(client, new_execution_id(), target, again, place, folder, project is not None, apply, as_json)
    return _watched(sent, client.execute(target.workspace, prompt, executionId=sent.execution_id, **options), detach)


def _check_apply(*, apply: bool, detach: bool, project: str | None) -> None:
    """Raise UsageError for --apply where there is nothing to write.

    Raise it also where the command does not wait for the run.
    """
    if apply and project is not None:
        raise click.UsageError("--apply cannot be used with --project: a project has its changes already.")
    if apply and detach:
        raise click.UsageError("--apply cannot be used with --detach: it waits for the end; use occ pull later.")


def _watched(run: SentRun, stream: Iterator[StreamEvent], detach: bool) -> int:
    """Print a run until its end, or its id alone where it is detached.

    Returns the exit code.
    """
    events = asking(run.client, _announced(stream, run.execution_id, run.target), here=not run.as_json)
    try:
        if detach:
            return _detached(events, run.execution_id, run.again)
        with run_watch.reporting_waits(run.client, run.execution_id):
            waiting = "waiting for the answer"
            final = transcript.print_events(events, as_json=run.as_json, waiting=waiting, again=run.again)
    except errors.Lost:
        run_watch.tell_it_goes_on(run.execution_id, run.again)
        raise
    except errors.Refused:
        if run.target.new:
            run_watch.take_back(run.client, run.target.workspace, run.execution_id)
        raise
    except OSError as error:  # nobody reads the output any more, or it cannot be written
        output_failed(error)
        run_watch.tell_it_goes_on(run.execution_id, run.again)
        return 1
    except KeyboardInterrupt:
        made = run.target.workspace if run.target.new else None
        return run_watch.interrupted(run.client, run.execution_id, made, run.again)
    return run_end.report(run, final)


def _detached(events: Iterator[StreamEvent], execution_id: str, again: str) -> int:
    """Print the id of an execution once it is accepted, and leave it running."""
    next(events)
    close = getattr(events, "close", None)
    if close is not None:
        close()
    output.echo(execution_id)
    output.note(f"watch it with: occ jobs tail --follow {execution_id}{again}")
    return 0


def _announced(events: Iterator[StreamEvent], execution_id: str, target: Target) -> Iterator[StreamEvent]:
    """Yield the events, and name and store the execution at the first one.

    The first event shows that it was accepted.
    """
    for index, event in enumerate(events):
        if index == 0:
            output.note(f"{execution_id} in workspace {target.workspace}")
            if target.sent is not None:
                run_end.keep(target.sent)
        yield event


def _prompt(argument: str) -> str:
    try:
        prompt = sys.stdin.buffer.read().decode() if argument == "-" else argument
    except (AttributeError, OSError, UnicodeDecodeError):
        raise click.UsageError("With - the prompt is read from standard input, which is closed or no UTF-8.") from None
    if not prompt.strip():
        raise click.UsageError("The prompt is empty; write a task.")
    return prompt
