"""kill -9 of every part of the daemon, at random instants, under load: the promises hold."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from pathlib import Path
from statistics import median

import pytest

from occ_app.client.agent_client import AgentClient
from occ_app.executions import queries as executions
from occ_app.supervisor.processes import STEADY_SECONDS
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


def test_a_cancel_reaches_past_a_worker_that_is_stuck(promises: Promises) -> None:
    occ = promises.occ
    occ.workspace()
    stream, _ = occ.under_way(steps({"say": "on"}, {"sleep": 600}), "stuck")
    owner = executions.get(occ.database, "stuck").owner_pid
    assert owner is not None
    os.kill(owner, signal.SIGSTOP)
    occ.client.cancel("stuck")
    assert list(stream)[-1].data["code"] == "EXECUTION_CANCELLED"
    assert occ.run("hello")[-1].name == "complete"


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
    unpacked = lambda: done.is_set() or list((occ.home / "workspaces").glob(".incoming-*"))  # noqa: E731 - short
    wait_until(unpacked, "the upload to be unpacked")  # on a quick machine it may be over between two looks
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
