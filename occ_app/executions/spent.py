"""The figures of an execution's processes, added up.

They are time, turns, money and tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from occ_app.executions.records import Outcome


@dataclass(frozen=True)
class Spent:
    """The figures of an execution's earlier processes.

    Running time in seconds, requests to the model, US dollars and tokens.
    """

    seconds: float = 0.0
    turns: int = 0
    cost_usd: float = 0.0
    duration_ms: int = 0
    usage: Mapping[str, Any] = field(default_factory=dict)

    def plus(self, other: Spent) -> Spent:
        """Return the sum of both."""
        return Spent(
            self.seconds + other.seconds,
            self.turns + other.turns,
            self.cost_usd + other.cost_usd,
            self.duration_ms + other.duration_ms,
            added(self.usage, other.usage),
        )

    def with_outcome(self, outcome: Outcome) -> Outcome:
        """Return the outcome of the last process with the figures of all."""
        if self == Spent():
            return outcome
        own = outcome.data
        figures = {
            "costUsd": self.cost_usd + (own.get("costUsd") or 0),
            "numTurns": self.turns + (own.get("numTurns") or 0),
            "durationMs": self.duration_ms + (own.get("durationMs") or 0),
        }
        usage = added(self.usage, outcome.usage or {})
        data = {**own, **figures} | ({"usage": usage} if "usage" in own else {})
        return replace(outcome, data=data, usage=usage)


def added(left: Mapping[str, Any], right: Mapping[str, Any]) -> dict[str, Any]:
    """Return an object with the sums of the numbers in two objects.

    Other values are the newer ones.
    """
    result = dict(left)
    for name, value in right.items():
        former = left.get(name)
        if isinstance(value, Mapping) and isinstance(former, Mapping):
            result[name] = added(former, value)
        elif _is_number(value) and _is_number(former):
            result[name] = former + value
        else:
            result[name] = value
    return result


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
