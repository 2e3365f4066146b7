"""Texts for executions that a machine is running.

They are sent to the machine. A text that the turn cannot accept becomes a follow-up on the hub.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from urllib.parse import quote

from occ_app.database.database import Database
from occ_app.errors import OCCError, Refused, Unreachable
from occ_app.executions import inputs
from occ_app.executions import queries as executions
from occ_app.executions.events import NewEvent
from occ_app.executions.inputs import Input
from occ_app.hub.agent_clients import Calls
from occ_app.hub.agents import Agents

log = logging.getLogger("occ.hub")

_SECONDS = 15.0  # for the machine's worker to send the text
_NOT_THERE = "The machine is not running it yet."
_REFUSED = "The machine does not accept text for a running turn."


def forward(db: Database, agents: Agents, calls: Calls, found: Input) -> Input:
    """Send a waiting text to its execution's machine, and return its new state.

    A machine that does not answer may have received it: then it stays `sent` until the machine reports it.
    """
    with db.read() as connection:
        execution = executions.numbered(connection, found.execution)
    agent = agents.find(execution.agent_id or "")
    if agent is None or not execution.prompt_sent:
        return inputs.queue(db, found.number, _NOT_THERE)
    if not inputs.mark_sent(db, found.number):
        return inputs.get(db, found.number)
    body = {"inputId": found.input_id, "text": found.text, "delivery": "steer", "fallback": False}
    path = f"/executions/{quote(execution.execution_id, safe='')}/input"
    try:
        reply = calls.client(agent).call("POST", path, body, _SECONDS)
    except Refused as refusal:
        if refusal.status >= 500:
            return inputs.get(db, found.number)
        return inputs.queue(db, found.number, _REFUSED)
    except Unreachable:
        return inputs.get(db, found.number)
    note(db, found, str(reply.get("state")), reply.get("reason"))
    return inputs.get(db, found.number)


def note_events(db: Database, execution: int, fresh: Sequence[NewEvent]) -> None:
    """Record the reports on texts among a machine's new events.

    If a report cannot be stored, its text stays `sent`.
    """
    for name, data in fresh:
        if name != "input":
            continue
        content = json.loads(data)
        input_id = content.get("inputId")
        try:
            found = inputs.find(db, execution, input_id) if isinstance(input_id, str) else None
            if found is not None:
                note(db, found, str(content.get("state")), content.get("reason"))
        except OCCError as error:
            log.warning("the report on a text cannot be stored: %s", error)


def note(db: Database, found: Input, state: str, reason: object) -> None:
    """Record a text's state on the machine; an unsent text becomes a follow-up."""
    why = reason[:1000] if isinstance(reason, str) else None
    if state == "unsent":
        inputs.queue(db, found.number, why or _REFUSED)
    elif state in ("delivered", "unknown"):
        inputs.settle(db, found.number, state, why)
