"""GET /search: the executions whose prompt or output says something."""

from __future__ import annotations

from dataclasses import replace

from flask import Blueprint, Response

from occ_app.api.executions import listed
from occ_app.api.services import parts
from occ_app.executions import search
from occ_app.web import callers, schemas
from occ_app.web import requests as web

bp = Blueprint("search", __name__)


@bp.get("/search")
def find() -> Response:
    """Executions that are over and have all these words in prompt or output, newest first."""
    asked = web.query(schemas.SearchQuery)
    found = search.find(parts().db, asked["q"], callers.caller().only, asked["limit"], asked.get("before"))
    results = [replace(result, execution=listed(result.execution)) for result in found.results]
    return web.json_response(web.schema_of(schemas.SearchResults).dump(replace(found, results=results)))
