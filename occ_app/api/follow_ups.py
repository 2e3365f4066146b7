"""Executions that wait: their prompts, order and pauses."""

from __future__ import annotations

import contextlib
from dataclasses import asdict
from typing import Any

from flask import Blueprint

from occ_app import errors
from occ_app.api.services import services
from occ_app.executions import conversations, follow_ups
from occ_app.executions.records import Execution
from occ_app.web import callers, schemas
from occ_app.web.contracts import contract

bp = Blueprint("follow_ups", __name__)


@bp.patch("/executions/<execution_id>")
@contract(body=schemas.ExecutionChange, body_bytes=None, reply=schemas.ExecutionRecord)
def change(execution_id: str, body: dict[str, Any]) -> Execution:
    """Change an execution that waits.

    Its prompt can be changed; a follow-up can also be paused and moved.
    """
    check_prompt_size(body.get("prompt", ""))
    changed = follow_ups.change(services().db, execution_id, body, callers.caller().visible_to)
    if body.get("paused") is False:
        wake_worker()
    return changed


@bp.post("/conversations/<conversation_id>/resume")
@contract(reply=schemas.ConversationWithExecutions)
def resume(conversation_id: str) -> Any:
    """Let the paused follow-ups of a conversation run."""
    visible_to = callers.caller().visible_to
    if follow_ups.resume(services().db, conversation_id, visible_to):
        wake_worker()
    found, executions = conversations.get(services().db, conversation_id, visible_to)
    return {**asdict(found), "turns": executions}


def check_prompt_size(prompt: str) -> None:
    """Raise TooLarge for a prompt above the configured size."""
    limit = services().config.max_prompt_bytes
    if len(prompt.encode()) > limit:
        raise errors.TooLarge(f"The prompt is over {limit} bytes; put the text into a file.")


def wake_worker() -> None:
    """Wake a worker for executions that wait."""
    with contextlib.suppress(errors.OCCError):  # the change is stored; the reaper wakes a worker within seconds
        services().wake_worker()
