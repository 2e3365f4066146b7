"""GET /search: the executions whose prompt or output says something."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from flask import Blueprint

from occ_app.api.executions import listed
from occ_app.api.services import services
from occ_app.executions import search
from occ_app.web import callers, schemas
from occ_app.web.contracts import contract

bp = Blueprint("search", __name__)


@bp.get("/search")
@contract(query=schemas.SearchQuery, reply=schemas.SearchResults)
def find(query: dict[str, Any]) -> Any:
    """Find finished executions by words, newest first.

    All words are in the prompt or the output.
    """
    matches = search.find(services().db, query["q"], callers.caller().visible_to, query["limit"], query.get("before"))
    return replace(matches, results=[replace(result, execution=listed(result.execution)) for result in matches.results])
