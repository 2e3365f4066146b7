"""The parked call that a process of the CLI resumes.

The figures of the processes before it are here, too.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from occ_app.executions.parking import Parked
from occ_app.executions.spent import Spent


@dataclass(frozen=True)
class Resumable:
    """The state of parking when the process of an execution starts.

    `knows_defer`: its CLI asks again about a call that was deferred. `spent`: the figures of the processes before it.
    `parked`: the call that this one resumes.
    """

    knows_defer: bool = False
    spent: Spent = field(default_factory=Spent)
    parked: Parked | None = None


FRESH = Resumable()  # of a process that sends a prompt and parks nothing
