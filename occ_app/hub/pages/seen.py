"""The runs that somebody is looking at, which need no notification."""

from __future__ import annotations

import re

from flask import Blueprint, Response, g, request

from occ_app import errors
from occ_app.api.services import services
from occ_app.executions import queries as executions
from occ_app.hub import channels
from occ_app.web import callers

bp = Blueprint("seen", __name__, url_prefix="/runs/<execution_id>/seen")


@bp.post("")
def report(execution_id: str) -> Response:
    """Record whether a page of this run is visible, as its script reports."""
    page, state = request.form.get("page", ""), request.form.get("state", "")
    if not re.fullmatch(r"[0-9a-f]{32}", page) or state not in ("visible", "hidden"):
        raise errors.InvalidRequest("`page` must be 32 hexadecimal digits, and `state` visible or hidden.")
    execution = executions.get(services().db, execution_id, callers.caller().visible_to)
    seen = state == "visible"
    channels.note_page(services().db, page, g.login.owner_id, execution.number, seen=seen)
    return Response(status=204)
