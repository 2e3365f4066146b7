"""Many runs that wait for a person at once, with the real CLI: they take nothing of the agent, and each goes on."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from benchmarks.processes import pss_mb
from tests import real_cli
from tests.conftest import command_line, processes_with, wait_until
from tests.test_approvals import Machine
from tests.test_parking import COUNT, parked, ran, record, started

pytestmark = [
    pytest.mark.real_cli,
    pytest.mark.skipif(not os.environ.get("TEST_ALL"), reason="tried by `make test-all`"),
]

RUNS = int(os.environ.get("PARKED_RUNS", "10"))
IDLE_SECONDS = float(os.environ.get("PARKED_IDLE_SECONDS", "0"))  # over which the idle agent is measured, by hand


def clis(machine: Machine) -> list[int]:
    """Return the processes of the CLI."""
    reach = processes_with(f"ANTHROPIC_BASE_URL={machine.model.url}\0".encode())
    return [process.pid for process in reach if "stream-json" in command_line(process)]


def idle(machine: Machine) -> str:
    """Describe the memory of the idle agent, and its use of a core, where they are to be measured."""
    if not IDLE_SECONDS:
        return "not measured"
    processes = machine.occ.processes()
    used = [sum(process.cpu_times()[:2]) for process in processes]
    time.sleep(IDLE_SECONDS)
    seconds = sum(sum(process.cpu_times()[:2]) for process in processes) - sum(used)
    return f"{sum(map(pss_mb, processes)):.1f} MB PSS, {100 * seconds / IDLE_SECONDS:.2f} % of a core"


def test_many_parked_runs_hold_nothing_and_each_goes_on_in_its_stream(tmp_path: Path) -> None:
    with started(tmp_path, real_cli.require(real_cli.VERSION), OCC_WARM_PROCESSES="0") as machine:
        before = idle(machine)
        runs, questions = [], []
        for _ in range(RUNS):
            run = machine.begin({"tools": [COUNT]}, {"text": "Done."})
            questions.append(parked(run))
            run.events.close()  # type: ignore[attr-defined]  # a generator; nobody watches
            runs.append(run)
        wait_until(lambda: not clis(machine), "every process of the CLI to be gone")
        assert machine.occ.client.health()["workers"]["busy"] == 0
        listed = machine.call("GET", "/approvals?state=open")["approvals"]
        assert [each["approvalId"] for each in listed] == [each["approvalId"] for each in questions]
        print(f"\nidle with no run: {before}; with {RUNS} parked: {idle(machine)}")
        assert [ran(run) for run in runs] == [0] * RUNS
        for run, question in zip(runs, questions, strict=True):
            run.answer(question, "allow")
        for run in runs:
            wait_until(lambda: record(run)["state"] not in ("queued", "running", "parked"), "it to be over", 60 * RUNS)  # noqa: B023 - called in this round
            assert record(run)["state"] == "succeeded"
            assert ran(run) == 1
            stored = list(machine.occ.client.events(run.execution_id))
            assert [event.seq for event in stored] == list(range(1, len(stored) + 1))
            assert [event.name for event in stored].count("complete") == 1
        wait_until(lambda: not clis(machine), "every process of the CLI to be gone")
