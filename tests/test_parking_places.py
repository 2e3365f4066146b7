"""Parked calls in a sandbox, in a trusted project, and of an MCP server, with the real CLI."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_approvals import Machine, Running, results
from tests.test_parking import COUNT, parked, ran, record, release, started
from tests.test_real_cli import reply

__all__ = ["release"]  # a fixture

pytestmark = pytest.mark.real_cli

# Its one tool writes a line to the file that it was started with.
SERVER = """
import json, pathlib, sys
for line in sys.stdin:
    message = json.loads(line)
    method, result = message.get("method"), {}
    if method == "initialize":
        result = {"protocolVersion": message["params"]["protocolVersion"], "capabilities": {"tools": {}},
                  "serverInfo": {"name": "s", "version": "1"}}
    elif method == "tools/list":
        result = {"tools": [{"name": "count", "description": "d", "inputSchema": {"type": "object"}}]}
    elif method == "tools/call":
        with pathlib.Path(sys.argv[1]).open("a") as file:
            file.write("ran\\n")
        result = {"content": [{"type": "text", "text": "counted"}]}
    if "id" in message:
        print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}), flush=True)
"""
GRANTS = json.dumps({"permissions": {"allow": ["Bash"], "defaultMode": "bypassPermissions"}})


@pytest.fixture(scope="module")
def machine(real_claude: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    with started(tmp_path_factory.mktemp("machine"), real_claude) as machine:
        yield machine


@pytest.fixture
def project(machine: Machine, tmp_path: Path) -> Path:
    """A trusted project, and the name of its folder is its own."""
    folder = tmp_path / f"project-{uuid.uuid4().hex[:6]}"
    (folder / ".claude").mkdir(parents=True)
    machine.occ.command("projects", "add", str(folder), "--trust")
    return folder


def begin(machine: Machine, folder: Path) -> Running:
    """Begin an execution in a project whose model wants to run COUNT."""
    execution_id = f"run-{uuid.uuid4()}"
    prompt = "Do it. " + reply({"tools": [COUNT]}, {"text": "Done."})
    events = machine.occ.client.execute(folder.name, prompt, executionId=execution_id, permissions="ask")
    return Running(machine, execution_id, folder, events)


def grant(project: Path) -> None:
    """Let the settings of a project allow Bash; those of the project itself count once a person trusts it there."""
    for name in ("settings.json", "settings.local.json"):
        (project / ".claude" / name).write_text(GRANTS)


def test_a_call_is_parked_and_resumed_in_a_trusted_project(machine: Machine, project: Path) -> None:
    run = begin(machine, project)
    run.answer(parked(run), "allow")
    assert results(run.end()) == [("done", False)]
    assert ran(run) == 1


def test_a_grant_that_a_trusted_project_gets_while_a_call_is_parked_lets_nothing_run(
    machine: Machine, project: Path
) -> None:
    run = begin(machine, project)
    question = parked(run)
    grant(project)
    run.answer(question, "deny", message="Not now.")
    ((text, is_error),) = results(run.end())
    assert is_error
    assert "Not now." in text
    assert ran(run) == 0


def test_a_call_that_a_trusted_project_grants_is_held_and_not_parked(machine: Machine, project: Path) -> None:
    grant(project)
    run = begin(machine, project)
    run.question()
    event = next(event for event in run.events if event.name in ("parked", "approval_resolved"))
    assert (event.name, event.data.get("state")) == ("approval_resolved", "expired")
    assert run.end()[-1].name == "complete"
    assert ran(run) == 0


def test_a_call_of_an_mcp_server_is_parked_and_resumed(machine: Machine, tmp_path: Path) -> None:
    program, counted = tmp_path / "server.py", tmp_path / "counted"
    program.write_text(SERVER)
    machine.occ.command("mcp-servers", "add", "counter", "--", sys.executable, str(program), str(counted))
    try:
        run = machine.begin({"tools": [{"name": "mcp__counter__count", "input": {}}]}, {"text": "Done."})
        question = parked(run)
        assert question["tool"] == "mcp__counter__count"
        assert not counted.exists()
        run.answer(question, "allow")
        events = run.end()
    finally:
        machine.occ.command("mcp-servers", "remove", "counter")
    assert events[-1].name == "complete", events[-1]
    assert [is_error for _, is_error in results(events)] == [False]
    assert counted.read_text() == "ran\n"


def test_a_call_is_parked_and_resumed_in_the_sandbox(tmp_path: Path, real_claude: Path) -> None:
    try:
        command = ["bwrap", "--ro-bind", "/", "/", "--unshare-pid", "--proc", "/proc", "true"]
        subprocess.run(command, capture_output=True, timeout=60, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError) as reason:
        pytest.skip(f"PARKING IN THE SANDBOX IS NOT TESTED: {reason}")
    with started(tmp_path, real_claude, OCC_SANDBOX="bwrap") as machine:
        for decision in ("allow", "deny"):
            run = machine.begin({"tools": [COUNT]}, {"text": "Done."})
            run.answer(parked(run), decision)
            events = run.end()
            assert events[-1].name == "complete", events[-1]
            assert [is_error for _, is_error in results(events)] == [decision == "deny"]
            assert ran(run) == (decision == "allow")
            assert record(run)["state"] == "succeeded"
