"""The first page: a form that starts an execution, the executions, the machines."""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from flask import Blueprint, Response, render_template, request
from marshmallow import EXCLUDE, Schema, ValidationError, fields, validate
from werkzeug.datastructures import FileStorage

from occ_app import errors
from occ_app.api import executions as executions_api
from occ_app.api import workspaces as workspaces_api
from occ_app.api.services import services
from occ_app.executions import queries as executions
from occ_app.executions.records import Execution
from occ_app.home import daemon
from occ_app.hub import agent_lists, projects
from occ_app.hub.api import hub_services
from occ_app.hub.pages import filters as shown
from occ_app.hub.pages import login as door
from occ_app.web import callers, refusals, schemas
from occ_app.web import requests as web
from occ_app.web.fields import Id
from occ_app.workspaces import workspace as workspaces

bp = Blueprint("home", __name__)

_PAGE = 20
_SENT_BEFORE = (
    "This form was sent already and has started a run, which is in the list: “{beginning}”. You have changed the form"
    " since; send it again to start another run."
)
_MAX_ONLINE, _MAX_OFFLINE = 100, 5  # machines on the page
_FIELDS = {"prompt": "Prompt", "workspaceId": "Workspace", "labels": "Labels", "model": "Model", "sessionId": "Session"}
_EMPTY = {"prompt": "", "workspace": "", "agent": "", "labels": "", "model": "", "session": ""}


class _Query(Schema):
    """What narrows the list of executions; anything else in the address is passed over."""

    class Meta:
        unknown = EXCLUDE

    state = fields.String(validate=validate.OneOf(schemas.STATES))
    workspace = Id()
    before = fields.Integer(validate=validate.Range(min=1, max=2**62))


@bp.get("/")
def show() -> str:
    """The whole page."""
    query = _query()
    return _page({"workspace": query.get("workspace", "")}, query)


@bp.get("/lists")
def lists() -> str:
    """The two lists alone, for the script."""
    return render_template("_lists.html", **_lists(_query()))


@bp.get("/runs")
def back() -> Response:
    """Where the address of a refused form leads when it is opened again."""
    return door.go("/")


@bp.post("/runs")
def start() -> Response:
    """Start an execution in a workspace, there already or in the form; the same form again: the same execution."""
    values = {name: value.replace("\r\n", "\n") for name, value in request.form.items()}
    try:
        door.check_csrf()
        return door.go(f"/runs/{_start(values)}")
    except errors.RequestError as error:
        response = Response(_page(values, {}, _told(error)), refusals.status_of(error.code))
        for status, seconds in refusals.RETRY_AFTER_SECONDS.items():
            if response.status_code == status:
                response.headers["Retry-After"] = str(seconds)
        return response


def _start(values: dict[str, str]) -> str:
    """The id of the execution the form asks for. A workspace that was made for it is in `given` afterwards."""
    run_id = _loaded_id(values.get("run", ""))
    upload = request.files.get("zip")
    if upload is not None and not upload.filename:
        upload = None  # the field was left empty
    if (upload is None) == (not values.get("workspace")):
        raise errors.InvalidRequest("Choose a zip or a workspace, one of them.")
    name = PurePath((upload.filename if upload else None) or "workspace").stem
    # The same form sent twice names the same workspace.
    workspace_id = values["workspace"] if upload is None else f"{_plain(name)}-{run_id.rpartition('-')[2]}"
    request_of_form = executions_api.asked_for(_body(values, run_id, workspace_id))
    sent = executions.find(services().db, run_id, callers.caller().visible_to)
    if sent is not None:
        if sent.request_hash == request_of_form.hash and (upload is None or _is_zip_of(workspace_id, upload)):
            return run_id
        values["run"] = new_run()
        raise errors.Conflict(
            "EXECUTION_CONFLICT", _SENT_BEFORE.format(beginning=shown.beginning(sent.prompt or "", 80))
        )
    services().refuse_when_stopping()
    if upload is not None:
        _make(workspace_id, name, upload)
        values["workspace"] = workspace_id
    execution, _ = executions_api.start(request_of_form)
    return execution.execution_id


def _is_zip_of(workspace_id: str, upload: FileStorage) -> bool:
    """Whether a workspace was made of this very zip."""
    digest = hashlib.file_digest(upload.stream, "sha256").hexdigest()  # type: ignore[arg-type]  # werkzeug types its stream loosely
    upload.stream.seek(0)
    try:
        return workspaces.get(services().db, workspace_id, callers.caller().visible_to).zip == digest
    except errors.NotFound:
        return False


