"""Stopping: while it works, twice, while it starts, in a storm of signals; and what the clock and a pause do."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

from occ_app.config.config import load
from occ_app.home import daemon
from tests import fake_hub, sentences
from tests.conftest import Occ, command_line, names, output, steps, wait_until
from tests.promises import Promises, counted, counting_cli, prompt

STUBBORN = steps({"stubborn": True}, {"spawn": "daemon"}, {"say": "0 "}, {"sleep": 60})


@pytest.fixture
def promises(occ: Occ, tmp_path: Path) -> Promises:
    program, starts = counting_cli(tmp_path)
    occ.start(OCC_CLAUDE_BIN=str(program))
    occ.workspace()
    occ.workspace("other")
    return Promises(occ, starts)


def supervisor(occ: Occ) -> int:
    found = daemon.find(load({"OCC_HOME": str(occ.home)}))
    assert found is not None
    return found.pid


def under_way(occ: Occ, body: str, execution_id: str) -> object:
    stream = occ.client.execute("work", body, executionId=execution_id)
    wait_until(lambda: next(stream).name == "output", "it to be under way")
    return stream


def test_a_stop_ends_the_most_stubborn_within_ten_seconds_and_keeps_what_waits(promises: Promises) -> None:
    occ = promises.occ
    under_way(occ, STUBBORN, "stubborn")
    next(occ.client.execute("work", prompt(3), executionId="waiting"))
    begun = time.monotonic()
    done = occ.command("stop")
    share = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))  # of a processor it has the rest on a busy machine
    assert time.monotonic() - begun < 10 * share
    assert sentences.OCC_HAS_STOPPED in done.stdout
    assert "timeout" not in (occ.home / "logs" / "worker.log").read_text().lower()
    assert not occ.processes()
    assert promises.strays({"stubborn"}) == []
    occ.start()
    assert list(occ.client.events("stubborn"))[-1].data["code"] == "DAEMON_STOPPED"
    assert list(occ.client.events("waiting"))[-1].name == "complete"
    promises.check()


def test_new_work_is_refused_while_it_stops(promises: Promises) -> None:
    occ = promises.occ
    under_way(occ, STUBBORN, "stubborn")
    with ThreadPoolExecutor(1) as pool:
        stopping = pool.submit(occ.command, "stop")
        body = {"executionId": "late", "workspaceId": "other", "prompt": "x"}
        wait_until((occ.home / "run/stopping").exists, "the stop to begin")
        response = occ.request("POST", "/execute", json_body=body)
        assert (response.status, response.json()["code"]) == (503, "STOPPING")
        assert stopping.result().returncode == 0


def test_two_stops_at_once_and_a_storm_of_signals_end_in_one_clean_stop(promises: Promises) -> None:
    occ = promises.occ
    under_way(occ, STUBBORN, "stubborn")
    pid = supervisor(occ)
    with ThreadPoolExecutor(2) as pool:
        stops = [pool.submit(occ.command, "stop") for _ in range(2)]
        while not all(stop.done() for stop in stops):
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            time.sleep(0.02)  # a storm, not a wait
        assert [stop.result().returncode for stop in stops] == [0, 0]
    assert not occ.processes()
    occ.start()
    promises.check()


def test_a_stop_while_it_starts_leaves_nothing(occ: Occ) -> None:
    for pause in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5):
        start = subprocess.Popen(
            [sys.executable, "-m", "occ_app.cli", "start"],
            env=occ.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(pause)  # the instant of the fault
        wait_until(lambda: occ.command("stop").returncode == 0, "a stop")
        assert start.wait(60) in (0, 1)
        occ.command("stop")
        wait_until(lambda: not occ.processes(), "nothing to be left")


def test_a_worker_that_is_told_to_leave_leaves_and_is_replaced(promises: Promises) -> None:
    occ = promises.occ
    count = int(occ.environment["OCC_WORKERS"])

    def workers() -> list[int]:
        """Those of the consumer of executions, which starts once the daemon serves."""
        parts = psutil.Process(supervisor(occ)).children()
        consumers = [part for part in parts if command_line(part)[-1:] == ["executions"]]
        return [child.pid for consumer in consumers for child in consumer.children()]

    wait_until(lambda: len(workers()) == count, "all workers to start")
    told = min(workers())
    os.kill(told, signal.SIGTERM)
    wait_until(lambda: not psutil.pid_exists(told), "it to leave")
    wait_until(lambda: len(workers()) == count, "another to come")
    promises.check()


def test_a_hang_up_does_not_stop_the_background_daemon(promises: Promises) -> None:
    occ = promises.occ
    os.kill(supervisor(occ), signal.SIGHUP)
    assert names(occ.run(prompt(3)))[-1] == "complete"


def test_a_daemon_that_was_paused_goes_on_as_if_nothing_had_been(promises: Promises, tmp_path: Path) -> None:
    occ = promises.occ
    gate = tmp_path / "gate"
    body = steps({"say": "0 "}, {"wait": str(gate)}, {"say": "1 "})
    stream = under_way(occ, body, "paused")
    paused = occ.processes()
    for process in paused:
        with contextlib.suppress(psutil.NoSuchProcess):  # one that was asked for its version, say
            process.suspend()
    time.sleep(float(os.environ.get("PAUSE_SECONDS", "6")))  # the fault: longer than every re-read and reaper's look
    for process in reversed(paused):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.resume()
    gate.touch()
    assert list(stream)[-1].name == "complete"  # type: ignore[call-overload]
    assert output(list(occ.client.events("paused"))) == counted(2)
    promises.check()


SHIFTED = """
import datetime, pathlib, time
jump, real_time, real_ns = pathlib.Path({path!r}), time.time, time.time_ns
def shift():
    try:
        return int(jump.read_text() or 0)
    except (OSError, ValueError):
        return 0
