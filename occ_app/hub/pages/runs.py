"""The page of a conversation: its turns, live output and replies.

Turns can be cancelled, and waiting turns changed.
"""

from __future__ import annotations

import re
from typing import Any

from flask import Blueprint, Response, current_app, render_template, request

from occ_app import errors
from occ_app.api import executions as executions_api
from occ_app.api import inputs as inputs_api
from occ_app.api import workspaces as workspaces_api
from occ_app.api.follow_ups import check_prompt_size, wake_worker
from occ_app.api.services import services
from occ_app.executions import follow_ups, overview
from occ_app.executions import queries as executions
from occ_app.executions.records import Execution
from occ_app.hub.pages import asked, conversation, live, pictures
from occ_app.hub.pages import login as door
from occ_app.hub.pages.composer import new_run
from occ_app.hub.pages.parts import Place
from occ_app.streams import followers as streams
from occ_app.web import callers, schemas
from occ_app.web import requests as web
from occ_app.web.event_stream import event_stream
from occ_app.web.fields import CURSOR_PATTERN

bp = Blueprint("runs", __name__, url_prefix="/runs/<execution_id>")


@bp.get("")
def show(execution_id: str) -> str:
    """Show the conversation in its current state.

    Without the script the page reloads itself while a turn runs. `parts` leaves out the answers, which the script
    receives by their stream.
    """
    place = _place() if "from" in request.args else None
    overview.see(services().db, _execution(execution_id).conversation, callers.caller().owner_id)
    return _page(execution_id, answers="parts" not in request.args, place=place)


@bp.get("/part")
def part(execution_id: str) -> str:
    """Return one part of an answer, for the script."""
    until = Place(_number("until"), _number("cut")) if "until" in request.args else None
    found = conversation.part(execution_id, _place(), until)
    return render_template("_part.html", run=execution_id, part=found, until=until)


@bp.get("/live")
def events(execution_id: str) -> Response:
    """Stream the changes of the answer after an event."""
    after = web.cursor(request.args.get("after"))
    execution = _execution(execution_id)
    folder = conversation.agent_folder(execution)
    app, caller, since = current_app._get_current_object(), callers.caller(), callers.asked_at()  # type: ignore[attr-defined]  # a proxy, which ends with the request
    open_streams = services().streams

    def refused() -> bool:
        return open_streams.refuses(caller.key_id, since) or caller.refused()

    with open_streams.place(caller.key_id) as place:
        follower: streams.Follower = live.PageFollower(app, services().tail, execution, after, folder, refused=refused)
        return event_stream(services().tail, follower, place, follow=True)


@bp.get("/pictures/<int:seq>")
def picture(execution_id: str, seq: int) -> Response:
    """Send a picture of a tool's result, by the number of its first event."""
    return pictures.of_result(services().db, _execution(execution_id), seq)


@bp.get("/files")
def files(execution_id: str) -> Response:
    """Send the current files of the run's workspace as a zip."""
    execution = _execution(execution_id)
    conversation.workspace_of(execution)
    return workspaces_api.packed(execution.workspace_id, execution.workspace_generation)


@bp.post("/cancel")
def cancel(execution_id: str) -> Response:
    """Cancel the run."""
    return _back(executions_api.cancel_execution(execution_id).execution_id)


@bp.post("/approvals/<approval_id>")
def decide(execution_id: str, approval_id: str) -> Response:
    """Store a person's answer to an approval."""
    asked.answer(approval_id, request.form)
    return _back(_execution(execution_id).execution_id)


@bp.post("/input")
def steer(execution_id: str) -> Response:
    """Send the text of the form to the running turn.

    If the turn cannot accept it, the text becomes the next prompt.
    """
    body = {"inputId": request.form.get("run", ""), "text": request.form.get("prompt", "").replace("\r\n", "\n")}
    sent = inputs_api.deliver(execution_id, web.loaded(schemas.InputBody, body))
    return _back(sent.follow_up or execution_id)


@bp.post("/change")
def change(execution_id: str) -> Response:
    """Change a waiting turn: its prompt, its position, or whether it is paused."""
    form, changes = request.form, dict[str, Any]()
    if "prompt" in form:
        changes["prompt"] = form["prompt"].replace("\r\n", "\n")
        if not changes["prompt"].strip():
            raise errors.InvalidRequest("The prompt is empty; drop the turn instead.")
        check_prompt_size(changes["prompt"])
    if "before" in form:
        changes["before"] = form["before"] or None
    if form.get("paused") in ("yes", "no"):
        changes["paused"] = form["paused"] == "yes"
    moved = form.get("move") or execution_id  # moving a turn down is moving the next one up
    changed = follow_ups.change(services().db, moved, changes, callers.caller().visible_to)
    if changes.get("paused") is False:
        wake_worker()
    return _back(changed.execution_id)


def _back(execution_id: str) -> Response:
    return door.go(f"/runs/{execution_id}")


def _page(execution_id: str, *, answers: bool, place: Place | None) -> str:
    shown = conversation.read(execution_id, answers=answers, place=place)
    running = shown.running
    return render_template(
        "run.html",
        shown=shown,
        answers=answers,
        before=conversation.blocking(running) if running else None,
        run=new_run(),
    )


def _execution(execution_id: str) -> Execution:
    return executions.get(services().db, execution_id, callers.caller().visible_to)


def _place() -> Place:
    return Place(max(1, _number("from")), _number("skip"), "code" in request.args)


def _number(name: str) -> int:
    text = request.args.get(name, "0")
    if not re.fullmatch(CURSOR_PATTERN, text):
        raise errors.RequestError("INVALID_EVENT_ID", f"`{name}` must be a whole number.")
    return int(text or 0)
