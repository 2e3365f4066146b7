"""occ jobs: the executions of this machine, read from the database, so it works when the daemon is down too; with --url
those of an agent or hub elsewhere.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from occ_app import errors
from occ_app.cli import ids, job_table, output, remote, transcript
from occ_app.config.config import Config
from occ_app.database import schema
from occ_app.database.database import Database
from occ_app.executions import events, retention
from occ_app.executions import queries as executions
from occ_app.executions import search as searching
from occ_app.executions.records import STATES, Execution
from occ_app.home import clock, daemon
from occ_app.system.timestamps import iso
from occ_app.workspaces import workspace as workspaces

if TYPE_CHECKING:
    from occ_app.client.sse import StreamEvent

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
        return iso(begun)


def _choose_hub(context: click.Context, _: click.Parameter, chosen: bool) -> None:
    context.obj = "hub" if chosen else context.obj or "agent"


# Accepted before and after a subcommand, because people do not remember which.
_of_the_hub = click.option(
    "--hub",
    is_flag=True,
    expose_value=False,
    callback=_choose_hub,
    help="Look at this machine's hub instead of its agent.",
)


def _listing_options(command: Any) -> Any:
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print what GET /executions answers."),
        remote.options("Agent or hub to ask."),
        _of_the_hub,
        click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="At most this many."),
        click.option("--since", type=Since(), help="Only those accepted within this span: 90s, 30m, 12h, 2d, 1w."),
        click.option("--workspace", metavar="ID", help="Only those of this workspace."),
        click.option("--state", type=click.Choice(STATES), help="Only those in this state."),
    ):
        command = option(command)
    return command


@click.group(invoke_without_command=True)
@_listing_options
@click.pass_context
def jobs(context: click.Context, /, **options: Any) -> None:
    """List executions, newest first.

    \b
    Examples:
      occ jobs
      occ jobs --state failed --since 2d
    """
    if context.invoked_subcommand is None:
        _list(**options)
        return
    for name in options:
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            option = "--json" if name == "as_json" else f"--{name}"
            raise click.UsageError(f"Put {option} after {context.invoked_subcommand}.")


@jobs.command("list")
@_listing_options
def listing(**options: Any) -> None:
    """List executions, newest first, as `occ jobs` alone does.

    \b
    Example:
      occ jobs list --state running
    """
    _list(**options)


def _list(
    *,
    state: str | None,
    workspace: str | None,
    since: str | None,
    limit: int,
    url: str | None,
    token: str | None,
    pin: str | None,
    as_json: bool,
) -> None:
    client = remote.elsewhere(url, token, pin, hub=_of_hub())
    if workspace is not None:
        workspace = ids.workspace_filter(_workspaces() if client is None else client.workspaces(), workspace)
    query = {"state": state, "workspaceId": workspace, "since": since}
    filters = {name: value for name, value in query.items() if value is not None}
    if client is not None:
        page = client.executions(limit=limit, **filters)
    else:
        rows, following = executions.listing(_database(), state=state, workspace_id=workspace, since=since, limit=limit)
        listed = {"executions": rows, "next": following}
        # Without marshmallow where it can be done without: loading it takes as long as all the rest.
        page = _dumped("ExecutionList", listed) if as_json else listed | {"executions": map(job_table.record_of, rows)}
    if as_json:
        output.echo(json.dumps(page))
        return
    records = list(page["executions"])
    if not records:
        output.echo("No executions like that." if filters else "No executions.")
        return
    job_table.show(records, _stored_names if client is None else client.machine_names)
    if page["next"] is not None:
        output.note(f"There are more; --limit {min(limit * 2, 1000)} shows more of them.")


def _workspaces() -> list[dict[str, str | None]]:
    """Return the ids and aliases of the workspaces of this machine."""
    return [
        {"workspaceId": workspace.workspace_id, "alias": workspace.alias}
        for workspace in workspaces.listing(_database())
    ]


def _stored_names(agent_ids: Iterable[str]) -> dict[str, str]:
    """Return the names of machines by id, as this machine's hub has them."""
    from occ_app.hub import agent_lists

    return agent_lists.names_in(_database(), agent_ids)


def _dumped(schema: str, content: Any) -> Any:
    """The content as the API tells it."""
    from occ_app.web import schemas

    return getattr(schemas, schema)().dump(content)


@jobs.command()
@ids.choosing
@_of_the_hub
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
    client = remote.elsewhere(url, token, pin, hub=_of_hub())
    if client is not None:
        record = client.execution(ids.execution_id(ids.ServedExecutions(client), execution_id, last=last))
    else:
        database = _database()
        meant = ids.execution_id(ids.StoredExecutions(database), execution_id, last=last)
        record = _dumped("ExecutionRecord", executions.get(database, meant))
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


