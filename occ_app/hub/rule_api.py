"""The hub's API of rules, which forwards to the machines that keep them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from flask import Blueprint
from marshmallow import EXCLUDE, ValidationError

from occ_app import errors
from occ_app.api.services import services
from occ_app.client.agent_client import AgentClient
from occ_app.hub import client_schemas
from occ_app.hub.services import hub_services
from occ_app.web import callers, schemas
from occ_app.web.contracts import contract
from occ_app.workspaces import workspace as workspaces

bp = Blueprint("hub_rules", __name__)

_SECONDS = 10.0
_MOST = 1000  # rules read from a machine's reply
_CODES = ("INVALID_REQUEST", "PERMISSION_CEILING", "TOO_MANY_RULES", "RULE_NOT_FOUND", "WORKSPACE_NOT_FOUND")


@bp.get("/rules")
@contract(query=client_schemas.RulesQuery, reply=schemas.RuleList)
def listing(query: dict[str, Any]) -> Any:
    """List the rules of a workspace, oldest first, as its machine reports them."""
    with _asked(query["workspace_id"]) as (client, name):
        return {"rules": _rules(client, name, query["workspace_id"])}


@bp.post("/rules")
@contract(body=client_schemas.HubRuleBody, reply=schemas.RuleRecord, status=201)
def add(body: dict[str, Any]) -> Any:
    """Add a rule for a workspace on its machine."""
    with _asked(body["workspace_id"]) as (client, name):
        sent = {"rule": body["rule"], "decision": body["decision"], "workspaceId": name}
        return _read(client.call("POST", "/rules", sent, _SECONDS), body["workspace_id"])


@bp.delete("/rules/<rule_id>")
@contract(query=client_schemas.RulesQuery, reply=schemas.Deleted)
def remove(rule_id: str, query: dict[str, Any]) -> Any:
    """Remove a rule of a workspace on its machine."""
    with _asked(query["workspace_id"]) as (client, name):
        if not any(each["rule_id"] == rule_id for each in _rules(client, name, query["workspace_id"])):
            raise errors.rule_not_found(rule_id)
        client.call("DELETE", f"/rules/{quote(rule_id, safe='')}", seconds=_SECONDS)
    return {"status": "success"}


@contextlib.contextmanager
def _asked(workspace_id: str) -> Iterator[tuple[AgentClient, str]]:
    """Yield a client of the machine that has a workspace, and its name there.

    Raises NotFound, Unavailable, and the machine's refusals.
    """
    workspace = workspaces.get(services().db, workspace_id, callers.caller().visible_to)
    agent = hub_services().agents.find(workspace.agent_id or "")
    if agent is None:
        raise errors.Unavailable("AGENT_UNREACHABLE", "No machine has this workspace yet; send it a prompt first.")
    try:
        yield hub_services().calls.client(agent), workspace.name if workspace.is_project else workspace_id
    except errors.Refused as refusal:
        if refusal.code in _CODES:
            raise errors.RequestError(refusal.code, str(refusal)[:4000], refusal.details) from None
        raise _unreachable(agent.name) from None
    except errors.Unreachable:
        raise _unreachable(agent.name) from None


def _unreachable(name: str) -> errors.Unavailable:
    return errors.Unavailable(
        "AGENT_UNREACHABLE", f"Machine {name} keeps these rules, but does not answer. Try again later."
    )


def _rules(client: AgentClient, name: str, workspace_id: str) -> list[dict[str, Any]]:
    listed = client.call("GET", "/rules", seconds=_SECONDS).get("rules")
    found = [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
    return [_read(each, workspace_id) for each in found[:_MOST] if each.get("workspaceId") == name]


def _read(record: Any, workspace_id: str) -> dict[str, Any]:
    """Return a machine's record of a rule, with the hub's id of the workspace.

    Raises Unavailable for a record of another shape.
    """
    try:
        read: dict[str, Any] = schemas.RuleRecord(unknown=EXCLUDE).load(record)
    except ValidationError:
        raise errors.Unavailable("AGENT_UNREACHABLE", "The machine's reply cannot be read; update OCC there.") from None
    return read | {"workspace_id": workspace_id}
