"""The first page: the form for a new task, and lists of runs and machines.

The lists are runs that need a person, current runs, recent conversations and machines.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from flask import Blueprint, Response, render_template, request
from marshmallow import EXCLUDE, Schema, fields, validate

from occ_app import errors
from occ_app.api.services import services
from occ_app.executions import overview
from occ_app.executions import queries as executions
from occ_app.executions.overview import Row
from occ_app.executions.records import Execution
from occ_app.home import daemon
from occ_app.hub import agent_lists, projects
from occ_app.hub.pages import asked, composer, live_text, markdown, terminal
from occ_app.hub.pages import filters as shown
from occ_app.hub.pages import login as door
from occ_app.hub.pages.tools import Call
from occ_app.hub.services import hub_services
from occ_app.web import callers, refusals, schemas
from occ_app.web import requests as web
from occ_app.web.fields import Id
from occ_app.workspaces import workspace as workspaces

bp = Blueprint("home", __name__)

_PAGE, _MOST_NOW, _MOST_NEEDS = 25, 50, 20
_MAX_ONLINE, _MAX_OFFLINE = 20, 5  # machines on the page
_EMPTY = {"prompt": "", "workspace": "", "agent": "", "labels": "", "model": "", "permissions": ""}
_FILTERS = (("", "All"), ("running", "Running"), ("queued", "Waiting"), ("failed", "Failed"), ("succeeded", "Done"))


@dataclass(frozen=True)
class Active:
    """An execution that is running or waiting, with its last line of output.

    `state` is `parked` while it waits for an answer.
    """

    execution: Execution
    state: str
    last: str
    seconds: float
    kind: str = "active"


class _Query(Schema):
    """Filters of the list of conversations; unknown parameters are ignored."""

    class Meta:
        unknown = EXCLUDE

    state = fields.String(validate=validate.OneOf(schemas.STATES))
    workspace = Id()
    before = fields.Integer(validate=validate.Range(min=1, max=2**62))


@bp.get("/")
def show() -> str:
    """Show the whole page."""
    query = web.valid_filters(_Query)
    return _page({"workspace": query.get("workspace", "")}, query)


@bp.get("/lists")
def lists() -> str:
    """Return the lists alone, for the script; with `older`, only conversations."""
    query = web.valid_filters(_Query)
    template = "_older.html" if "older" in request.args else "_lists.html"
    return render_template(template, **_lists(query))


@bp.get("/runs")
def back() -> Response:
    """Redirect to the first page when the address of a refused form is reloaded."""
    return door.go("/")


@bp.post("/runs")
def start() -> Response:
    """Start the run that the form describes.

    A form that is sent again leads to the same execution.
    """
    values = {name: value.replace("\r\n", "\n") for name, value in request.form.items()}
    try:
        door.check_csrf()
        return door.go(f"/runs/{composer.start(values)}")
    except errors.RequestError as error:
        response = Response(_page(values, {}, composer.sentences(error)), refusals.status_of(error.code))
        for status, seconds in refusals.RETRY_AFTER_SECONDS.items():
            if response.status_code == status:
                response.headers["Retry-After"] = str(seconds)
        return response


def _page(form: Mapping[str, str], query: Mapping[str, Any], problems: list[str] | None = None) -> str:
    return render_template(
        "home.html",
        **_lists(query),
        problems=problems,
        given=_EMPTY | dict(form),
        run=form.get("run") or composer.new_run(),
        empty_workspace=composer.EMPTY_WORKSPACE,
        **_places(),
    )


def _places() -> dict[str, Any]:
    """Return the workspaces and projects to choose from.

    Also returns the states of the projects' machines.
    """
    found = workspaces.listing(services().db, callers.caller().visible_to)
    folders = sorted((each for each in found if each.is_project), key=lambda each: each.alias or "")
    machines = hub_services().agents.listing() if folders else []
    return {
        "workspaces": [each for each in found if not each.is_project],
        "projects": folders,
        "machine_states": {machine.agent_id: machine.state for machine in machines},
    }


def _join() -> dict[str, str | None]:
    """Return the address and the pin for the `occ start` line of a new machine."""
    running = daemon.find(services().config)
    address = running.public_url if running else None
    return {"hub_url": address or request.host_url.rstrip("/"), "hub_pin": running.pin if running else None}


def _lists(query: Mapping[str, Any]) -> dict[str, Any]:
    db, visible_to = services().db, callers.caller().visible_to
    workspace_id, state = query.get("workspace"), query.get("state")
    first = state is None and query.get("before") is None
    machines, total = agent_lists.of_interest(hub_services().agents, _MAX_ONLINE, _MAX_OFFLINE)
    questions = asked.waiting() if first else []
    active = _active(workspace_id, {each.approval.execution_id for each in questions}) if first else []
    needs = _needs(workspace_id) if first else []
    rows, following = overview.listing(
        db,
        visible_to=visible_to,
        states=(state,) if state else ("succeeded", "failed", "cancelled"),
        workspace_id=workspace_id,
        before=query.get("before"),
        limit=_PAGE,
    )
    urgent = {row.newest.number for row in needs}
    rows = [row for row in rows if row.newest.number not in urgent]
    every = [one.execution for one in active] + [row.newest for row in (*rows, *needs)]
    counts = overview.counts(db, visible_to, workspace_id)
    return {
        "machines": machines,
        "machine_projects": projects.by_agent(db, visible_to, [machine.agent_id for machine in machines]),
        "machines_left_out": total - len(machines),
        "names": agent_lists.names(hub_services().agents, (one.agent_id for one in every)),
        "places": {one.execution_id: _place_of(one) for one in every},
        "needs": needs,
        "asked_of_me": questions if not workspace_id else [],
        "active": active,
        "groups": _groups(rows),
        "took": {row.newest.execution_id: shown.since(row.newest.started_at, row.newest.finished_at) for row in rows},
        "next": following,
        "asked": query,
        "first": first,
        "filters": [(state, name, counts.get(state) if state else None) for state, name in _FILTERS],
        "total": sum(counts.values()),
        **_join(),
    }


def _needs(workspace_id: str | None) -> list[Row]:
    """Return the conversations that need a person.

    They are those with a parked run or a paused follow-up, and failures that nobody has seen.
    """
    db, visible_to = services().db, callers.caller().visible_to
    found = dict[str, Row]()
    for narrowed in ({"states": ("parked",)}, {"states": ("queued",), "paused": True}, {"unseen": True}):
        rows, _ = overview.listing(
            db,
            visible_to=visible_to,
            workspace_id=workspace_id,
            limit=_MOST_NEEDS,
            **narrowed,
        )
        found |= {row.newest.execution_id: row for row in rows}
    return list(found.values())


def _active(workspace_id: str | None, asking: set[str]) -> list[Active]:
    """Return running executions, and waiting ones whose conversation is idle.

    Those in `asking` wait for a person.
    """
    db, visible_to = services().db, callers.caller().visible_to
    running, _ = executions.listing(
        db, state="running", workspace_id=workspace_id, owner_id=visible_to, limit=_MOST_NOW
    )
    waiting, _ = overview.listing(
        db, visible_to=visible_to, states=("queued",), paused=False, workspace_id=workspace_id, limit=_MOST_NOW
    )
    busy = {one.conversation for one in running}
    queued = [row.newest for row in waiting if row.newest.conversation not in busy]
    return [
        *(_at_work(one, one.execution_id in asking) for one in running),
        *(Active(one, one.state, "", shown.since(one.created_at, None) or 0.0) for one in queued),
    ]


def _at_work(execution: Execution, asks: bool) -> Active:
    state = "parked" if asks else execution.state
    return Active(execution, state, _last_line(execution), shown.since(execution.started_at, None) or 0.0)


def _last_line(execution: Execution) -> str:
    kind, found = overview.last_words(services().db, execution.number)
    if kind == "tool":
        call = Call(0, str(found["name"]), found.get("input"))
        return f"{call.title} {call.subject}"
    line = terminal.plain(found).strip()
    text, closing = live_text.visible(line)
    return shown.beginning(markdown.html(text + closing).striptags() or line.lstrip("#>*-|` "), 200)


def _groups(rows: list[Row]) -> list[tuple[str, str, list[Row]]]:
    """Return conversations grouped by workspace, most recent workspace first.

    Each group is the workspace's name, its id, and its conversations.
    """
    order = dict[str, int]()
    for row in rows:
        order.setdefault(row.newest.workspace_id, len(order))
    by_place = sorted(rows, key=lambda row: order[row.newest.workspace_id])
    grouped = groupby(by_place, key=lambda row: row.newest.workspace_id)
    found = [(workspace_id, list(each)) for workspace_id, each in grouped]
    return [(_place_of(each[0].newest), workspace_id, each) for workspace_id, each in found]


def _place_of(execution: Execution) -> str:
    """Return the name of an execution's workspace: a project's alias, else the id."""
    workspace = workspaces.numbered(services().db, execution.workspace_generation)
    return (workspace and workspace.alias) or execution.workspace_id
