"""occ jobs edit | move | pause | resume: executions that wait and follow-ups."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

from occ_app.cli import ids, job_store, output, remote

if TYPE_CHECKING:
    from occ_app.client.agent_client import AgentClient


def _about_one(command: Callable[..., None]) -> Any:
    """Give a command the client and the whole id of the named execution."""

    @ids.choosing
    @job_store.of_the_hub
    @remote.options("Agent or hub to ask.")
    @wraps(command)
    def asking(
        *, execution_id: str | None, last: bool, url: str | None, token: str | None, pin: str | None, **others: Any
    ) -> None:
        client = remote.chosen(url, token, pin, hub=job_store.of_hub())
        command(client, ids.execution_id(ids.ServedExecutions(client), execution_id, last=last), **others)

    return asking


@click.command()
@_about_one
@click.option("--prompt", metavar="TEXT", help="The new prompt; - reads it from standard input.  [default: an editor]")
def edit(client: AgentClient, execution_id: str, prompt: str | None) -> None:
    """Change the prompt of a run that waits.

    Without --prompt your editor opens with the prompt. A run that has begun keeps its prompt.

    \b
    Examples:
      occ jobs edit run-4kx
      occ jobs edit run-4kx --prompt "Only fix the login test."
    """
    text = _written(client, execution_id) if prompt is None else _given(prompt)
    if text is None:
        output.echo(f"{execution_id} keeps its prompt.")
        return
    _change(client, execution_id, prompt=text)
    output.echo(f"{execution_id} has the new prompt.")


@click.command()
@_about_one
@click.option("--before", metavar="ID", help="The follow-up that it is to run before.")
@click.option("--to-end", is_flag=True, help="Move it behind all others of its conversation.")
def move(client: AgentClient, execution_id: str, before: str | None, to_end: bool) -> None:
    """Move a follow-up that waits among those of its conversation.

    \b
    Examples:
      occ jobs move run-4kx --before run-7pd
      occ jobs move run-4kx --to-end
    """
    if (before is None) != to_end:
        raise click.UsageError("Say where to: give either --before ID or --to-end.")
    target = None if before is None else ids.execution_id(ids.ServedExecutions(client), before, last=False)
    _change(client, execution_id, before=target)
    output.echo(f"{execution_id} runs " + ("last of its conversation." if target is None else f"before {target}."))


@click.command()
@_about_one
def pause(client: AgentClient, execution_id: str) -> None:
    """Keep a follow-up waiting until it is resumed.

    \b
    Example:
      occ jobs pause run-4kx
    """
    _change(client, execution_id, paused=True)
    output.echo(f"{execution_id} is paused; `occ jobs resume {execution_id}` lets it run.")


@click.command()
@_about_one
@click.option(
    "--all", "whole", is_flag=True, help="Resume all follow-ups of its conversation; ID may be any of its runs."
)
def resume(client: AgentClient, execution_id: str, whole: bool) -> None:
    """Let a paused follow-up run.

    Follow-ups are paused when a turn before them failed or was cancelled.

    \b
    Examples:
      occ jobs resume run-4kx
      occ jobs resume run-4kx --all
    """
    if not whole:
        _change(client, execution_id, paused=False)
        output.echo(f"{execution_id} is not paused.")
        return
    conversation = str(client.execution(execution_id)["conversationId"])
    client.call("POST", f"/conversations/{quote(conversation, safe='')}/resume")
    output.echo(f"No follow-up of {conversation} is paused.")


def _change(client: AgentClient, execution_id: str, **change: Any) -> None:
    client.call("PATCH", f"/executions/{quote(execution_id, safe='')}", change)


def _given(prompt: str) -> str:
    """Return the prompt of --prompt.

    Raises UsageError for one without text, and for input that is not UTF-8.
    """
    try:
        text = sys.stdin.buffer.read().decode() if prompt == "-" else prompt
    except (AttributeError, UnicodeDecodeError):
        raise click.UsageError("Standard input is closed or no UTF-8; give the prompt with --prompt TEXT.") from None
    if not text.strip():
        raise click.UsageError("The prompt is empty; write a task, or cancel the run with `occ jobs cancel`.")
    return text


def _written(client: AgentClient, execution_id: str) -> str | None:
    """Return the prompt as a person edits it; None when it stays as it is.

    Raises UsageError without a terminal.
    """
    if not output.interactive():
        raise click.UsageError("Without a terminal no editor can open; give the prompt with --prompt.")
    former = client.execution(execution_id)["prompt"] or ""
    text = click.edit(former, extension=".md")
    return None if text is None or text.rstrip("\n") == former.rstrip("\n") else _given(text)
