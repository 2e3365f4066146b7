"""`python -m benchmarks.bench [--quick]`: measure OCC and print the table.

It is measured beside a bare pipe and a relay that stores nothing (docs/performance.md). All run in turn on the same
machine with the same stub CLI, so their ratio shows the cost of OCC on any machine.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import growth, measure, report
from benchmarks.agent import Occ
from benchmarks.capture import Broken
from benchmarks.rows import FULL, QUICK, Plan, Results
from benchmarks.targets import Direct, Relay, compile_stub

WORKERS = 5
FOLLOWERS = 500


def main() -> int:
    """Run it. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="fewer samples, in under half a minute")
    plan = QUICK if parser.parse_args().quick else FULL
    signal.signal(signal.SIGTERM, _interrupted)
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(plan.limit_seconds)
    load, begun = os.getloadavg()[0], time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="occ-bench-") as scratch:
            results = _measure(Path(scratch), plan)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        what = str(error) if isinstance(error, Broken) else f"{type(error).__name__}: {error}"
        print(f"bench: {what.strip().rstrip('.')}.", file=sys.stderr)
        return 1
    seconds = time.monotonic() - begun
    path = report.write(results, plan, seconds, (load, os.getloadavg()[0]))
    print(f"{report.table(results.rows)}\n\n{report.idle_table(results.idle)}\n")
    print(f"{seconds:.0f} s; load average {load:.2f} before; {path}")
    return 0


def _measure(scratch: Path, plan: Plan) -> Results:
    """Everything. Nothing that was started is left when this returns or raises."""
    stub = compile_stub(scratch)
    direct = Direct(stub, scratch)
    results = Results()
    with contextlib.ExitStack() as stack:

        def agent(home: str, workers: int) -> Occ:
            occ = Occ(scratch / home, stub, workers)
            stack.callback(occ.stop)
            return occ

        _say("cold start")
        occ, starts = measure.starting(lambda name: agent(name, WORKERS), lambda: Relay(stub, scratch), plan)
        relay = Relay(stub, scratch)
        stack.callback(relay.stop)
        results.rows.append(measure.fresh_memory(occ))
        targets = (direct, relay, occ)
        _say("first answers")
        results.rows += measure.first_answers(targets, plan)
        for rate, seconds in ((50, plan.seconds_at_50), (1000, plan.seconds_at_1000)):
            _say(f"{rate} events/s")
            results.rows.append(measure.latency(targets, plan, rate, seconds))
        _say("burst and replay")
        results.rows += measure.burst(targets, plan, occ)
        _say("idle")
        rows, results.idle = measure.idle(occ, plan, WORKERS)
        results.rows += [*rows, *starts]
        _say("followers")
        results.rows += measure.followers(occ, plan, FOLLOWERS)
        _say("uploads")
        results.rows += measure.uploads(occ, scratch)
        occ.stop()
        for workers, at_once in ((20, (5, 20)), (50, (50,))):
            _say(f"{workers} workers")
            crowd = agent(f"home-of-{workers}", workers)
            crowd.start()
            if workers == 20:
                results.rows += measure.idle(crowd, plan, workers)[0]
            for many in at_once:
                results.rows += measure.at_once((direct, relay, crowd), plan, many)
            crowd.stop()
        _say("a long past")
        results.rows += growth.rows(*growth.agents(lambda name: agent(name, WORKERS)), plan)
        signal.alarm(0)
    return results


def _say(what: str) -> None:
    print(f"measuring: {what}", file=sys.stderr, flush=True)


def _too_long(*_: Any) -> None:
    raise Broken("it took longer than it may and was ended")


def _interrupted(*_: Any) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
