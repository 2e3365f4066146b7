"""GET /usage: what executions took."""

from __future__ import annotations

from flask import Blueprint, Response

from occ_app.api.services import parts
from occ_app.executions import usage
from occ_app.web import callers, schemas
from occ_app.web import requests as web

bp = Blueprint("usage", __name__)


@bp.get("/usage")
def report() -> Response:
    """What executions took: how many there were, how they ended, money, tokens, turns and time, by day or by whom."""
    asked = web.query(schemas.UsageQuery)
    return web.json_response(
        web.schema_of(schemas.UsageReport).dump(usage.report(parts().db, only=callers.caller().only, **asked))
    )
