"""The rows of the table.

Each function measures one thing on every target in turn, round by round.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import processes, zips
from benchmarks.agent import Occ
from benchmarks.capture import Broken, Prompt, Run
from benchmarks.rows import Plan, Row
from benchmarks.streams import read, together
from benchmarks.targets import Relay, Target
from occ_app.workspaces import archives

SIZE_BYTES = 40
LONGEST_ROW_SECONDS = 20.0  # after which no further round is begun, so that a slow target ends the row and not the run


def starting(make: Callable[[str], Occ], relay: Callable[[], Relay], plan: Plan) -> tuple[Occ, list[Row]]:
    """Start the daemon in a new home, and stop it, several times.

    The relay is started in between. The last daemon stays up.
    """
    healthy, starts, stops, relays = list[float](), list[float](), list[float](), list[float]()
    while True:
        beside = relay()
        relays.append(beside.start_seconds)
        beside.stop()
        occ = make(f"home-{len(starts)}")
        for seconds, collected in zip(occ.start(), (healthy, starts), strict=True):
            collected.append(seconds)
        if len(starts) == plan.starts:
            break
        time.sleep(1)  # what is idle is stopped, not what has just begun
        stops.append(occ.stop())
    return occ, [
        Row("cold start: called → first /health", "s", {"relay": relays, "occ": healthy}, "≤ 10"),
        Row("cold start: `occ start` called → returned", "s", {"occ": starts}),
        *([Row("stop when idle: `occ stop` called → returned", "s", {"occ": stops})] if stops else []),
    ]


def first_answers(targets: Sequence[Target], plan: Plan) -> list[Row]:
    """Measure the time from the request to the CLI's first instruction and output.

    One short execution at a time.
    """
    runs = _interleaved(targets, Prompt(1, 0, SIZE_BYTES), plan.runs)
    return [
        Row("request → CLI spawned", "ms", _each(runs, lambda run: [run.spawn_ms])),
        Row("request → first output event", "ms", _each(runs, lambda run: [run.first_ms]), "≤ 1.15"),
    ]


def latency(targets: Sequence[Target], plan: Plan, rate: int, seconds: int) -> Row:
    """Measure the time from a line of the CLI to its event, at a steady rate."""
    runs = _interleaved(targets, Prompt(rate * seconds, rate, SIZE_BYTES), plan.rounds)
    _nothing_lost(runs)
    name = f"line written → event received, {rate:,} events/s"
    aim = "≤ 1.25 / ≤ 1.7" if rate == 50 else "≤ 4 / p99 < 5 ms"
    return Row(name, "ms", _each(runs, lambda run: run.latencies_ms), aim)


def burst(targets: Sequence[Target], plan: Plan, occ: Occ) -> list[Row]:
    """Measure a burst of lines, and a replay of the same execution from the store.

    The CLI writes as many lines as it can.
    """
    prompt = Prompt(plan.burst_events, 0, SIZE_BYTES)
    before = {target.name: target.cpu_seconds() for target in targets}
    runs = _interleaved(targets, prompt, plan.rounds)
    used = {target.name: target.cpu_seconds() - before[target.name] for target in targets}
    cpu = {name: [1e6 * used[name] / (prompt.count * len(runs[name]))] for name in used if used[name]}
    stored = runs["occ"][-1]
    replays = {"occ": [read(occ.follow(stored.execution_id, prompt)) for _ in range(plan.rounds)]}

    def rate(run: Run) -> list[float]:
        return [prompt.count / run.written_to_read_seconds]

    return [
        Row(f"burst of {prompt.count:,} events", "events/s", _each(runs, rate), "≥ 0.35"),
        Row("burst: events lost or damaged", "count", _each(runs, lambda run: [run.lost + run.damaged]), "0"),
        Row("burst: CPU of the server per event", "µs", cpu, "≤ 6"),
        Row(
            f"replay of {prompt.count:,} stored events",
            "events/s",
            _each(replays, lambda run: [prompt.count / run.asked_to_read_seconds]),
            "≥ 100,000",
        ),
        Row("replay: events lost or damaged", "count", _each(replays, lambda run: [run.lost + run.damaged]), "0"),
    ]


def at_once(targets: Sequence[Target], plan: Plan, many: int) -> list[Row]:
    """Many executions at the same time, each at 50 events/s."""
    prompt = Prompt(50 * plan.seconds_at_50, 50, SIZE_BYTES)
    runs = {target.name: together([target.begin(prompt, lane) for lane in range(many)]) for target in targets}
    bound = {20: "p99 < 5 ms", 50: "p99 < 25 ms"}.get(many, "")
    return [
        Row(f"{many} executions: request → first output", "ms", _each(runs, lambda run: [run.first_ms]), "≤ 1.0"),
        Row(f"{many} executions: line → event, 50/s each", "ms", _each(runs, lambda run: run.latencies_ms), bound),
        Row(
            f"{many} executions: events lost or damaged",
            "count",
            _each(runs, lambda run: [run.lost + run.damaged]),
            "0",
        ),
    ]


def followers(occ: Occ, plan: Plan, many: int) -> list[Row]:
    """Measure one execution at 50 events/s with many followers.

    They are attached while it runs; the first reader is its caller.
    """
    prompt = Prompt(50 * (plan.seconds_at_50 + 6), 50, SIZE_BYTES)
    caller = occ.begin(prompt)
    caller.take()  # it is accepted
    streams = [caller, *(occ.follow(caller.execution_id, prompt) for _ in range(many - 1))]
    for stream in streams[1:]:
        stream.take()  # it is attached
    attached, before = time.monotonic_ns(), occ.cpu_seconds()
    healths, stop = list[float](), threading.Event()

    def ask() -> None:
        while not stop.wait(0.05):
            healths.append(1000 * occ.get("/health"))

    asking = threading.Thread(target=ask)
    asking.start()
    runs = together(streams)
    stop.set()
    asking.join()
    seconds = (time.monotonic_ns() - attached) / 1e9
    cpu = 100 * (occ.cpu_seconds() - before) / seconds
    live = [
        (arrived - written) / 1e6
        for run in runs
        for written, arrived in zip(run.written, run.arrived, strict=True)
        if written > attached
    ]
    name = f"{many} followers of one execution at 50/s"
    return [
        Row(f"{name}: line → event", "ms", {"occ": live}, "p99 < 50 ms"),
        Row(f"{name}: /health", "ms", {"occ": healths}, "< 100 ms"),
        Row(f"{name}: CPU of all processes", "%", {"occ": [cpu]}),
        Row(f"{name}: events lost or damaged", "count", {"occ": [float(sum(r.lost + r.damaged for r in runs))]}, "0"),
    ]


def idle(occ: Occ, plan: Plan, workers: int) -> tuple[list[Row], list[processes.Cost]]:
    """Measure the idle daemon."""
    time.sleep(2)  # for the write-ahead log and the threads of the last measurement to settle
    costs = processes.watch(occ.processes(), plan.idle_seconds)
    return [
        Row(
            f"idle with {workers} workers: CPU of all processes, % of one core",
            "%",
            {"occ": [sum(cost.cpu_percent for cost in costs)]},
            "< 0.5 %",
        ),
        Row(
            f"memory of all processes with {workers} workers (PSS)",
            "MB",
            {"occ": [sum(cost.pss_mb for cost in costs)]},
            "< 120 MB" if workers == 5 else "",
        ),
    ], costs


def uploads(occ: Occ, scratch: Path) -> list[Row]:
    """Measure uploads beside `unzip`.

    One large zip that hardly compresses, and one of many small files.
    """
    unzip = shutil.which("unzip")
    if unzip is None:
        raise Broken("there is no unzip to compare with; install one (on Debian: apt-get install unzip)")
    rows = []
    limits = archives.Limits(1 << 30, 1 << 20)
    for name, archive in (("100 MB", zips.large(scratch)), ("20,000 small files", zips.many(scratch))):
        samples: dict[str, list[float]] = {"unzip": [], "occ": []}
        sent: dict[str, list[float]] = {"unzip": samples["unzip"], "occ": []}
        ways: list[tuple[list[float], Callable[[Path, Path], object]]] = [
            (samples["unzip"], lambda zipped, folder: subprocess.run([unzip, "-q", zipped, "-d", folder], check=True)),
            (samples["occ"], lambda zipped, folder: archives.unpack(zipped, folder, limits)),
        ]
        # Removed only when all is measured: ext4 looks in vain through thousands of inodes that have just become free.
        unpacked = scratch / "unpacked"
        unpacked.mkdir()
        for turn in range(5):
            for times, unpack in ways if turn % 2 else reversed(ways):  # what comes second finds a busier disk
                os.sync()
                begun = time.monotonic()
                unpack(archive, unpacked / f"{len(times)}-{times is samples['occ']}")
                times.append(time.monotonic() - begun)
            with archive.open("rb") as file:
                sent["occ"].append(occ.upload(f"{archive.stem}-{turn}", file))
        shutil.rmtree(unpacked)
        rows.append(Row(f"a zip of {name}: checked and unpacked, beside `unzip`", "s", samples, "≤ 1.5"))
        rows.append(Row(f"a zip of {name}: uploaded, unpacked, safe on the disk", "s", sent))
    return rows


def fresh_memory(occ: Occ) -> Row:
    """Memory before the first execution."""
    total = sum(processes.pss_mb(process) for process in occ.processes())
    return Row("memory of all processes (PSS), before the first execution", "MB", {"occ": [total]}, "< 120 MB")


def _interleaved(targets: Sequence[Target], prompt: Prompt, rounds: int) -> dict[str, list[Run]]:
    """Run the same prompt on each target in turn.

    Other load on the machine then hits all of them alike.
    """
    runs: dict[str, list[Run]] = {target.name: [] for target in targets}
    begun = time.monotonic()
    for _ in range(rounds):
        for target in targets:
            time.sleep(random.uniform(0.02, 0.08))  # noqa: S311 - so that no timer of the daemon is met in step
            runs[target.name].append(read(target.begin(prompt)))
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
