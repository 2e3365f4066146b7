"""GET /health: the state of this agent or hub, and its problems."""

from __future__ import annotations

from flask import Blueprint, Response

from occ_app.api.services import services
from occ_app.web import requests as web
from occ_app.web import schemas
from occ_app.web.contracts import contract

bp = Blueprint("health", __name__)


@bp.get("/health")
@contract(reply=schemas.Health)
def health() -> Response:
    """How it is; 200 also when it is degraded."""
    return web.json_response(services().health())
