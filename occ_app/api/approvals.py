"""Approvals: tool calls, questions and plans that a person decides on.

They are of running executions. `services().approvals` are those of an agent's own rows (LocalApprovals), or on a hub
those of its machines (HubApprovals in occ_app/hub/approvals.py). Both have `listing`, `get`, `answer` and `person`.
"""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response

from occ_app.api.services import services
from occ_app.executions.answers import Answer, Approval
from occ_app.web import callers, schemas
from occ_app.web import requests as web
from occ_app.web.contracts import contract
from occ_app.web.fields import schema_of

bp = Blueprint("approvals", __name__)

_BODY_BYTES = 1 << 20


@bp.get("/approvals")
@contract(query=schemas.ApprovalQuery, reply=schemas.ApprovalList)
def listing(query: dict[str, Any]) -> Any:
    """Approvals, oldest first."""
    return {"approvals": services().approvals.listing(query.get("state"), callers.caller().visible_to)}


@bp.get("/approvals/<approval_id>")
@contract(reply=schemas.ApprovalRecord)
def show(approval_id: str) -> Approval:
    """One approval with its whole input."""
    found: Approval = services().approvals.get(approval_id, callers.caller().visible_to)
    return found


@bp.post("/approvals/<approval_id>")
@contract(
    body=schemas.ApprovalAnswer,
    body_bytes=_BODY_BYTES,
    reply=schemas.ApprovalRecord,
    accepted="Of a hub: the answer is stored, and not delivered to the machine yet",
)
def answer(approval_id: str, body: dict[str, Any]) -> Response:
    """Answer an open approval.

    The first answer counts, and the same again changes nothing.
    """
    known = services().approvals
    person = known.person(callers.caller(), body.pop("surface", "api"), body.pop("actor", None))
    decided = known.answer(approval_id, Answer(**body), person)
    record = schema_of(schemas.ApprovalRecord).dump(decided)
    return web.json_response(record, 200 if decided.pending is None else 202)
