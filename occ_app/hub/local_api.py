"""The endpoint at which machines announce executions that they share."""

from __future__ import annotations

from typing import Any

from flask import Blueprint

from occ_app.api.services import services
from occ_app.hub import agent_schemas, local_executions
from occ_app.hub.api import agent_token
from occ_app.hub.services import hub_services
from occ_app.web.contracts import contract

bp = Blueprint("local", __name__)


@bp.post("/api/agents/<agent_id>/executions")
@contract(
    authenticate=agent_token, body=agent_schemas.LocalExecution, body_bytes=None, reply=agent_schemas.LocalReceived
)
def announce(agent_id: str, body: dict[str, Any]) -> Any:
    """Announce an execution that this machine started itself."""
    shared = local_executions.receive(hub_services().agents, agent_id, body)
    if shared:
        services().wake_worker()
    return {"shared": shared}
