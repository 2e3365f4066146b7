"""The page of one execution: prompt, live output, outcome, cancel and continue."""

from __future__ import annotations

import re
from typing import Any

from flask import Blueprint, Response, render_template, request

from occ_app import errors
from occ_app.api import executions as executions_api
from occ_app.api import workspaces as workspaces_api
from occ_app.api.services import services
from occ_app.executions import queries as executions
from occ_app.executions.records import Execution
from occ_app.hub.api import hub_services
from occ_app.hub.pages import answer
from occ_app.hub.pages import filters as shown
from occ_app.hub.pages import login as door
from occ_app.hub.pages.home import new_run
from occ_app.web import callers
from occ_app.web import requests as web
from occ_app.web.fields import CURSOR_PATTERN
from occ_app.workspaces import workspace as workspaces
from occ_app.workspaces.workspace import Workspace

bp = Blueprint("runs", __name__, url_prefix="/runs/<execution_id>")

_WORDS = {
    "queued": "Waiting",
    "running": "Running",
    "parked": "Waits for you",
    "succeeded": "Done",
    "failed": "Failed",
    "cancelled": "Cancelled",
}


@bp.get("")
def show(execution_id: str) -> str:
    """The whole page, with all there is now; it shows the same without the script, which only goes on from here."""
    return render_template("run.html", **_shown(_execution(execution_id), 0))


@bp.get("/answer")
def rest(execution_id: str) -> str:
    """The changing parts alone, for the script: the state, and the answer after an event."""
    after = request.args.get("after", "0")
    if not re.fullmatch(CURSOR_PATTERN, after):
        raise errors.RequestError("INVALID_EVENT_ID", "`after` must be the number of an event.")
    return render_template("_answer.html", fragment=True, **_shown(_execution(execution_id), int(after or 0)))


@bp.get("/events")
def events(execution_id: str) -> Response:
    """Stream the events as GET /executions/{id}/events does, for a visitor with the cookie."""
    after = web.cursor(request.args.get("after"))
    execution = _execution(execution_id)
    with services().streams.place(callers.caller().key_id) as place:
        return executions_api.stream(execution, after, place, follow=True)


@bp.get("/files")
def files(execution_id: str) -> Response:
    """The files of its workspace as they are now, as a zip."""
    execution = _execution(execution_id)
    if _workspace(execution) is None:
        raise errors.workspace_not_found(execution.workspace_id)
    return workspaces_api.packed(execution.workspace_id, execution.workspace_generation)


@bp.post("/cancel")
def cancel(execution_id: str) -> Response:
    """End it."""
    return door.go(f"/runs/{executions_api.cancel_execution(execution_id).execution_id}")


def _execution(execution_id: str) -> Execution:
    return executions.get(services().db, execution_id, callers.caller().visible_to)


def _workspace(execution: Execution) -> Workspace | None:
    """Its workspace; None once that is deleted, or if it is another owner's."""
    return workspaces.numbered(services().db, execution.workspace_generation, callers.caller().visible_to)


def _before(execution: Execution) -> Execution | None:
    """Return the execution that runs in the workspace of a waiting one."""
    if execution.state != "queued":
        return None
    visible_to, workspace_id = callers.caller().visible_to, execution.workspace_id
    rows, _ = executions.listing(
        services().db, state="running", workspace_id=workspace_id, owner_id=visible_to, limit=1
    )
    return rows[0] if rows else None


def _shown(execution: Execution, after: int) -> dict[str, Any]:
    # In this order: an end between the two is in the answer, and the script asks again for the state.
    workspace = _workspace(execution)
    content = answer.read(services().db, execution, after, workspace.path if workspace else "")
    agent = hub_services().agents.find(execution.agent_id) if execution.agent_id else None
    return {
        "execution": execution,
        "answer": content,
        "workspace": workspace,
        "goes_on": execution.over and execution.session_id and workspace is not None,
        "run": new_run(),
        "before": _before(execution),
        "machine": agent.name if agent else None,
        "word": "Cancelling" if execution.cancel_code and not execution.over else _WORDS[execution.state],
        "elapsed": shown.since(execution.started_at, execution.finished_at),
        "waited": shown.since(execution.created_at, execution.started_at or execution.finished_at),
    }
