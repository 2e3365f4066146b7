"""What the table is made of: how much is measured, and the samples of each row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks import processes


@dataclass(frozen=True)
class Plan:
    """How much is measured: the whole run takes a few minutes, the quick one fewer."""

    name: str
    starts: int
    runs: int
    rounds: int
    seconds_at_50: int
    seconds_at_1000: int
    burst_events: int
    idle_seconds: float
    limit_seconds: int


FULL = Plan("full", 3, 50, 3, 4, 3, 50_000, 12.0, 600)
QUICK = Plan("quick", 1, 15, 1, 2, 2, 50_000, 5.0, 300)


@dataclass(frozen=True)
class Row:
    """One line of the table: the samples of each target.

    `unit` is ms, s, MB, %, count or events/s.
    """

    name: str
    unit: str
    samples: dict[str, list[float]]
    aim: str = ""
    note: str = ""

    def ratio(self, target: str, base: str, percent: float = 50) -> float | None:
        """Return a percentile of a target divided by that of `base`.

        None when either is missing.
        """
        if target not in self.samples or base not in self.samples:
            return None
        other = percentile(self.samples[base], percent)
        return percentile(self.samples[target], percent) / other if other else None


@dataclass
class Results:
    """All that one run of the benchmark found."""

    rows: list[Row] = field(default_factory=list)
    idle: list[processes.Cost] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        rows = [
            {
                "name": row.name,
                "unit": row.unit,
                "aim": row.aim,
                "targets": {
                    target: {
                        "p50": percentile(samples, 50),
                        "p99": percentile(samples, 99),
                        "samples": len(samples),
                        "worst": max(samples),
                    }
                    for target, samples in row.samples.items()
                },
            }
            for row in self.rows
        ]
        return {"rows": rows, "idle": [asdict(cost) for cost in self.idle]}


def percentile(samples: Sequence[float], percent: float) -> float:
    """Return the smallest sample that `percent` of all do not exceed."""
    ordered = sorted(samples)
    return ordered[max(0, -(-len(ordered) * int(percent) // 100) - 1)]
