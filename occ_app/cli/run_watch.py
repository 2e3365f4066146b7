"""A run while it goes on: why it waits, and the person who interrupts it."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator

import click

from occ_app import errors
from occ_app.cli import output
from occ_app.client.agent_client import AgentClient

_LOOK_SECONDS = 2.0


def take_back(client: AgentClient, workspace: str, execution_id: str) -> None:
    """Remove the upload of a prompt that was not accepted.

    An accepted one keeps its files.
    """
    with contextlib.suppress(errors.OCCError):
        try:
            client.execution(execution_id)
        except errors.Refused as unknown:
            if unknown.code == "EXECUTION_NOT_FOUND":
                client.delete_workspace(workspace)


@contextlib.contextmanager
def reporting_waits(client: AgentClient, execution_id: str) -> Iterator[None]:
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


def interrupted(client: AgentClient, execution_id: str, sent: str | None, again: str) -> int:
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
            take_back(client, sent, execution_id)
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
        tell_it_goes_on(execution_id, again)
    return 130


def tell_it_goes_on(execution_id: str, again: str) -> None:
    """Print how to watch an execution that goes on without this command."""
    output.echo(f"occ: {execution_id} goes on; `occ jobs tail --follow {execution_id}{again}` shows it.", err=True)
