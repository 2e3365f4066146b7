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
    """Report the usage of executions by day or by owner.

    It has numbers, outcomes, money, tokens, turns and time.
    """
    return usage.report(services().db, visible_to=callers.caller().visible_to, **query)
