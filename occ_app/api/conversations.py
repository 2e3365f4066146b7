"""Conversations: the executions of one Claude session together."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from flask import Blueprint

from occ_app.api.services import services
from occ_app.executions import conversations
from occ_app.web import callers, schemas
from occ_app.web.contracts import contract

bp = Blueprint("conversations", __name__)


@bp.get("/conversations")
@contract(query=schemas.ConversationQuery, reply=schemas.ConversationList)
def listing(query: dict[str, Any]) -> Any:
    """Conversations, the one with the newest execution first."""
    found, following = conversations.listing(services().db, visible_to=callers.caller().visible_to, **query)
    return {"conversations": found, "next": following}


@bp.get("/conversations/<conversation_id>")
@contract(reply=schemas.ConversationWithExecutions)
def show(conversation_id: str) -> Any:
    """One conversation with its executions, oldest first."""
    found, executions = conversations.get(services().db, conversation_id, callers.caller().visible_to)
    return {**asdict(found), "turns": executions}
