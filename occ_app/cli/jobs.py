"""occ jobs: the executions of this machine, read from the database, so it works when the daemon is down too."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from occ_app import config as configuration
from occ_app import daemon, errors, events, executions, retention
from occ_app import search as searching
from occ_app.cli import output, remote
from occ_app.config import Config
from occ_app.db import Database
from occ_app.records import STATES, Execution

if TYPE_CHECKING:
    from occ_app.sse import Event

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class Since(click.ParamType[str]):
    """A span of time back from now: 90s, 30m, 12h, 2d, 1w."""

    name = "span"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        match = re.fullmatch(r"(\d{1,6})([smhdw])", str(value))
        if match is None:
            self.fail(f"{value!r} is no span of time; write it as in 90s, 30m, 12h, 2d or 1w.", param, ctx)
        span = timedelta(**{_UNITS[match.group(2)]: int(match.group(1))})
        try:
            begun = datetime.now(UTC) - span
        except OverflowError:
            self.fail(f"{value!r} is before the calendar begins.", param, ctx)
        return begun.isoformat(timespec="milliseconds").replace("+00:00", "Z")


@click.group(invoke_without_command=True)
@click.option("--state", type=click.Choice(STATES), help="Only those in this state.")
@click.option("--workspace", metavar="ID", help="Only those of this workspace.")
@click.option("--since", type=Since(), help="Only those accepted within this span: 90s, 30m, 12h, 2d, 1w.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="At most this many.")
@click.option(
    "--hub", is_flag=True, help="Look at this machine's hub instead of its agent; stands before a subcommand."
)
@click.option("--json", "as_json", is_flag=True, help="Print what GET /executions answers.")
@click.pass_context
def jobs(
    context: click.Context,
    state: str | None,
    workspace: str | None,
    since: str | None,
    limit: int,
    hub: bool,
    as_json: bool,
) -> None:
    """What runs, waits and has run, newest first."""
    context.obj = "hub" if hub else "agent"
    if context.invoked_subcommand is not None:
        return
    found, following = executions.listing(_database(), state=state, workspace_id=workspace, since=since, limit=limit)
    if as_json:
        from occ_app import schemas

        click.echo(json.dumps(schemas.ExecutionList().dump({"executions": found, "next": following})))
        return
    if not found:
        click.echo("No executions." if not (state or workspace or since) else "No executions like that.")
        return
    output.table([("ID", "STATE", "WORKSPACE", "AGE", "TOOK", "COST", "PROMPT"), *map(_row, found)])
    if following is not None:
        output.note(f"There are more; --limit {min(limit * 2, 1000)} shows more of them.")


def _row(execution: Execution) -> tuple[str, ...]:
    return (
        execution.execution_id,
        _state(execution),
        execution.workspace_id,
        output.since(execution.created_at),
        _took(execution),
        "" if execution.cost_usd is None else f"${execution.cost_usd:.4f}",
        _short(output.printable(execution.prompt or "")),
    )


def _state(execution: Execution) -> str:
    if execution.waits_for:
        return f"{execution.state} (waits for {execution.waits_for})"
    if execution.state == "failed":
        return f"failed ({execution.error_code})"
    return execution.state + (f" ({execution.position} ahead)" if execution.position else "")


def _short(text: str) -> str:
    return text if len(text) <= 48 else text[:47] + "…"


def _took(execution: Execution) -> str:
    if execution.started_at is None:
        return ""
    end = datetime.fromisoformat(execution.finished_at) if execution.finished_at else datetime.now(UTC)
    return output.duration((end - datetime.fromisoformat(execution.started_at)).total_seconds())


@jobs.command()
@click.argument("execution_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="Print what GET /executions/ID answers.")
def show(execution_id: str, as_json: bool) -> None:
    """Everything known of one execution."""
    from occ_app import schemas

    record = schemas.ExecutionRecord().dump(executions.get(_database(), execution_id))
    if as_json:
        click.echo(json.dumps(record))
        return
    width = max(map(len, record))
    for name, value in record.items():
        if value is not None:
            click.echo(f"{name.ljust(width)}  {value if isinstance(value, (str, int, float)) else json.dumps(value)}")


@jobs.command()
@click.argument("query")
@click.option("--limit", type=click.IntRange(1, 100), default=20, show_default=True, help="At most this many.")
@click.option("--json", "as_json", is_flag=True, help="Print what GET /search answers.")
def search(query: str, limit: int, as_json: bool) -> None:
    """Find executions by their prompt or output. By words, "a phrase", the begin* of a word; all must be there."""
    found = searching.find(_database(), query, limit=limit)
    if as_json:
        from occ_app import schemas

        click.echo(json.dumps(schemas.SearchResults().dump(found)))
        return
    if not found.results:
        click.echo("No executions like that.")
    for result in found.results:
        execution = result.execution
        told = (execution.execution_id, execution.state, execution.workspace_id, output.since(execution.created_at))
        click.echo("  ".join(told))
        for snippet in result.snippets:
            text = "".join(output.highlighted(piece.text, hit=piece.hit) for piece in snippet.pieces)
            click.echo(f"  {snippet.where}: {text}")
    if found.next is not None:
        output.note(f"There are more; --limit {min(limit * 2, 100)} shows more of them.")
    if found.unindexed:
        output.note(
            f"Not searched yet: the {found.unindexed} that ended last; a running daemon gets to them within seconds."
        )


@jobs.command()
@click.argument("execution_id", metavar="ID")
@remote.options("Agent or hub to ask.")
@click.option("--follow", "-f", is_flag=True, help="Go on until the execution is over; its outcome is the exit code.")
@click.option("--json", "as_json", is_flag=True, help="Print each event as one line of JSON.")
def tail(execution_id: str, follow: bool, as_json: bool, url: str | None, token: str | None, pin: str | None) -> int:
    """The output of one execution; with --follow as it comes."""
    if url is not None or pin is not None:  # a pin alone is refused
        told = remote.chosen(url, token, pin).events(execution_id, follow=follow)
        final = output.print_events(told, as_json=as_json, waiting=f"{execution_id} is followed")
        return output.outcome(final) if follow else 0
    database = _database()
    execution = executions.get(database, execution_id)
    config = _config()
    if follow and not execution.over and daemon.find(config) is not None:
        shown: Iterable[Event] = remote.chosen(None, None, None, hub=_of_hub()).events(execution_id)
    else:
        shown = (_event(event) for event in stored_events(database, execution))
    final = output.print_events(shown, as_json=as_json, waiting=f"{execution_id} is {execution.state}")
    return output.outcome(final) if follow else 0


def stored_events(database: Database, execution: Execution) -> Iterator[events.Event]:
    """All events of an execution that are stored now."""
    after = 0
    while batch := events.after(database, execution.number, after):
        missing = events.gap(after, batch[0])
        after = batch[-1].seq
        yield from batch if missing is None else [missing, *batch]


def _event(event: events.Event) -> Event:
    from occ_app.sse import Event

    return Event(event.seq, event.name, json.loads(event.data))


@jobs.command()
@click.argument("execution_id", metavar="ID")
@remote.options("Agent or hub to ask.")
def cancel(execution_id: str, url: str | None, token: str | None, pin: str | None) -> None:
    """End one execution; harmless when it is over. Needs the agent to run."""
    answer = remote.chosen(url, token, pin, hub=_of_hub()).cancel(execution_id)
    told = {"running": "is being cancelled", "cancelled": "is cancelled"}
    click.echo(f"{execution_id} {told.get(answer['state']) or 'was over already: ' + answer['state']}.")


@jobs.command()
@click.option("--older-than", type=Since(), required=True, help="Forget what was over longer ago: 12h, 30d, 4w.")
def prune(older_than: str) -> None:
    """Forget the prompts and output of old executions. Their ids, states and outcomes stay."""
    config = _config()
    done = retention.prune(Database(_existing(config)), older_than, math.inf)
    click.echo(f"Forgot the output of {done.executions} executions ({done.events} events).")


def _config() -> Config:
    """The settings of this machine's agent, or with --hub of its hub."""
    return configuration.load_daemon(click.get_current_context().obj)


def _of_hub() -> bool:
    return bool(click.get_current_context().obj == "hub")


def _existing(config: Config) -> Path:
    if not config.database.exists():
        command = config.program.command
        raise errors.NotRunning(f"There is no database in {config.home}; `{command} start` makes one.")
    return config.database


def _database() -> Database:
    return Database(_existing(_config()), readonly=True)