time.time = lambda: real_time() + shift()
time.time_ns = lambda: real_ns() + shift() * 10**9
class Shifted(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return super().now(tz) + datetime.timedelta(seconds=shift())
    @classmethod
    def utcnow(cls):
        return cls.now(datetime.UTC).replace(tzinfo=None)
datetime.datetime = Shifted
"""


@pytest.mark.parametrize("days", [1, -1])
def test_a_clock_that_jumps_moves_no_limit_and_no_heartbeat(occ: Occ, tmp_path: Path, days: int) -> None:
    """Every process of the daemon sees a wall clock that jumps by a day; the monotonic one goes on."""
    jump, gate = tmp_path / "jump", tmp_path / "gate"
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SHIFTED.format(path=str(jump)))
    with fake_hub.serve() as hub:
        occ.start(
            *("--remote-url", hub.url, "--bind-address", "127.0.0.1"),
            OCC_API_KEY=fake_hub.API_KEY,
            PYTHONPATH=str(tmp_path / "site"),
        )
        occ.workspace()
        stream = under_way(occ, steps({"say": "0 "}, {"wait": str(gate)}, {"say": "1 "}), "jumped")
        wait_until(lambda: len(hub.beats) >= 2, "heartbeats before the jump")
        jump.write_text(str(days * 86400))
        before = len(hub.beats)
        wait_until(lambda: len(hub.beats) >= before + 4, "heartbeats after the jump")
        beats = hub.beats[before - 1 :]
        assert max(b.at - a.at for a, b in pairwise(beats)) < 30  # and not a day
        assert (beats[-1].at - beats[0].at) / (len(beats) - 1) > 0.3  # in the mean: one that came late is followed soon
        gate.touch()
        (*_, last) = stream  # type: ignore[misc]
        assert last.name == "complete"
        stamps = [event.data["timestamp"] for event in occ.client.events("jumped")]
        assert abs(stamps[-1] - stamps[0]) > 80_000_000, "the clock did not jump for the daemon"
        begun = time.monotonic()
        quiet = occ.run(steps({"say": "0 "}, {"sleep": 60}), idleTimeoutSeconds=3)
        assert quiet[-1].data["code"] == "EXECUTION_IDLE"
        assert 2.5 < time.monotonic() - begun < 30  # it would go on for 60
        occ.stop()


DISCARDED = """
import signal
from occ_app.cli import demo

class Ends:
    def __del__(self):
        signal.raise_signal(signal.SIGTERM)

signalled = demo._interrupt_at_signals()
Ends()
try:
    demo._await_signal(signalled)
except KeyboardInterrupt:
    print("it ends")
"""


def test_a_signal_whose_exception_python_discards_ends_the_demonstration() -> None:
    done = subprocess.run([sys.executable, "-c", DISCARDED], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "it ends\n"
