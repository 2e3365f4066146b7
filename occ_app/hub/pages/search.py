"""The page that finds runs by words in their prompts and answers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from flask import Blueprint, render_template
from marshmallow import EXCLUDE, Schema, fields, validate

from occ_app.api.services import services
from occ_app.executions import search
from occ_app.hub import agent_lists
from occ_app.hub.pages import filters as shown
from occ_app.hub.services import hub_services
from occ_app.system.timestamps import iso
from occ_app.web import callers, schemas
from occ_app.web import requests as web
from occ_app.workspaces import workspace as workspaces

bp = Blueprint("search", __name__)

_PAGE = 20
_MAX_CHOICES = 200
SPANS = {"1": "last day", "7": "last 7 days", "30": "last 30 days"}


class _Query(Schema):
    """The words and filters of a search; invalid values are ignored."""

    class Meta:
        unknown = EXCLUDE

    q = fields.String(validate=validate.Length(max=1000))
    state = fields.String(validate=validate.OneOf(["succeeded", "failed", "cancelled"]))
    workspace = fields.String(validate=validate.Length(max=128))
    machine = fields.String(validate=validate.Length(max=128))
    days = fields.String(validate=validate.OneOf(list(SPANS)))
    before = fields.Integer(validate=validate.Range(min=1, max=schemas.LARGEST_GENERATION))


@bp.get("/find")
def show() -> str:
    """Show the form and the runs found."""
    query = web.valid_filters(_Query)
    words, visible_to = query.get("q", "").strip(), callers.caller().visible_to
    since = None
    if "days" in query:
        since = iso(datetime.now(UTC) - timedelta(days=int(query["days"])))
    only = search.Only(query.get("workspace"), query.get("machine"), query.get("state"), since)
    found = search.find(services().db, words, visible_to, _PAGE, query.get("before"), only) if words else None
    results = found.results if found else []
    known = workspaces.listing(services().db, visible_to)
    machines, _ = agent_lists.page(hub_services().agents, _MAX_CHOICES)
    agents = hub_services().agents
    return render_template(
        "search.html",
        asked=query,
        words=words,
        found=found,
        places={each.workspace_id: each.alias or each.workspace_id for each in known},
        choices=sorted((each.alias or each.workspace_id, each.workspace_id) for each in known)[:_MAX_CHOICES],
        machines=machines,
        names=agent_lists.names(agents, (result.execution.agent_id for result in results)),
        took={
            result.execution.execution_id: shown.since(result.execution.started_at, result.execution.finished_at)
            for result in results
        },
        spans=SPANS,
    )
