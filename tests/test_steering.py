"""Steering with the real CLI: a text joins the turn that runs or follows it, and reaches the model exactly once."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import names, occ_in, wait_until
from tests.model_api import FAKE_KEY, serve
from tests.test_approvals import Machine, Running, machine

__all__ = ["machine"]  # the fixture

pytestmark = pytest.mark.real_cli

# From this version on the CLI reports on texts; with an older one they are follow-ups.
STEERS = "2.1.330"


def bash(command: str) -> dict[str, Any]:
    return {"name": "Bash", "input": {"command": command, "description": "d"}}


def steers(machine: Machine) -> bool:
    return str(machine.occ.client.health()["claude"]["version"]) >= STEERS


def tell(machine: Machine, run: Running, input_id: str, text: str) -> dict[str, Any]:
    path = f"/executions/{run.execution_id}/input"
    found: dict[str, Any] = machine.call("POST", path, {"inputId": input_id, "text": text})
    return found


def until_tool(run: Running) -> None:
    next(event for event in run.events if event.name == "tool" and "name" in event.data)


def times(machine: Machine, text: str) -> int:
    """How often the text is in the longest request that has it."""
    bodies = [json.dumps(request["body"]["messages"]) for request in machine.model.requests() if request["body"]]
    return max((body.count(text) for body in bodies), default=0)


def over(machine: Machine, execution_id: str) -> dict[str, Any]:
    record: dict[str, Any] = wait_until(
        lambda: (found := machine.call("GET", f"/executions/{execution_id}"))["finishedAt"] and found, "its end"
    )
    return record


def test_a_text_that_comes_while_a_tool_runs_is_in_the_next_request_of_the_turn(machine: Machine) -> None:
    run = machine.begin(
        {"tools": [bash("until [ -e go ]; do sleep 0.05; done")]}, {"text": "Done."}, permissions="full"
    )
    until_tool(run)
    sent = tell(machine, run, f"in-{run.execution_id}", f"STEER-{run.execution_id}")
    (run.folder / "go").write_text("")
    events = run.end()
    assert names(events)[-1] == "complete"
    assert times(machine, f"STEER-{run.execution_id}") == (1 if steers(machine) else 0)
    if steers(machine):
        assert (sent["delivery"], sent["executionId"]) == ("steer", None)
        assert [event.data["state"] for event in events if event.name == "input"] == ["sent", "delivered"]
        assert tell(machine, run, f"in-{run.execution_id}", f"STEER-{run.execution_id}")["state"] == "delivered"
    else:
        assert sent["delivery"] == "queue"
        over(machine, sent["executionId"])
        assert times(machine, f"STEER-{run.execution_id}") == 1


def test_a_text_that_comes_while_the_model_writes_follows_the_turn(machine: Machine, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    run = machine.begin({"text": "one two three four", "chunks": 4, "gate": str(gate)}, permissions="full")
    next(event for event in run.events if event.name == "output")
    sent = tell(machine, run, f"in-{run.execution_id}", f"STEER-{run.execution_id}")
    assert sent["delivery"] == "queue"
    gate.touch()
    events = run.end()
    assert [event.data["executionId"] for event in events if event.name == "input"] == [sent["executionId"]]
    assert over(machine, sent["executionId"])["state"] == "succeeded"
    assert times(machine, f"STEER-{run.execution_id}") == 1


@pytest.mark.parametrize("seconds", [0.0, 0.05, 0.1])
def test_a_text_that_comes_as_a_tool_ends_reaches_the_model_once(machine: Machine, seconds: float) -> None:
    run = machine.begin({"tools": [bash(f"sleep {seconds}")]}, {"text": "Done."}, permissions="full")
    until_tool(run)
    sent = tell(machine, run, f"in-{run.execution_id}", f"STEER-{run.execution_id}")
    events = run.end()
    states = [event.data["state"] for event in events if event.name == "input"]
    assert events[-1].name == "complete"
    assert states in (["sent", "delivered"], ["sent", "queued"], ["queued"], [])  # none: it came after the end
    if states[-1:] != ["delivered"]:
        over(machine, sent["inputId"])
    assert times(machine, f"STEER-{run.execution_id}") == 1


def test_a_text_that_waits_in_the_cli_does_not_run_after_a_cancel(machine: Machine) -> None:
    run = machine.begin({"tools": [bash("sleep 60")]}, {"text": "Done."}, permissions="full")
    until_tool(run)
    sent = tell(machine, run, f"in-{run.execution_id}", f"STEER-{run.execution_id}")
    machine.call("POST", f"/executions/{run.execution_id}/cancel")
    assert run.end()[-1].data["code"] == "EXECUTION_CANCELLED"
    assert machine.call("GET", f"/executions/{sent['inputId']}")["paused"]
    assert times(machine, f"STEER-{run.execution_id}") == 0
    machine.call("POST", f"/executions/{sent['inputId']}/cancel")


def test_a_worker_that_dies_with_a_text_in_the_cli_leaves_it_unknown(
    tmp_path: Path, release: str, real_claude: Path
) -> None:
    with serve() as model, occ_in(tmp_path, HOME=str(tmp_path), OCC_WORKERS="1") as occ:
        settings = {"OCC_CLAUDE_BIN": str(real_claude), "ANTHROPIC_BASE_URL": model.url, "ANTHROPIC_API_KEY": FAKE_KEY}
        occ.start(**settings, OCC_PERMISSIONS="full")
        machine = Machine(occ, model)
        run = machine.begin({"tools": [bash("sleep 60")]}, {"text": "Done."}, permissions="full")
        until_tool(run)
        state = "queued" if release == "2.1.197" else "sent"
        assert tell(machine, run, "in-1", "STEER")["state"] == state
        with contextlib.closing(occ.database) as database, database.read() as connection:
            worker = connection.execute("SELECT owner_pid FROM executions WHERE state = 'running'").fetchone()[0]
        os.kill(worker, signal.SIGKILL)
        assert run.end()[-1].data["code"] == "WORKER_LOST"
        again = tell(machine, run, "in-1", "STEER")
        if release == "2.1.197":  # it never was in the CLI
            assert (again["state"], again["executionId"]) == ("queued", "in-1")
            assert machine.call("GET", "/executions/in-1")["paused"]
        else:
            assert (again["state"], again["executionId"]) == ("unknown", None)
        assert times(machine, "STEER") == 0
