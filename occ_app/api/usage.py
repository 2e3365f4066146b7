"""GET /usage: what executions took."""

from __future__ import annotations

from typing import Any

from flask import Blueprint

from occ_app.api.services import services
from occ_app.executions import usage
from occ_app.web import callers, schemas
from occ_app.web.contracts import contract

bp = Blueprint("usage", __name__)


@bp.get("/usage")
@contract(query=schemas.UsageQuery, reply=schemas.UsageReport)
def report(query: dict[str, Any]) -> Any:
    """What executions took: how many there were, how they ended, money, tokens, turns and time, by day or by whom."""
    return usage.report(services().db, visible_to=callers.caller().visible_to, **query)
