"""Commands that are interrupted, whose output nobody takes, whose settings are wrong, or that are misspelt."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests import sentences
from tests.conftest import Occ, steps, wait_until
from tests.terminal import occ_at_terminal

OCC = [sys.executable, "-m", "occ_app.cli"]


def _waits_for_a_child(pid: int) -> bool:
    """Say whether a process is in wait4 (61 on x86-64, 260 on arm64)."""
    return Path(f"/proc/{pid}/syscall").read_text().split()[0] in {"61", "260"}


def test_an_interrupted_start_starts_nothing(occ: Occ) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # a hub that does not answer, for which the start waits
        reach = {"OCC_REMOTE_URL": f"http://127.0.0.1:{silent.getsockname()[1]}", "OCC_API_KEY": "made-up"}
        environment = occ.environment | reach | {"OCC_BIND_ADDRESS": "127.0.0.1"}
        starting = subprocess.Popen([*OCC, "start"], env=environment, stderr=subprocess.PIPE, text=True)
        wait_until(lambda: select.select([silent], [], [], 0)[0], "the daemon to begin")
        starting.send_signal(signal.SIGINT)
        wait_until(lambda: _waits_for_a_child(starting.pid), "the start to end its processes")
    assert sentences.NOTHING_IS_RUNNING in starting.communicate(timeout=60)[1]
    assert starting.returncode == 130
    assert not occ.processes()


def test_a_demo_whose_terminal_closes_leaves_nothing(tmp_path: Path) -> None:
    environment = {"PATH": os.defpath, "HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    with occ_at_terminal(environment, "demo") as terminal:
        terminal.until("Ctrl-C stops it")
        assert list(tmp_path.glob("occ-demo-*"))
        terminal.hang_up()
        terminal.wait()
    assert not list(tmp_path.glob("occ-demo-*"))


@pytest.mark.parametrize("output", ["/dev/full", "closed"])
def test_a_run_whose_output_nobody_takes_goes_on_and_says_so(agent: Occ, output: str) -> None:
    command = [*OCC, "run", "--json", "--workspace", "work", steps({"say": "x" * 100, "times": 100})]
    if output == "closed":
        running = subprocess.Popen(
            command, env=agent.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert running.stdout is not None
        running.stdout.close()
    else:
        with Path(output).open("w") as full:
            running = subprocess.Popen(command, env=agent.environment, stdout=full, stderr=subprocess.PIPE, text=True)
    assert running.stderr is not None
    said = running.stderr.read()
    running.stderr.close()
    assert running.wait(20) == 1
    assert "goes on; `occ jobs tail --follow run-" in said
    assert ("no space left" in said) == (output == "/dev/full")
    assert "Exception" not in said
    (record,) = agent.client.executions()["executions"]
    assert list(agent.client.events(record["executionId"]))[-1].name == "complete"


def test_a_list_that_cannot_be_written_is_told_in_a_sentence(agent: Occ) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*OCC, "jobs"], env=agent.environment, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1
    assert done.stderr == f"occ: {sentences.THE_OUTPUT_CANNOT_BE_WRITTEN} (no space left on device).\n"


@pytest.mark.parametrize(
    ("wrong", "told"), [("workres = 3", "did you mean workers?"), ("workers = 'many'", "whole number")]
)
def test_wrong_settings_keep_nobody_from_looking_and_stopping(agent: Occ, wrong: str, told: str) -> None:
    del agent.environment["OCC_WORKERS"]
    agent.run("remember me")
    (agent.home / "config.toml").write_text(wrong + "\n")
    for command, shown in (("status", "running at"), ("jobs", "remember me"), ("stop", "has stopped")):
        done = agent.command(command)
        assert shown in done.stdout
        assert told in done.stderr
    assert agent.command("start", check=False).returncode == 2


@pytest.mark.parametrize(("wrong", "right"), [("staus", "status"), ("rnu", "run"), ("job", "jobs")])
def test_a_misspelt_command_is_answered_with_the_right_one(occ: Occ, wrong: str, right: str) -> None:
    done = occ.command(wrong, check=False)
    assert done.returncode == 2
    assert f"{sentences.DID_YOU_MEAN} '{right}'?" in done.stderr
