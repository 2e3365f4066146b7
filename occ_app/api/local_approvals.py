"""The approvals of an agent's own executions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from occ_app.config.permission_rules import Rule
from occ_app.database.database import Database
from occ_app.executions import approvals
from occ_app.executions.answers import Answer, Approval, Person
from occ_app.streams.doorbell import Ringer
from occ_app.web.callers import Caller


@dataclass(frozen=True)
class LocalApprovals:
    """See occ_app/api/approvals.py."""

    db: Database
    workers: Ringer
    own_rules: Sequence[Rule] = ()  # the operator's

    def person(self, caller: Caller, surface: str, actor: str | None) -> Person:
        """Return who answers: the person that a hub names, or the holder of the token."""
        return Person(actor or "token", caller.visible_to, surface, caller.viewer)

    def listing(self, state: str | None, visible_to: str | None) -> list[Approval]:
        return approvals.listing(self.db, state, visible_to)

    def get(self, approval_id: str, visible_to: str | None) -> Approval:
        return approvals.get(self.db, approval_id, visible_to)

    def answer(self, approval_id: str, answer: Answer, person: Person) -> Approval:
        decided = approvals.decide(self.db, approval_id, answer, person, self.own_rules)
        self.workers.ring(decided.execution_id)
        return decided