def _make(workspace_id: str, name: str, upload: FileStorage) -> None:
    valuesof_form = {
        "workspaceId": workspace_id,
        "name": name[:200].strip() or workspace_id,
        "processPolicy": "overwrite",
        "stripRoot": "true",
    }
    workspaces_api.make(web.loaded(schemas.InitForm, valuesof_form), upload)


def _plain(name: str) -> str:
    return (re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._") or "workspace")[:100]


def _body(values: Mapping[str, str], run_id: str, workspace_id: str) -> dict[str, Any]:
    """The form as the body of POST /execute."""
    labels = [label.strip() for label in values.get("labels", "").split(",") if label.strip()]
    optional = {
        "agent": values.get("agent"),
        "labels": labels,
        "model": values.get("model", "").strip(),
        "sessionId": values.get("session"),
    }
    body = {"executionId": run_id, "workspaceId": workspace_id, "prompt": values.get("prompt", "")}
    return body | {name: value for name, value in optional.items() if value}


def _loaded_id(run_id: str) -> str:
    if not re.fullmatch(r"page-[0-9a-f]{12}", run_id):
        raise errors.InvalidRequest("This form is not one of the hub's pages; reload the page.")
    return run_id


def _told(error: errors.RequestError) -> list[str]:
    """Return the errors as sentences for a person in front of the form."""
    if error.code != "INVALID_REQUEST" or not error.details:
        return [str(error)]
    problems = []
    for field, reasons in error.details.items():
        flat = reasons.values() if isinstance(reasons, dict) else [reasons]
        words = " ".join(str(word) for reason in flat for word in (reason if isinstance(reason, list) else [reason]))
        problems.append(f"{_FIELDS.get(field, field)}: {words}")
    return problems


def _page(form: Mapping[str, str], query: Mapping[str, Any], problems: list[str] | None = None) -> str:
    lists = _lists(query)
    return render_template(
        "home.html",
        **lists,
        problems=problems,
        given=_EMPTY | dict(form),
        run=form.get("run") or new_run(),
        **_places(),
    )


def _places() -> dict[str, Any]:
    """Return the workspaces and projects to choose from, and the states of the projects' machines."""
    found = workspaces.listing(services().db, callers.caller().visible_to)
    folders = sorted((each for each in found if each.is_project), key=lambda each: each.alias or "")
    machines = hub_services().agents.listing() if folders else []
    return {
        "workspaces": [each for each in found if not each.is_project],
        "projects": folders,
        "machine_states": {machine.agent_id: machine.state for machine in machines},
    }


def new_run() -> str:
    """The id under which a form starts its execution, however often it is sent."""
    return f"page-{uuid.uuid4().hex[:12]}"


def _join() -> dict[str, str | None]:
    """Return the address and the pin for the `occ start` line of a new machine."""
    running = daemon.find(services().config)
    address = running.public_url if running else None
    return {"hub_url": address or request.host_url.rstrip("/"), "hub_pin": running.pin if running else None}


def _lists(query: Mapping[str, Any]) -> dict[str, Any]:
    machines, total = agent_lists.of_interest(hub_services().agents, _MAX_ONLINE, _MAX_OFFLINE)
    rows, following = executions.listing(
        services().db,
        owner_id=callers.caller().visible_to,
        state=query.get("state"),
        workspace_id=query.get("workspace"),
        before=query.get("before"),
        limit=_PAGE,
    )
    names = {each.execution_id: _place_of(each) for each in rows}
    return {
        "machines": machines,
        "places": names,
        "machine_projects": projects.by_agent(
            services().db, callers.caller().visible_to, [machine.agent_id for machine in machines]
        ),
        "via": {machine.agent_id: hub_services().calls.via(machine) for machine in machines},
        "machines_left_out": total - len(machines),
        "names": agent_lists.names(hub_services().agents, (one.agent_id for one in rows)),
        "executions": rows,
        "took": {one.execution_id: shown.since(one.started_at, one.finished_at) for one in rows},
        "next": following,
        "asked": query,
        "states": schemas.STATES,
        **_join(),
    }


def _place_of(execution: Execution) -> str:
    """Return the name of an execution's workspace for a person: a project's alias, else the id."""
    workspace = workspaces.numbered(services().db, execution.workspace_generation)
    return (workspace and workspace.alias) or execution.workspace_id


def _query() -> dict[str, Any]:
    """Return the filters in the address; a wrong value is ignored."""
    try:
        return dict(web.schema_of(_Query).load({name: value for name, value in request.args.items() if value}))
    except ValidationError as wrong:
        valid: dict[str, Any] = wrong.valid_data  # type: ignore[assignment]  # a dict, since one object was loaded
        return valid