@jobs.command()
@click.argument("query")
@click.option("--limit", type=click.IntRange(1, 100), default=20, show_default=True, help="At most this many.")
@_of_the_hub
@remote.options("Agent or hub to ask.")
@click.option("--json", "as_json", is_flag=True, help="Print what GET /search answers.")
def search(query: str, limit: int, url: str | None, token: str | None, pin: str | None, as_json: bool) -> None:
    """Search the prompts and output of executions.

    QUERY is words, "a phrase" or the begin* of a word. All of them must occur.

    \b
    Examples:
      occ jobs search milk
      occ jobs search '"oat milk" shop*' --limit 5
    """
    client = remote.elsewhere(url, token, pin, hub=_of_hub())
    if client is not None:
        page = client.search(query, limit=limit)
    else:
        page = _dumped("SearchResults", searching.find(_database(), query, limit=limit))
    if as_json:
        output.echo(json.dumps(page))
        return
    if not page["results"]:
        output.echo("No executions like that.")
    for result in page["results"]:
        record = result["execution"]
        names = ("executionId", "state", "workspaceId")
        output.echo("  ".join([*(record[name] for name in names), output.since(record["createdAt"])]))
        for snippet in result["snippets"]:
            output.print_snippet(snippet["in"], snippet["pieces"])
    if page["next"] is not None:
        output.note(f"There are more; --limit {min(limit * 2, 100)} shows more of them.")
    if page["unindexed"]:
        output.note(
            f"Not indexed yet: {page['unindexed']} of the newest runs; a running daemon indexes them within seconds."
        )


@jobs.command()
@ids.choosing
@_of_the_hub
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
    client = remote.elsewhere(url, token, pin, hub=_of_hub())
    if client is not None:
        meant = ids.execution_id(ids.ServedExecutions(client), execution_id, last=last)
        streamed = client.events(meant, follow=follow)
        final = transcript.print_events(
            streamed, as_json=as_json, waiting=f"following {meant}", again=remote.again(url, token, pin)
        )
        return output.outcome(final) if follow else 0
    database = _database()
    execution = executions.get(database, ids.execution_id(ids.StoredExecutions(database), execution_id, last=last))
    config = _config()
    if follow and not execution.over and daemon.find(config) is not None:
        shown: Iterable[StreamEvent] = remote.local(hub=_of_hub()).events(execution.execution_id)
    else:
        shown = (_event(event) for event in stored_events(database, execution))
    final = transcript.print_events(shown, as_json=as_json, waiting=f"reading {execution.execution_id}")
    return output.outcome(final) if follow else 0


def stored_events(database: Database, execution: Execution) -> Iterator[events.StoredEvent]:
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


@jobs.command()
@ids.choosing
@_of_the_hub
@remote.options("Agent or hub to ask.")
def cancel(execution_id: str | None, last: bool, url: str | None, token: str | None, pin: str | None) -> None:
    """Cancel one execution.

    The agent must run. Any beginning of its ID is enough. An execution that is over stays as it is.

    \b
    Example:
      occ jobs cancel run-4kx
    """
    client = remote.chosen(url, token, pin, hub=_of_hub())
    meant = ids.execution_id(ids.ServedExecutions(client), execution_id, last=last)
    answer = client.cancel(meant)
    sentences = {**dict.fromkeys(("running", "parked"), "is being cancelled"), "cancelled": "is cancelled"}
    output.echo(f"{meant} {sentences.get(answer['state']) or 'was over already: ' + answer['state']}.")


@jobs.command()
@_of_the_hub
@click.option(
    "--older-than",
    type=Since(),
    required=True,
    help="Delete output and prompts of executions that ended longer ago: 12h, 30d, 4w.",
)
def prune(older_than: str) -> None:
    """Delete the prompts and output of old executions.

    Their ids, states and outcomes stay.

    \b
    Example:
      occ jobs prune --older-than 30d
    """
    config = _config()
    database = schema.opened(_existing(config))
    clock.require(database)
    done = retention.prune(database, older_than, math.inf)
    output.echo(f"Forgot the output of {done.executions} executions ({done.events} events).")


def _config() -> Config:
    """The settings of this machine's agent, or with --hub of its hub."""
    return remote.settings(click.get_current_context().obj)


def _of_hub() -> bool:
    return bool(click.get_current_context().obj == "hub")


def _existing(config: Config) -> Path:
    if not config.database.exists():
        command = config.program.command
        raise errors.NotRunning(f"There is no database in {config.home}; `{command} start` makes one.")
    return config.database


def _database() -> Database:
    return schema.opened(_existing(_config()), readonly=True)
