"""The page of usage: cost, tokens and time, with one chart.

Usage is grouped by day, project, machine, key or owner.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from flask import Blueprint, render_template, request

from occ_app.api.services import services
from occ_app.executions import usage
from occ_app.hub.pages import chart
from occ_app.system.timestamps import iso
from occ_app.web import callers
from occ_app.workspaces import workspace as workspaces

bp = Blueprint("costs", __name__)

_SPANS = {"7": "7 days", "30": "30 days", "90": "90 days"}
_GROUPS = {"day": "Day", "workspace": "Project", "agent": "Machine", "key": "Key", "owner": "Owner"}
_MAX_ROWS = 200


@bp.get("/costs")
def show() -> str:
    """Show the totals of a span of days, their chart, and a table by one group."""
    visible_to = callers.caller().visible_to
    days = request.args.get("days", "30")
    days = days if days in _SPANS else "30"
    groups = {name: title for name, title in _GROUPS.items() if name != "owner" or visible_to is None}
    by = request.args.get("by", "day")
    by = by if by in groups else "day"
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    since = iso(today - timedelta(days=int(days) - 1))
    by_day = usage.report(services().db, "day", visible_to=visible_to, since=since)
    report = by_day if by == "day" else usage.report(services().db, by, visible_to=visible_to, since=since)
    aliases = {each.workspace_id: each.alias for each in workspaces.listing(services().db, visible_to) if each.alias}
    return render_template(
        "costs.html",
        by=by,
        days=days,
        spans=_SPANS,
        groups=groups,
        report=report,
        rows=report.groups[:_MAX_ROWS],
        most=max((group.usage.cost_usd for group in report.groups), default=0),
        aliases=aliases,
        chart=chart.of_days(
            {group.group or "": group.usage.cost_usd for group in by_day.groups}, today.date(), int(days)
        ),
    )
