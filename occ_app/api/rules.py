"""Rules of people: tool calls that run unasked, are asked about or never run."""

from __future__ import annotations

from typing import Any

from flask import Blueprint

from occ_app import errors
from occ_app.api.services import services
from occ_app.config import permission_rules
from occ_app.config.permission_rules import Rule
from occ_app.config.settings import PERMISSIONS
from occ_app.executions import rules
from occ_app.executions.rules import Place, StoredRule
from occ_app.web import callers, schemas
from occ_app.web.contracts import contract

bp = Blueprint("rules", __name__)


@bp.get("/rules")
@contract(reply=schemas.RuleList)
def listing() -> Any:
    """Rules, oldest first; those of the operator's settings have no id."""
    caller = callers.caller()
    own = services().config.rules if caller.admin else ()
    stored = rules.listing(services().db, caller.visible_to)
    return {
        "rules": [
            *({"rule": rule.text, "decision": rule.decision, "scope": "agent"} for rule in own),
            *map(_shown, stored),
        ]
    }


@bp.post("/rules")
@contract(body=schemas.RuleBody, reply=schemas.RuleRecord, status=201)
def add(body: dict[str, Any]) -> Any:
    """Add a rule.

    It is for a workspace, a conversation or an execution, or without any for the agent.
    """
    caller = callers.caller()
    rule = _read(body["rule"], body["decision"])
    with services().db.write() as connection:
        if "workspace_id" in body:
            place = rules.of_workspace(connection, body["workspace_id"], caller.visible_to)
        elif "execution_id" in body:
            conversation = body.get("scope") == "conversation"
            place = rules.of_execution(
                connection, body["execution_id"], conversation=conversation, visible_to=caller.visible_to
            )
        else:
            callers.require_admin()
            place = Place("agent")
        rule_id = rules.add(connection, place, rule, caller.key_id or "token")
    return _shown(rules.get(services().db, rule_id))


@bp.delete("/rules/<rule_id>")
@contract(reply=schemas.Deleted)
def remove(rule_id: str) -> Any:
    """Remove a rule."""
    rules.remove(services().db, rule_id, callers.caller().visible_to)
    return {"status": "success"}


def _read(text: str, decision: str) -> Rule:
    ceiling = services().config.ceiling
    if decision == "allow" and PERMISSIONS.index(ceiling) < PERMISSIONS.index("ask"):
        raise errors.RequestError(
            "PERMISSION_CEILING",
            f"This agent allows no more than {ceiling}, so only its operator can allow calls, with OCC_ALLOW there.",
            {"permissions": "ask", "ceiling": ceiling},
        )
    try:
        return permission_rules.parsed(text, decision)
    except ValueError as error:
        raise errors.InvalidRequest(f"`rule` cannot be used: {error}.", {"rule": [str(error)]}) from None


def _shown(stored: StoredRule) -> dict[str, Any]:
    return {
        "rule_id": stored.rule_id,
        "rule": stored.rule.text,
        "decision": stored.rule.decision,
        "scope": stored.place.scope,
        "workspace_id": stored.workspace_id,
        "conversation_id": stored.place.conversation,
        "execution_id": stored.execution_id,
        "actor": stored.actor,
        "created_at": stored.created_at,
    }
