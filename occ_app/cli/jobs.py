"""occ jobs: the executions of this machine, read from the database, so it works when the daemon is down too; with --url
those of an agent or hub elsewhere.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from occ_app import errors
from occ_app.cli import output, remote
from occ_app.config.config import Config
from occ_app.database import schema
from occ_app.database.database import Database
from occ_app.executions import events, retention
from occ_app.executions import queries as executions
from occ_app.executions import search as searching
from occ_app.executions.records import STATES, Execution
from occ_app.home import clock, daemon
from occ_app.system.timestamps import iso

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


@click.group(invoke_without_command=True)
@click.option("--state", type=click.Choice(STATES), help="Only those in this state.")
@click.option("--workspace", metavar="ID", help="Only those of this workspace.")
@click.option("--since", type=Since(), help="Only those accepted within this span: 90s, 30m, 12h, 2d, 1w.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="At most this many.")
@_of_the_hub
@remote.options("Agent or hub to ask.")
@click.option("--json", "as_json", is_flag=True, help="Print what GET /executions answers.")
@click.pass_context
def jobs(
    context: click.Context,
    state: str | None,
    workspace: str | None,
    since: str | None,
    limit: int,
    url: str | None,
    token: str | None,
    pin: str | None,
    as_json: bool,
) -> None:
    """List executions, newest first."""
    if context.invoked_subcommand is not None:
        if url is not None:
            raise click.UsageError(f"--url stands after {context.invoked_subcommand}.")
        return
    query = {"state": state, "workspaceId": workspace, "since": since}
    filters = {name: value for name, value in query.items() if value is not None}
    client = remote.elsewhere(url, token, pin, hub=_of_hub())
    if client is not None:
        page = client.executions(limit=limit, **filters)
    else:
        rows, following = executions.listing(_database(), state=state, workspace_id=workspace, since=since, limit=limit)
        listed = {"executions": rows, "next": following}
        # Without marshmallow where it can be done without: loading it takes as long as all the rest.
        page = _dumped("ExecutionList", listed) if as_json else listed | {"executions": list(map(_record, rows))}
    if as_json:
        output.echo(json.dumps(page))
        return
    if not page["executions"]:
        output.echo("No executions like that." if filters else "No executions.")
        return
    output.table(
        [("ID", "STATE", "WORKSPACE", "AGE", "TOOK", "COST", "PROMPT"), *map(_row, page["executions"])],
    )
    if page["next"] is not None:
        output.note(f"There are more; --limit {min(limit * 2, 1000)} shows more of them.")


def _dumped(schema: str, content: Any) -> Any:
    """The content as the API tells it."""
    from occ_app.web import schemas

    return getattr(schemas, schema)().dump(content)


def _record(execution: Execution) -> dict[str, Any]:
    """Return the fields of an execution in a row, by their names in the API."""
    return {
        "executionId": execution.execution_id,
        "state": execution.state,
        "waitsFor": execution.waits_for,
        "errorCode": execution.error_code,
        "position": execution.position,
        "workspaceId": execution.workspace_id,
        "createdAt": execution.created_at,
        "startedAt": execution.started_at,
        "finishedAt": execution.finished_at,
        "costUsd": execution.cost_usd,
        "costExact": execution.cost_exact,
        "prompt": execution.prompt,
    }


def _row(record: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        record["executionId"],
        _state(record),
        record["workspaceId"],
        output.since(record["createdAt"]),
        output.took(record),
        _cost(record),
        _short(output.printable(record["prompt"] or "")),
    )


def _cost(record: Mapping[str, Any]) -> str:
    if record["costUsd"] is None:
        return ""
    # An agent of an older version sends no `costExact`.
    return ("" if record.get("costExact", True) else "≤ ") + f"${record['costUsd']:.4f}"


def _state(record: Mapping[str, Any]) -> str:
    state: str = record["state"]
    if state == "failed":
        return f"failed ({record['errorCode']})"
    ahead = f"{record['position']} ahead" if record["position"] else ""
    # The explanation after the name is left to `occ jobs show`.
    waits = f"waits for {record['waitsFor'].partition(', which ')[0]}" if record["waitsFor"] else ""
    reasons = ", ".join(filter(None, (waits, ahead)))
    return f"{state} ({reasons})" if reasons else state


def _short(text: str) -> str:
    return text if len(text) <= 48 else text[:47] + "…"


@jobs.command()
@click.argument("execution_id", metavar="ID")
@_of_the_hub
@remote.options("Agent or hub to ask.")
@click.option("--json", "as_json", is_flag=True, help="Print what GET /executions/ID answers.")
def show(execution_id: str, url: str | None, token: str | None, pin: str | None, as_json: bool) -> None:
    """Everything known of one execution."""
    client = remote.elsewhere(url, token, pin, hub=_of_hub())
    if client is not None:
        record = client.execution(execution_id)
    else:
        record = _dumped("ExecutionRecord", executions.get(_database(), execution_id))
    if as_json:
        output.echo(json.dumps(record))
        return
    width = max(map(len, record))
    line_break, indented = "\n", "\n" + " " * (width + 2)  # a value that looks like another field is seen as it is
    for name, value in record.items():
        if value is not None:
            text = str(value) if isinstance(value, (str, int, float)) else json.dumps(value)
            output.echo(f"{name.ljust(width)}  {text.replace(line_break, indented)}")


@jobs.command()
@click.argument("query")
@click.option("--limit", type=click.IntRange(1, 100), default=20, show_default=True, help="At most this many.")
@_of_the_hub
@remote.options("Agent or hub to ask.")
@click.option("--json", "as_json", is_flag=True, help="Print what GET /search answers.")
def search(query: str, limit: int, url: str | None, token: str | None, pin: str | None, as_json: bool) -> None:
    """Find executions by their prompt or output. By words, "a phrase", the begin* of a word; all must be there."""
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
            f"Not searched yet: the {page['unindexed']} that ended last; a running daemon gets to them within seconds."
        )


@jobs.command()
@click.argument("execution_id", metavar="ID")
@_of_the_hub
@remote.options("Agent or hub to ask.")
@click.option("--follow", "-f", is_flag=True, help="Go on until the execution is over; its outcome is the exit code.")
@click.option("--json", "as_json", is_flag=True, help="Print each event as one line of JSON.")
def tail(execution_id: str, follow: bool, as_json: bool, url: str | None, token: str | None, pin: str | None) -> int:
    """The output of one execution; with --follow as it comes."""
    client = remote.elsewhere(url, token, pin, hub=_of_hub())
    if client is not None:
        streamed = client.events(execution_id, follow=follow)
        final = output.print_events(streamed, as_json=as_json, waiting=f"following {execution_id}")
        return output.outcome(final) if follow else 0
    database = _database()
    execution = executions.get(database, execution_id)
    config = _config()
    if follow and not execution.over and daemon.find(config) is not None:
        shown: Iterable[StreamEvent] = remote.local(hub=_of_hub()).events(execution_id)
    else:
        shown = (_event(event) for event in stored_events(database, execution))
    final = output.print_events(shown, as_json=as_json, waiting=f"reading {execution_id}")
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
@click.argument("execution_id", metavar="ID")
@_of_the_hub
@remote.options("Agent or hub to ask.")
def cancel(execution_id: str, url: str | None, token: str | None, pin: str | None) -> None:
    """End one execution; harmless when it is over. Needs the agent to run."""
    answer = remote.chosen(url, token, pin, hub=_of_hub()).cancel(execution_id)
    sentences = {"running": "is being cancelled", "cancelled": "is cancelled"}
    output.echo(f"{execution_id} {sentences.get(answer['state']) or 'was over already: ' + answer['state']}.")


@jobs.command()
@_of_the_hub
@click.option(
    "--older-than",
    type=Since(),
    required=True,
    help="Delete output and prompts of executions that ended longer ago: 12h, 30d, 4w.",
)
def prune(older_than: str) -> None:
    """Forget the prompts and output of old executions. Their ids, states and outcomes stay."""
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
