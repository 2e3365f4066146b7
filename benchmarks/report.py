"""The results as a table for people and as a file for comparing."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.processes import Cost
from benchmarks.rows import Plan, Results, Row, percentile

RESULTS = Path(__file__).with_name("results")
BASES = ("relay", "unzip", "empty", "claude")  # what a row is compared with: the first of these it has


def table(rows: Sequence[Row]) -> str:
    """Return the rows as text.

    Each has the median and 99th percentile of each target, the ratio to its base, and the bound.
    """
    head = ["", "unit", "direct p50 / p99", "relay, or what the row says, p50 / p99", "occ p50 / p99", "ratio", "must"]
    return _aligned([head, *map(_cells, rows)])


def idle_table(costs: list[Cost]) -> str:
    """Return the idle daemon by process."""
    head = ["process, idle", "CPU %", "wake-ups/s", "PSS MB"]
    rows = [[cost.name, f"{cost.cpu_percent:.2f}", f"{cost.wakeups:.1f}", f"{cost.pss_mb:.1f}"] for cost in costs]
    return _aligned([head, *rows])


def write(results: Results, plan: Plan, seconds: float, load: tuple[float, float]) -> Path:
    """Store the results as JSON under their time.

    `load` is the machine's load average before and after.
    """
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{time.strftime('%Y%m%d-%H%M%S')}-{plan.name}.json"
    content: dict[str, Any] = {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "plan": plan.name,
        "seconds": round(seconds, 1),
        "load": load,
        "machine": {"cores": os.cpu_count(), "sqlite": sqlite3.sqlite_version},
        **results.as_json(),
    }
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


def _cells(row: Row) -> list[str]:
    base = next((name for name in BASES if name in row.samples), BASES[0])
    values = [_spread(row, target) for target in ("direct", base, "occ")]
    return [row.name, row.unit, *values, _ratio(row), row.aim]


def _ratio(row: Row) -> str:
    """Of the medians, and of the 99th percentiles where there are enough samples."""
    base = next((name for name in BASES if name in row.samples), "")
    middle, high = row.ratio("occ", base), row.ratio("occ", base, 99)
    if middle is None or row.unit == "count":
        return ""
    return f"{middle:.3g}" if high is None or len(row.samples["occ"]) < 10 else f"{middle:.3g} / {high:.3g}"


def _spread(row: Row, target: str) -> str:
    """Return the median and 99th percentile of a row.

    Where there are few samples, the range or the only one.
    """
    samples = row.samples.get(target)
    if not samples:
        return "-"
    if row.unit == "count":
        return f"{sum(samples):,.0f}"
    middle = _number(percentile(samples, 50))
    if len(samples) == 1:
        return middle
    if len(samples) < 10:
        return f"{middle} ({_number(min(samples))}-{_number(max(samples))})"
    return f"{middle} / {_number(percentile(samples, 99))}"


def _number(value: float) -> str:
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _aligned(rows: list[list[str]]) -> str:
    """Return the rows as a Markdown table that is readable as text."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def lines() -> Iterator[str]:
        for number, row in enumerate(rows):
            cells = [
                row[0].ljust(widths[0]),
                *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
            ]
            yield f"| {' | '.join(cells)} |"
            if number == 0:
                yield "|" + "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])]) + "|"

    return "\n".join(lines())
