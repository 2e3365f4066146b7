"""occ jobs show and occ jobs tail: one execution, its record and its output."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import click

from occ_app.cli import ids, job_store, output, remote, transcript
from occ_app.database.database import Database
from occ_app.executions import events
from occ_app.executions import queries as executions
from occ_app.executions.records import Execution
from occ_app.home import daemon

if TYPE_CHECKING:
    from occ_app.client.sse import StreamEvent


@click.command()
@ids.choosing
@job_store.of_the_hub
@remote.options("Agent or hub to ask.")
@click.option("--json", "as_json", is_flag=True, help="Print what GET /executions/ID answers.")
def show(
    execution_id: str | None, last: bool, url: str | None, token: str | None, pin: str | None, as_json: bool
) -> None:
    """Show everything about one execution.

    Any beginning of its ID is enough.

    \b
    Examples:
      occ jobs show run-4kx
      occ jobs show --last
    """
    client = remote.elsewhere(url, token, pin, hub=job_store.of_hub())
    if client is not None:
        record = client.execution(ids.execution_id(ids.ServedExecutions(client), execution_id, last=last))
    else:
        database = job_store.database()
        meant = ids.execution_id(ids.StoredExecutions(database), execution_id, last=last)
        record = job_store.dumped("ExecutionRecord", executions.get(database, meant))
    if as_json:
        output.echo(json.dumps(record))
        return
    width = max(map(len, record))
    line_break, indented = "\n", "\n" + " " * (width + 2)  # a value that looks like another field is seen as it is
    for name, value in record.items():
        if value is not None:
            text = str(value) if isinstance(value, (str, int, float)) else json.dumps(value, sort_keys=True)
            text = f"{value:.4f}" if name == "costUsd" else text
            output.echo(f"{name.ljust(width)}  {text.replace(line_break, indented)}")


@click.command()
@ids.choosing
@job_store.of_the_hub
@remote.options("Agent or hub to ask.")
@click.option("--follow", "-f", is_flag=True, help="Go on until the execution is over; its outcome is the exit code.")
@click.option("--json", "as_json", is_flag=True, help="Print each event as one line of JSON.")
def tail(
    execution_id: str | None,
    last: bool,
    follow: bool,
    as_json: bool,
    url: str | None,
    token: str | None,
    pin: str | None,
) -> int:
    """Print the output of one execution.

    With --follow the output is printed as it arrives. Any beginning of its ID is enough.

    \b
    Examples:
      occ jobs tail run-4kx
      occ jobs tail --follow --last
    """
    client = remote.elsewhere(url, token, pin, hub=job_store.of_hub())
    if client is not None:
        meant = ids.execution_id(ids.ServedExecutions(client), execution_id, last=last)
        streamed = client.events(meant, follow=follow)
        final = transcript.print_events(
            streamed, as_json=as_json, waiting=f"following {meant}", again=remote.again(url, token, pin)
        )
        return output.outcome(final) if follow else 0
    database = job_store.database()
    execution = executions.get(database, ids.execution_id(ids.StoredExecutions(database), execution_id, last=last))
    config = job_store.config()
    if follow and not execution.over and daemon.find(config) is not None:
        shown: Iterable[StreamEvent] = remote.local(hub=job_store.of_hub()).events(execution.execution_id)
    else:
        shown = (_event(event) for event in _stored_events(database, execution))
    final = transcript.print_events(shown, as_json=as_json, waiting=f"reading {execution.execution_id}")
    return output.outcome(final) if follow else 0


def _stored_events(database: Database, execution: Execution) -> Iterator[events.StoredEvent]:
    """All events of an execution that are stored now."""
    after = 0
    while batch := events.after(database, execution.number, after):
        missing = events.gap(after, batch[0])
        after = batch[-1].seq
        yield from batch if missing is None else [missing, *batch]


def _event(event: events.StoredEvent) -> StreamEvent:
    from occ_app.client.event_checks import RawEvent
    from occ_app.client.sse import parsed

    return parsed(RawEvent(event.seq, event.name, event.data))
