"""occ jobs: the executions of this machine, or with --url of one elsewhere.

This machine's are read from the database, so the daemon may be down.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import click
from click.core import ParameterSource

from occ_app.cli import follow_ups, ids, job_output, job_store, job_table, output, remote
from occ_app.database import schema
from occ_app.executions import queries as executions
from occ_app.executions import retention
from occ_app.executions import search as searching
from occ_app.executions.records import STATES
from occ_app.home import clock
from occ_app.system.timestamps import iso
from occ_app.workspaces import workspace as workspaces

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


def _listing_options(command: Any) -> Any:
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print what GET /executions answers."),
        remote.options("Agent or hub to ask."),
        job_store.of_the_hub,
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
    client = remote.elsewhere(url, token, pin, hub=job_store.of_hub())
    if workspace is not None:
        workspace = ids.workspace_filter(_workspaces() if client is None else client.workspaces(), workspace)
    query = {"state": state, "workspaceId": workspace, "since": since}
    filters = {name: value for name, value in query.items() if value is not None}
    if client is not None:
        page = client.executions(limit=limit, **filters)
    else:
        rows, following = executions.listing(
            job_store.database(), state=state, workspace_id=workspace, since=since, limit=limit
        )
        listed = {"executions": rows, "next": following}
        # Without marshmallow where it can be done without: loading it takes as long as all the rest.
        page = (
            job_store.dumped("ExecutionList", listed)
            if as_json
            else listed | {"executions": map(job_table.record_of, rows)}
        )
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
        for workspace in workspaces.listing(job_store.database())
    ]


def _stored_names(agent_ids: Iterable[str]) -> dict[str, str]:
    """Return the names of machines by id, as this machine's hub has them."""
    from occ_app.hub import agent_lists

    return agent_lists.names_in(job_store.database(), agent_ids)


jobs.add_command(job_output.show)
jobs.add_command(job_output.tail)


@jobs.command()
@click.argument("query")
@click.option("--limit", type=click.IntRange(1, 100), default=20, show_default=True, help="At most this many.")
@job_store.of_the_hub
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
    client = remote.elsewhere(url, token, pin, hub=job_store.of_hub())
    if client is not None:
        page = client.search(query, limit=limit)
    else:
        page = job_store.dumped("SearchResults", searching.find(job_store.database(), query, limit=limit))
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
@job_store.of_the_hub
@remote.options("Agent or hub to ask.")
def cancel(execution_id: str | None, last: bool, url: str | None, token: str | None, pin: str | None) -> None:
    """Cancel one execution.

    The agent must run. Any beginning of its ID is enough. An execution that is over stays as it is.

    \b
    Example:
      occ jobs cancel run-4kx
    """
    client = remote.chosen(url, token, pin, hub=job_store.of_hub())
    meant = ids.execution_id(ids.ServedExecutions(client), execution_id, last=last)
    answer = client.cancel(meant)
    sentences = {**dict.fromkeys(("running", "parked"), "is being cancelled"), "cancelled": "is cancelled"}
    output.echo(f"{meant} {sentences.get(answer['state']) or 'was over already: ' + answer['state']}.")


@jobs.command()
@job_store.of_the_hub
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
    config = job_store.config()
    database = schema.opened(job_store.existing(config))
    clock.require(database)
    done = retention.prune(database, older_than, math.inf)
    executions, events = output.counted(done.executions, "execution"), output.counted(done.events, "event")
    output.echo(f"Forgot the output of {executions} ({events}).")


for _command in (follow_ups.edit, follow_ups.move, follow_ups.pause, follow_ups.resume):
    jobs.add_command(_command)
