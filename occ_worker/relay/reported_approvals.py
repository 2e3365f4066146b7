"""The approvals in a machine's events, stored as a hub's rows."""

from __future__ import annotations

import json
from collections.abc import Sequence

from occ_app.executions.answers import Approval
from occ_app.executions.events import NewEvent
from occ_app.hub import approval_rows
from occ_app.hub.approvals import HubApprovals
from occ_worker.relay.context import RelayContext
from occ_worker.relay.patience import Patience

_EVENTS = ("approval", "approval_resolved")


def note(context: RelayContext, execution: int, events: Sequence[NewEvent], patience: Patience) -> list[Approval]:
    """Store the approvals in an execution's checked events.

    Returns those whose input is cut. Called before the events are stored, so that a reader of an event finds its row.
    The clock in `patience` is stopped while an approval is open.
    """
    if not any(name in _EVENTS for name, _ in events):
        return []
    cut = []
    for name, data in events:
        if name == "approval":
            approval = approval_rows.note_asked(context.db, execution, json.loads(data))
            if approval is not None and approval.truncated:
                cut.append(approval)
        elif name == "approval_resolved":
            approval_rows.note_resolved(context.db, execution, json.loads(data))
    patience.hold(asked=approval_rows.asked(context.db, execution))
    return cut


def complete(context: RelayContext, cut: Sequence[Approval]) -> None:
    """Request the whole inputs from the machine.

    One that is not available now is requested again when somebody reads the approval.
    """
    for approval in cut:
        HubApprovals(context.db, context.agents, context.calls).completed(approval)
