"""`--sandbox bwrap`: what the CLI can see and do in it, with a prying stand-in and with the real CLI."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from tests.conftest import Occ, names, output, wait_until
from tests.model_api import FAKE_KEY, ModelApi
from tests.promises import kill
from tests.test_real_cli import reply

SECRET = "made-up-secret-of-the-home"

# Speaks the least a CLI must, and runs what the workspace asks it to.
PRYING = """#!/bin/sh
if [ "$1" = --version ]; then echo "9.9.9 (prying)"; exit; fi
read -r line
echo '{"type":"system","subtype":"init","session_id":"s","model":"m","claude_code_version":"9.9.9"}'
sh ./pry.sh > report 2>&1
echo '{"type":"result","subtype":"success","is_error":false,"result":"x","session_id":"s","num_turns":1}'
"""


@pytest.fixture(autouse=True)
def _bubblewrap() -> None:
    command = ["bwrap", "--ro-bind", "/", "/", "--unshare-pid", "--proc", "/proc", "true"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except FileNotFoundError:
        pytest.skip("THE SANDBOX IS NOT TESTED: there is no bwrap")
    if done.returncode != 0:
        pytest.skip(f"THE SANDBOX IS NOT TESTED: {done.stderr.strip()}")


@pytest.fixture
def prying(occ: Occ) -> Occ:
    """A running agent whose sandboxed CLI does what pry.sh in its workspace says."""
    home = Path(occ.environment["HOME"])
    (home / "bin").mkdir()
    program = home / "bin/claude"
    program.write_text(PRYING)
    program.chmod(0o700)
    (home / "secret.txt").write_text(SECRET)
    (home / ".claude").mkdir()
    (home / ".claude/settings.json").write_text("{}")
    occ.start("--sandbox", "bwrap", OCC_CLAUDE_BIN=str(program))
    occ.workspace("other", {"secret.txt": SECRET})
    return occ


def pry(occ: Occ, *lines: str) -> str:
    occ.workspace("work", {"pry.sh": "\n".join(lines) + "\n"})
    assert names(occ.run("pry"))[-1] == "complete", occ.logs()
    return (occ.home / "workspaces/work/report").read_text()


def test_the_sandbox_shows_the_workspace_and_nothing_else_of_the_home(prying: Occ) -> None:
    home, work = Path(prying.environment["HOME"]), prying.home / "workspaces/work"
    told = pry(
        prying,
        "pwd",
        "echo written > in.txt && cat in.txt",
        f"ls -A {home} {prying.home} {prying.home}/workspaces",
        f"cat {home}/secret.txt {prying.home}/state.json {prying.home}/occ.db",
        f"cat {prying.home}/workspaces/other/secret.txt",
        "ls -A /home /root",
        "touch /usr/in /etc/in && echo WROTE THE SYSTEM",
        f"echo '{{}}' > {home}/.claude/settings.json && echo WROTE THE SETTINGS",
        f"touch {home}/bin/in && echo WROTE THE PROGRAMS",
        "head -c 5 /etc/passwd",
        "touch /tmp/mine && echo private tmp",
        "ls -d /proc/[0-9]* | wc -l",
    )
    assert told.startswith(f"{work}\nwritten\n")
    assert SECRET not in told
    assert prying.token not in told
    assert "WROTE" not in told
    assert "private tmp" in told
    assert int(told.split()[-1]) < 10
    assert sorted(path.name for path in (prying.home / "workspaces").iterdir()) == ["other", "work"]
    listed = told.split(f"{prying.home}/workspaces:")[1].split("\n\n")[0].split("cat:")[0].split()
    assert listed == ["work"]
    assert not Path("/tmp/mine").exists()


def test_a_program_that_lies_in_the_home_itself_does_not_open_the_home(occ: Occ) -> None:
    home = Path(occ.environment["HOME"])
    (home / "claude").write_text(PRYING)
    (home / "claude").chmod(0o700)
    (home / "secret.txt").write_text(SECRET)
    occ.start("--sandbox", "bwrap", OCC_CLAUDE_BIN=str(home / "claude"))
    told = pry(occ, f"ls -A {home}", f"cat {home}/secret.txt")
    assert "No such file" in told
    assert SECRET not in told


def test_a_home_that_is_a_link_is_hidden_where_it_lies(occ: Occ, tmp_path: Path) -> None:
    real = Path(occ.environment["HOME"])
    link = tmp_path / "link"
    link.symlink_to(real)
    (real / "bin").mkdir()
    (real / "bin/claude").write_text(PRYING)
    (real / "bin/claude").chmod(0o700)
    (real / "secret.txt").write_text(SECRET)
    occ.start("--sandbox", "bwrap", HOME=str(link), OCC_CLAUDE_BIN=str(real / "bin/claude"))
    assert SECRET not in pry(occ, f"cat {link}/secret.txt {real}/secret.txt")


def test_what_a_sandboxed_cli_leaves_behind_is_ended(prying: Occ) -> None:
    marked = "sleep 987654"
    told = pry(prying, f"setsid {marked} </dev/null >/dev/null 2>&1 &", "kill -0 $! && echo left it")
    assert "left it" in told
    wait_until(lambda: not _running(marked), "what it left to be gone", 5)


def test_a_killed_worker_takes_its_sandbox_with_it(prying: Occ) -> None:
    marked = "sleep 987655"
    prying.workspace("work", {"pry.sh": f"setsid {marked} &\n{marked}\n"})
    stream = prying.client.execute("work", "pry", executionId="sandboxed")
    reader = threading.Thread(target=lambda: list(stream))
    reader.start()
    wait_until(lambda: _running(marked), "it to be under way")
    assert kill(prying, "its whole group")
    wait_until(lambda: not _running(marked), "the sandbox to be gone", 5)
    reader.join()
    assert prying.client.execution("sandboxed")["errorCode"] == "WORKER_LOST"


def test_cancelling_ends_a_sandboxed_cli_that_ignores_signals(prying: Occ) -> None:
    marked = "sleep 987656"
    prying.workspace("work", {"pry.sh": f"trap '' INT TERM\n{marked}\n"})
    stream = prying.client.execute("work", "pry", executionId="deaf")
    next(stream)
    wait_until(lambda: _running(marked), "it to be under way")
    prying.client.cancel("deaf")
    assert list(stream)[-1].data["code"] == "EXECUTION_CANCELLED"
    wait_until(lambda: not _running(marked), "the sandbox to be gone", 5)


def _running(command: str) -> list[int]:
    """The processes with this command line, ended or not yet reaped ones aside."""
    wanted = command.replace(" ", "\0").encode() + b"\0"
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if entry.read_bytes() == wanted:
                found.append(int(entry.parent.name))
        except OSError:
            continue
    return found


@pytest.fixture(autouse=True)
def _nothing_stays() -> object:
    yield
    for command in ("sleep 987654", "sleep 987655", "sleep 987656"):
        for pid in _running(command):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.real_cli
def test_the_real_cli_works_in_the_sandbox_and_its_bash_sees_no_secret(
    occ: Occ, real_claude: Path, model: ModelApi
) -> None:
    home = Path(occ.environment["HOME"])
    (home / "secret.txt").write_text(SECRET)
    occ.start(
        *("--sandbox", "bwrap"),
        OCC_CLAUDE_BIN=str(real_claude),
        OCC_TOOLS="Read,Edit,Write,Grep,Glob,Bash",
        ANTHROPIC_BASE_URL=model.url,
        ANTHROPIC_API_KEY=FAKE_KEY,
    )
    occ.workspace("work", {"README.md": "A small project.\n"})
    look = {"name": "Bash", "input": {"command": f"cat {home}/secret.txt; echo here > in.txt", "description": "x"}}
    events = occ.run("Look. " + reply({"text": "a", "tools": [look]}, {"text": "done"}))
    assert names(events)[-1] == "complete", events[-1]
    assert SECRET not in str(events)
    assert "No such file" in str(events)
    assert (occ.home / "workspaces/work/in.txt").read_text() == "here\n"
    session = events[-1].data["sessionId"]
    again = occ.run("And again. " + reply({"text": "more"}), sessionId=session)
    assert (output(again), again[-1].data["sessionId"]) == ("more", session)
    assert not (home / ".claude/settings.json").exists()


def test_without_bubblewrap_the_start_says_what_to_do(occ: Occ, tmp_path: Path) -> None:
    done = occ.command("start", "--sandbox", "bwrap", check=False, PATH=str(tmp_path))
    assert (done.returncode, "install bubblewrap" in done.stderr) == (1, True)
    assert not occ.processes()
