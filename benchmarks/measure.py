"""The rows of the table: each function measures one thing on every target in turn, round by round."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import processes
from benchmarks.capture import Broken, Prompt, Run
from benchmarks.targets import Occ, Target

SIZE_BYTES = 40
LONGEST_ROW_SECONDS = 20.0  # after which no further round is begun, so that a slow target ends the row and not the run


@dataclass(frozen=True)
class Plan:
    """How much is measured: the whole run takes about three minutes, the quick one under one."""

    name: str
    starts: int
    runs: int
    rounds: int
    seconds_at_50: int
    seconds_at_1000: int
    burst_events: int
    idle_seconds: float
    limit_seconds: int


FULL = Plan("full", 3, 50, 3, 4, 3, 50_000, 12.0, 180)
QUICK = Plan("quick", 1, 15, 1, 2, 2, 50_000, 5.0, 60)


@dataclass(frozen=True)
class Row:
    """One line of the table: the samples of each target, `unit` ms, s, MB, %, count or events/s."""

    name: str
    unit: str
    samples: dict[str, list[float]]
    aim: str = ""
    note: str = ""

    def middle(self, target: str) -> float:
        return percentile(self.samples[target], 50)

    def ratio(self, target: str, base: str) -> float | None:
        """How many times the median of `base` a target's is; None when either is missing."""
        if target not in self.samples or base not in self.samples or not self.middle(base):
            return None
        return self.middle(target) / self.middle(base)


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
    """The smallest sample that `percent` of all do not exceed."""
    ordered = sorted(samples)
    return ordered[max(0, -(-len(ordered) * int(percent) // 100) - 1)]


def starting(homes: Path, make: Callable[[Path], Occ], plan: Plan) -> tuple[Occ, list[Row]]:
    """Start the daemon in a new home, and stop it, several times; the last one stays up."""
    starts, stops = list[float](), list[float]()
    while True:
        occ = make(homes / f"home-{len(starts)}")
        try:
            starts.append(occ.start())
            if len(starts) == plan.starts:
                break
        except BaseException:
            occ.stop()
            raise
        time.sleep(1)  # what is idle is stopped, not what has just begun
        stops.append(occ.stop())
    rows = [Row("cold start: `occ start` called → returned", "s", {"occ": starts})]
    return occ, rows + ([Row("stop when idle: `occ stop` called → returned", "s", {"occ": stops})] if stops else [])


def first_answers(targets: Sequence[Target], plan: Plan) -> list[Row]:
    """From the request to the CLI's first instruction, and to its first output; one short execution at a time."""
    runs = _interleaved(targets, Prompt(1, 0, SIZE_BYTES), plan.runs)
    return [
        Row("request → CLI spawned", "ms", _each(runs, lambda run: [run.spawn_ms]), "p50 < 15 ms"),
        Row("request → first output event", "ms", _each(runs, lambda run: [run.first_ms])),
    ]


def latency(targets: Sequence[Target], plan: Plan, rate: int, seconds: int) -> Row:
    """From a line being written by the CLI to its event being received, at a steady rate."""
    runs = _interleaved(targets, Prompt(rate * seconds, rate, SIZE_BYTES), plan.rounds)
    _nothing_lost(runs)
    name = f"line written → event received, {rate:,} events/s"
    return Row(name, "ms", _each(runs, lambda run: run.latencies_ms), "p50 < 5 ms")


def burst(targets: Sequence[Target], plan: Plan, occ: Occ) -> list[Row]:
    """As many lines as the CLI can write, then the same execution read again from the store."""
    prompt = Prompt(plan.burst_events, 0, SIZE_BYTES)
    runs = _interleaved(targets, prompt, plan.rounds)
    stored = runs["occ"][-1]
    replays = {"occ": [occ.replay(stored, prompt) for _ in range(plan.rounds)]}

    def rate(run: Run) -> list[float]:
        return [prompt.count / run.written_to_read_seconds]

    return [
        Row(f"burst of {prompt.count:,} events", "events/s", _each(runs, rate)),
        Row("burst: events lost", "count", _each(runs, lambda run: [run.lost]), "0"),
        Row("burst: events damaged", "count", _each(runs, lambda run: [run.damaged]), "0"),
        Row(
            f"replay of {prompt.count:,} stored events",
            "events/s",
            _each(replays, lambda run: [prompt.count / run.asked_to_read_seconds]),
        ),
        Row("replay: events lost or damaged", "count", _each(replays, lambda run: [run.lost + run.damaged]), "0"),
    ]


def idle(occ: Occ, plan: Plan, workers: int) -> tuple[list[Row], list[processes.Cost]]:
    """What the daemon costs when nothing happens."""
    time.sleep(2)  # for the write-ahead log and the threads of the last measurement to settle
    costs = processes.watch(occ.processes(), plan.idle_seconds)
    return [
        Row(
            f"idle with {workers} workers: CPU of all processes, % of one core",
            "%",
            {"occ": [sum(cost.cpu_percent for cost in costs)]},
            "< 1 %",
        ),
        Row("memory of all processes (PSS)", "MB", {"occ": [sum(cost.pss_mb for cost in costs)]}, "< 150 MB"),
        Row("number of processes", "count", {"occ": [float(len(costs))]}),
    ], costs


def fresh_memory(occ: Occ) -> Row:
    """Memory before the first execution."""
    total = sum(processes.pss_mb(process) for process in occ.processes())
    return Row("memory of all processes (PSS), before the first execution", "MB", {"occ": [total]}, "< 150 MB")


def _interleaved(targets: Sequence[Target], prompt: Prompt, rounds: int) -> dict[str, list[Run]]:
    """The same prompt on each target in turn, so that what else the machine does hits all of them alike."""
    runs: dict[str, list[Run]] = {target.name: [] for target in targets}
    begun = time.monotonic()
    for _ in range(rounds):
        for target in targets:
            time.sleep(random.uniform(0.02, 0.08))  # noqa: S311 - so that no timer of the daemon is met in step
            runs[target.name].append(target.run(prompt))
        if time.monotonic() - begun > LONGEST_ROW_SECONDS:
            break
    return runs


def _each(runs: dict[str, list[Run]], measure: Callable[[Run], Sequence[float]]) -> dict[str, list[float]]:
    return {name: [float(sample) for run in those for sample in measure(run)] for name, those in runs.items()}


def _nothing_lost(runs: dict[str, list[Run]]) -> None:
    for name, those in runs.items():
        bad = sum(run.lost + run.damaged for run in those)
        if bad:
            raise Broken(f"{name} lost or damaged {bad} events at a steady rate")
