"""Inputs: texts of a person that steer the running turn or become follow-ups."""

from __future__ import annotations

import time
from typing import Any

from flask import Blueprint

from occ_app.api.follow_ups import check_prompt_size, wake_worker
from occ_app.api.services import services
from occ_app.executions import inputs
from occ_app.executions.inputs import Given, Input
from occ_app.streams import tail
from occ_app.web import callers, schemas
from occ_app.web.contracts import contract

bp = Blueprint("inputs", __name__)

_DECISION_SECONDS = 5.0  # for the worker to send a text or make a follow-up of it


@bp.post("/executions/<execution_id>/input")
@contract(body=schemas.InputBody, body_bytes=None, reply=schemas.InputRecord, status=202)
def send(execution_id: str, body: dict[str, Any]) -> Input:
    """Send a text to an execution.

    It goes to the running turn while a tool runs, else it becomes a follow-up.
    """
    return deliver(execution_id, body)


def deliver(execution_id: str, body: dict[str, Any]) -> Input:
    """Deliver a text of the caller, as InputBody reads it.

    Raises NotFound, Conflict, TooLarge and QueueFull.
    """
    check_prompt_size(body["text"])
    own, caller = services(), callers.caller()
    own.refuse_when_stopping()
    given = Given(key_id=caller.key_id, owner_id=caller.owner_id, **body)
    found = inputs.accept(
        own.db,
        execution_id,
        given,
        max_queue=own.config.max_queue,
        admit=own.admit,
        visible_to=caller.visible_to,
    )
    if found.state == "waiting" and own.send_input is not None:
        found = own.send_input(found)
    elif found.state == "waiting":
        own.workers.ring(execution_id)
        return _decided(found)
    if found.state == "queued":
        wake_worker()
    return found


def _decided(found: Input) -> Input:
    """Wait until it is known how a text is delivered; at most some seconds."""
    own, key = services(), tail.execution_key(found.execution)
    channel = own.tail.subscribe(key)
    try:
        deadline = time.monotonic() + _DECISION_SECONDS
        while found.state == "waiting" and time.monotonic() < deadline and not own.tail.closed:
            rings = channel.rings
            found = inputs.get(own.db, found.number)
            if found.state == "waiting":
                own.tail.wait(channel, lambda seen=rings: channel.rings > seen, 1.0)  # type: ignore[misc]  # mypy does not infer the default
    finally:
        own.tail.unsubscribe(key)
    return found
