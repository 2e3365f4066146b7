"""kill -9 of every part of the daemon, at random instants, under load: the promises hold."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import pytest

from occ_app.client.agent_client import AgentClient
from occ_app.client.sse import StreamEvent
from occ_app.config import config as configuration
from occ_app.database import database as db
from occ_app.executions import queries as executions
from occ_app.executions.records import Execution
from occ_app.snapshots.store import snapshots_of
from occ_app.streams.doorbell import Ringer
from occ_app.supervisor.processes import STEADY_SECONDS
from occ_worker.control.agent import Control
from tests.conftest import Occ, make_zip, steps, wait_until
from tests.promises import VICTIMS, Load, Promises, counting_cli, kill, load_for, prompt, serves

ROUNDS = int(os.environ.get("FAULT_ROUNDS", "3" if os.environ.get("TEST_ALL") else "2"))
RECOVERY_SECONDS = 60.0  # on a machine that is busy with other tests, too

HARMLESS = {"web", "control"}
STRAY = ({"spawn": "session"},)


@pytest.fixture
def promises(occ: Occ, tmp_path: Path, free_port: int) -> Promises:
    """A running agent on a port of its own choice, with four workspaces, and its promises."""
    program, starts = counting_cli(tmp_path)
    occ.start(OCC_CLAUDE_BIN=str(program), OCC_HTTP_PORT=str(free_port), OCC_WORKERS="3")
    for number in range(4):
        occ.workspace(f"w{number}")
    return Promises(occ, starts)


def strike(occ: Occ, victim: str) -> float | None:
    """Kill at a random instant and wait until the agent serves again; returns the seconds it took."""
    threading.Event().wait(random.uniform(0, 0.7))  # noqa: S311 - any instant
    if not kill(occ, victim):
        return None
    begun = time.monotonic()
    if victim in ("the supervisor", "everything"):
        wait_until(lambda: not occ.processes(), "nothing of the daemon to be left", RECOVERY_SECONDS)
        begun = time.monotonic()
        occ.start()
    wait_until(lambda: serves(occ), "the agent to serve again", RECOVERY_SECONDS)
    return time.monotonic() - begun


@pytest.mark.parametrize("victim", VICTIMS)
def test_the_promises_hold_whatever_is_killed(promises: Promises, victim: str) -> None:
    occ = promises.occ
    load = Load(occ, promises, more=STRAY if victim in ("a worker", "everything") else ())
    recoveries, missed = list[float](), 0
    with load_for(load, clients=5, seconds=0):
        while len(recoveries) < ROUNDS:
            seconds = strike(occ, victim)
            if seconds is None:
                missed += 1
                assert missed < 20, occ.logs()
                continue
            recoveries.append(seconds)
            if len(recoveries) % 3 == 0 and len(recoveries) < ROUNDS:
                # Five early deaths in a row would end the daemon, as they should.
                threading.Event().wait(STEADY_SECONDS + 2)
    promises.check()
    ends = set(load.outcomes)
    if victim in HARMLESS:
        assert ends == {"succeeded"}, load.outcomes
    else:
        assert ends <= {"succeeded", "WORKER_LOST", "DAEMON_STOPPED"}, load.outcomes
    print(
        f"\n{victim}: {ROUNDS} kills, {dict(load.outcomes)}, recovery median {median(recoveries):.2f} s,"
        f" worst {max(recoveries):.2f} s; {dict(promises.checked)}"
    )


def test_a_lost_worker_s_execution_is_finished_and_the_others_go_on(promises: Promises, tmp_path: Path) -> None:
    occ = promises.occ
    gate = tmp_path / "gate"
    streams = {}
    for number in range(3):
        spawned = {"spawn": "daemon"}
        body = steps(spawned, {"say": "0 "}, {"wait": str(gate)}, {"say": "1 "})
        streams[number] = occ.client.execute(f"w{number}", body, executionId=f"e{number}")
        wait_until(lambda number=number: next(streams[number]).name == "output", "it to be under way")
    queued = occ.client.execute("w0", prompt(3), executionId="waiting")
    next(queued)
    with occ.database.read() as connection:
        owner = connection.execute("SELECT owner_pid FROM executions WHERE execution_id = 'e0'").fetchone()[0]
    os.kill(owner, 9)
    begun = time.monotonic()
    assert list(streams[0])[-1].data["code"] == "WORKER_LOST"
    assert time.monotonic() - begun < RECOVERY_SECONDS
    assert promises.strays({"e0"}) == []
    assert len(promises.strays({"e1"})) > 0
    assert list(queued)[-1].name == "complete"
    gate.touch()
    assert [list(streams[number])[-1].name for number in (1, 2)] == ["complete", "complete"]
    promises.check()


@contextlib.contextmanager
def control_of(occ: Occ, now: Callable[[], float]) -> Iterator[Control]:
    """A control beside the one of a running agent, with another clock; it is not asked to call anything."""
    config = configuration.load(occ.environment)
    with (
        contextlib.closing(db.Database(config.database)) as database,
        contextlib.closing(Ringer(config.run / "tail")) as readers,
    ):
        control = Control(
            config,
            database,
            readers,
            heartbeat=None,  # type: ignore[arg-type]  # not asked
            queued=lambda: 1,
            ring=lambda: None,
            snapshots=snapshots_of(config),
            sharing=None,  # type: ignore[arg-type]  # not asked
            now=now,
        )
        with contextlib.closing(control):
            yield control


def stuck(occ: Occ, execution_id: str, workspace: str, **options: object) -> tuple[Iterator[StreamEvent], Execution]:
    """An execution whose worker is stopped."""
    stream = occ.client.execute(workspace, steps({"say": "on"}, {"sleep": 600}), executionId=execution_id, **options)
    wait_until(lambda: next(stream).name == "output", "it to be under way")
    with contextlib.closing(occ.database) as database:
        execution = executions.get(database, execution_id)
    assert execution.owner_pid is not None
    os.kill(execution.owner_pid, signal.SIGSTOP)
    return stream, execution


def is_alive(execution: Execution) -> bool:
    return execution.claimed_by is not None and execution.claimed_by.alive()


def test_a_cancel_and_a_limit_reach_past_a_worker_that_is_stuck(promises: Promises) -> None:
    """The clock decides, 20 s after a cancel and 30 s after a limit; the agent ends all that is left of it."""
    occ, now = promises.occ, [0.0]
    stream, cancelled = stuck(occ, "stuck", "w0")
    limited_stream, limited = stuck(occ, "limited", "w1", timeoutSeconds=3000)
    assert limited.deadline is not None
    occ.client.cancel("stuck")
    with control_of(occ, lambda: now[0]) as control:
        for now[0] in (0.0, 20.0):
            control.reap()
            assert is_alive(cancelled)
        now[0] = 20.1
        control.reap()
        wait_until(lambda: not is_alive(cancelled), "it to be killed")
        assert list(stream)[-1].data["code"] == "EXECUTION_CANCELLED"
        now[0] = limited.deadline + 29.9
        control.reap()
        assert is_alive(limited)
        now[0] = limited.deadline + 30.1
        control.reap()
        wait_until(lambda: not is_alive(limited), "it to be killed")
    assert list(limited_stream)[-1].data["code"] == "WORKER_LOST"
    assert list(occ.client.execute("w0", "hello"))[-1].name == "complete"


def test_what_outlives_everything_is_ended_by_the_next_start(promises: Promises) -> None:
    occ = promises.occ
    body = steps({"spawn": "daemon"}, {"say": "0 "}, {"sleep": 60})
    stream = occ.client.execute("w0", body, executionId="e0")
    wait_until(lambda: next(stream).name == "output", "it to be under way")
    wait_until(lambda: kill(occ, "everything"), "everything to be killed")
    wait_until(lambda: not occ.processes(), "nothing of the daemon to be left")
    stray = int((occ.home / "workspaces/w0/spawned.pid").read_text())
    wait_until(lambda: promises.strays({"e0"}) == [stray], "only what has a session of its own to be left")
    occ.start()
    assert list(stream)[-1].data["code"] == "WORKER_LOST"
    promises.check()


def test_an_upload_under_way_when_control_dies_is_undone_and_can_be_repeated(promises: Promises) -> None:
    occ = promises.occ
    content = {f"{number}.txt": os.urandom(20_000) for number in range(1500)}
    done = threading.Event()
    answers = []

    def upload() -> None:
        response = occ.request("POST", "/workspace/init", **_form(content))
        answers.append(response.status)
        done.set()

    thread = threading.Thread(target=upload)
    thread.start()

    def unpacked() -> bool:
        """Return whether it is being unpacked, or over: on a quick machine that may be between two looks."""
        return done.is_set() or any((occ.home / "workspaces").glob(".incoming-*"))

    wait_until(unpacked, "the upload to be unpacked")
    kill(occ, "control")
    assert done.wait(RECOVERY_SECONDS + 5)
    thread.join()
    assert answers in ([503], [200])
    assert (occ.home / "workspaces/big").exists() == (answers == [200])
    wait_until(lambda: not list((occ.home / "workspaces").glob(".incoming-*")), "its leftovers to be gone")
    client = AgentClient(occ.url, occ.token)
    assert client.upload("big", make_zip(content))["files"] == 1500
    client.close()


def _form(content: dict[str, bytes]) -> dict:
    from urllib3.filepost import encode_multipart_formdata

    fields = {"workspaceId": "big", "name": "big", "processPolicy": "overwrite"}
    body, kind = encode_multipart_formdata(fields | {"zip": ("b.zip", make_zip(content).read())})
    return {"body": body, "Content_Type": kind}


def test_a_part_that_cannot_live_ends_the_daemon_with_a_message(occ: Occ) -> None:
    occ.start()
    # At once each time: a part that has lived for a while has not died in a row.
    wait_until(lambda: not (kill(occ, "control") or occ.processes()), "nothing of the daemon to be left", 120)
    assert "5 times in a row" in occ.logs()
