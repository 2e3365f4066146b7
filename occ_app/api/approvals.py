"""Approvals: the tool calls, questions and plans of running executions that a person decides on."""

from __future__ import annotations

from typing import Any

from flask import Blueprint

from occ_app.api.services import services
from occ_app.executions import approvals
from occ_app.executions.approvals import Answer, Approval
from occ_app.web import callers, schemas
from occ_app.web.contracts import contract

bp = Blueprint("approvals", __name__)

_BODY_BYTES = 1 << 20


@bp.get("/approvals")
@contract(query=schemas.ApprovalQuery, reply=schemas.ApprovalList)
def listing(query: dict[str, Any]) -> Any:
    """Approvals, oldest first."""
    return {"approvals": approvals.listing(services().db, query.get("state"), callers.caller().visible_to)}


@bp.get("/approvals/<approval_id>")
@contract(reply=schemas.ApprovalRecord)
def show(approval_id: str) -> Approval:
    """One approval with its whole input."""
    return approvals.get(services().db, approval_id, callers.caller().visible_to)


@bp.post("/approvals/<approval_id>")
@contract(body=schemas.ApprovalAnswer, body_bytes=_BODY_BYTES, reply=schemas.ApprovalRecord)
def answer(approval_id: str, body: dict[str, Any]) -> Approval:
    """Answer an open approval; the first answer counts, and the same again changes nothing."""
    caller = callers.caller()
    given = Answer(**body)
    decided = approvals.decide(services().db, approval_id, given, caller.key_id or "token", caller.visible_to)
    services().workers.ring(decided.execution_id)
    return decided
