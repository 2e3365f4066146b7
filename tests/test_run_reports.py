"""The lines that `occ run` prints about an execution: each is true at the time it is printed."""

from __future__ import annotations

import json
import re

from occ_app.cli import output
from tests.conftest import Occ, steps


def test_a_failed_tool_is_called_failed_and_the_time_is_that_of_the_record(agent: Occ) -> None:
    prompt = steps({"tool": "Read", "input": {"file_path": "a"}, "result": "No such file", "error": True}, {"say": "x"})
    done = agent.command("run", prompt, "--workspace", "work")
    assert "[failed] No such file" in done.stderr
    assert "refused" not in done.stderr
    record = agent.client.execution(re.search(r"run-[a-z2-7]{10}", done.stderr)[0])
    assert f"done: {output.took(record)}," in done.stderr  # the stand-in reports 12 ms
    assert output.took(record) in agent.command("jobs").stdout


def test_an_id_is_printed_once_it_is_accepted(agent: Occ) -> None:
    refused = agent.command("run", "hi", "--workspace", "none", check=False)
    assert (refused.returncode != 0, "run-" in refused.stderr) == (True, False)
    accepted = agent.command("run", "hi", "--workspace", "work", "--json")
    assert "run-" in accepted.stderr
    assert json.loads(accepted.stdout.splitlines()[0])["event"] == "queued"


def test_a_session_that_is_not_found_is_not_offered_again(agent: Occ) -> None:
    lost = {"is_error": True, "subtype": "error_during_execution", "result": "No conversation found with session ID: x"}
    done = agent.command("run", steps({"result": lost}), "--workspace", "work", check=False)
    assert "SESSION_NOT_FOUND" in done.stderr
    assert "--session" not in done.stderr
