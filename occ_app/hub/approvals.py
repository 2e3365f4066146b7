"""Approvals on a hub, for its API, its pages and Slack.

The hub first stores an answer and then delivers it; the machine decides whether it counts. While the machine cannot be
reached the answer waits, and the control process delivers it when the machine is back.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from occ_app.database.database import Database
from occ_app.errors import InvalidRequest, Refused, RequestError, Unavailable, Unreachable
from occ_app.executions import answers, approvals
from occ_app.executions.answers import Answer, Approval, Person
from occ_app.hub import approval_rows as rows
from occ_app.hub import keys
from occ_app.hub.agent_clients import Calls
from occ_app.hub.agents import Agents
from occ_app.system.compact_json import to_json
from occ_app.system.foreign_text import storable
from occ_app.web.statuses import STATUS

if TYPE_CHECKING:  # the hub's workers do without the memory of Flask
    from occ_app.web.callers import Caller

log = logging.getLogger("occ.approvals")

OPERATOR = "operator"  # the caller with the hub's own token
_API_SURFACES = ("api", "terminal")  # those that a client of the API may name
_SECONDS = 5.0
_CALLS = 8
_MAX_SENTENCE_CHARACTERS = 4000
_MAX_INPUT_BYTES = 2 << 20  # of an input as escaped JSON
_FINAL = (403, 404, 409, 413, 422)  # statuses that refuse the answer itself; after others the delivery is retried


@dataclass(frozen=True)
class HubApprovals:
    """A hub's implementation of the approvals in occ_app/api/approvals.py.

    Any process of a hub may use it. `places` limits the concurrent calls that somebody waits for; an answer that gets
    no place is delivered a moment later.
    """

    db: Database
    agents: Agents
    calls: Calls
    places: threading.BoundedSemaphore = field(
        default_factory=lambda: threading.BoundedSemaphore(_CALLS), compare=False
    )

    def person(self, caller: Caller, surface: str, actor: str | None = None) -> Person:
        """Return the person who answers through the API.

        Raises InvalidRequest for a client that names another person or another surface.
        """
        if actor is not None:
            message = "`actor` is the owner of your key; leave it out."
            raise InvalidRequest(message, {"actor": ["Not for a client of a hub."]})
        if surface not in _API_SURFACES:
            message = f"`surface` must be {' or '.join(_API_SURFACES)} for an answer through the API."
            raise InvalidRequest(message, {"surface": ["Not for a client of a hub."]})
        return person_of(self.db, caller, surface)

    def listing(self, state: str | None, visible_to: str | None) -> list[Approval]:
        """Return the newest approvals of an owner, oldest first.

        `visible_to` is the owner, or None for all. Long inputs are cut.
        """
        return approvals.listing(self.db, state, visible_to)

    def waiting(self, visible_to: str | None) -> list[Approval]:
        """Return the open approvals without an answer on the hub, oldest first.

        Long inputs are cut.
        """
        return [each for each in approvals.listing(self.db, "open", visible_to) if each.pending is None]

    def get(self, approval_id: str, visible_to: str | None) -> Approval:
        """Return one approval.

        Its input is whole if the hub has it or the machine sends it. Raises NotFound.
        """
        found = approvals.get(self.db, approval_id, visible_to)
        return self._called(self.completed, found) if found.truncated else found

    def completed(self, approval: Approval) -> Approval:
        """Return an approval with its whole input, requested from its machine.

        Returns it unchanged when the machine does not answer.
        """
        agent = self.agents.find(approval.agent_id or "")
        try:
            if agent is None:
                return approval
            reply = self.calls.client(agent).call("GET", _path(approval), seconds=_SECONDS)
            whole = storable(reply.get("input"))
        except (Unreachable, Refused, ValueError, RecursionError) as error:
            log.info("the whole input of %s is not here yet: %s", approval.approval_id, error)
            return approval
        if reply.get("inputHash") == approval.input_hash and len(to_json(whole)) <= _MAX_INPUT_BYTES:
            rows.complete(self.db, approval.approval_id, whole, redacted=reply.get("redacted") is True)
        return approvals.get(self.db, approval.approval_id)

    def answer(self, approval_id: str, answer: Answer, person: Person) -> Approval:
        """Answer an approval, and return its row.

        The row has `pending` while the machine does not have the answer. Raises NotFound for an approval that the
        person may not see, Forbidden for a viewer, InvalidRequest for an answer that does not fit, Conflict with the
        name of the winner after another answer, and Unavailable for allowing an input that the hub cannot show whole.
        """
        if answer.decision == "allow" and self.get(approval_id, person.visible_to).truncated:
            raise Unavailable(
                "AGENT_UNREACHABLE",
                "The hub has only the beginning of this input, and the machine does not answer. You can deny it now, or"
                " allow it once the machine answers.",
            )
        approval = self._called(self.deliver, rows.keep_answer(self.db, approval_id, answer, person))
        if approval.problem is not None:
            code, message = str(approval.problem["code"]), str(approval.problem["message"])
            raise RequestError(code, message, answers.closing(approval) if code == "APPROVAL_CLOSED" else {})
        return approval

    def _called(self, call: Callable[[Approval], Approval], approval: Approval) -> Approval:
        """Run a call to an approval's machine for somebody who waits.

        Returns the approval unchanged when no place is free.
        """
        if not self.places.acquire(blocking=False):
            return approval
        try:
            return call(approval)
        finally:
            self.places.release()

    def deliver(self, approval: Approval) -> Approval:
        """Send the machine an approval's pending answer, and store the reply.

        Returns the row in its new state.
        """
        agent, pending = self.agents.find(approval.agent_id or ""), approval.pending
        if agent is None or pending is None:
            return approval
        if pending.key_id is not None and keys.is_revoked(self.db, pending.key_id):
            why = f"The key of {pending.actor} was revoked before the machine received the answer. Use another key."
            return rows.drop_answer(self.db, approval, "FORBIDDEN", why)
        body = _body(pending.answer, pending.actor, pending.surface)
        try:
            reply: Mapping[str, Any] = self.calls.client(agent).call("POST", _path(approval), body, _SECONDS)
        except Refused as refusal:
            return self._refused(approval, refusal)
        except Unreachable as error:
            log.info("the answer to %s waits for agent %s: %s", approval.approval_id, agent.name, error)
            return approval
        return self._settled(approval, reply, taken=True)

    def _refused(self, approval: Approval, refusal: Refused) -> Approval:
        if refusal.code == "APPROVAL_CLOSED":
            return self._settled(approval, refusal.details, taken=False)
        if refusal.code == "APPROVAL_NOT_FOUND":
            reply = {"state": "withdrawn", "message": "The machine no longer has this approval."}
            return self._settled(approval, reply, taken=False)
        if refusal.status in _FINAL and refusal.code:
            code = refusal.code if refusal.code in STATUS else "INVALID_REQUEST"
            return rows.drop_answer(self.db, approval, code, str(refusal)[:_MAX_SENTENCE_CHARACTERS])
        log.warning("the answer to %s is not delivered: %s", approval.approval_id, refusal)
        return approval

    def _settled(self, approval: Approval, reply: Mapping[str, Any], *, taken: bool) -> Approval:
        if reply.get("state") not in answers.STATES or reply["state"] == "open":
            log.warning("approval %s: its machine's reply is not valid", approval.approval_id)
            return approval
        return rows.settle(self.db, approval.approval_id, reply, taken=taken)


def person_of(db: Database, caller: Caller, surface: str) -> Person:
    """Return the person behind a key or a login, answering on this surface."""
    name = keys.owner_name(db, caller.owner_id) or OPERATOR
    return Person(name, caller.visible_to, surface, caller.viewer, caller.key_id)


def _body(answer: Answer, actor: str, surface: str) -> dict[str, Any]:
    """Return an answer as the body of POST /approvals/{id} has it."""
    body = {
        "decision": answer.decision,
        "inputHash": answer.input_hash,
        "message": answer.message,
        "updatedInput": answer.updated_input,
        "answers": answer.answers,
        "remember": answer.remember,
        "actor": actor,
        "surface": surface,
    }
    return {name: value for name, value in body.items() if value is not None}


def _path(approval: Approval) -> str:
    return f"/approvals/{quote(approval.approval_id, safe='')}"
