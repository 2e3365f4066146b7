"""The process that waits to become the next CLI: what it becomes, what it keeps, and that it outlives nobody."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from occ_app.supervisor.processes import Part
from occ_app.supervisor.supervisor import Supervisor
from occ_app.system.strays import MARKER
from occ_worker.execution.child import Child, Launcher
from tests.conftest import wait_until

ENVIRONMENT = {"PATH": "/usr/bin:/bin", "GREETING": 'it\'s "fine" $HOME `date`\n!'}


@pytest.fixture
def launcher() -> Iterator[Launcher]:
    with contextlib.closing(Launcher(ENVIRONMENT)) as launcher:
        yield launcher


def finished(child: Child) -> tuple[int, str, str]:
    """Wait for a program's end; its code and what it wrote on both pipes."""
    wait_until(lambda: child.returncode() is not None, "the program to end")
    code = child.returncode()
    assert code is not None
    with contextlib.closing(child):
        return code, (child.stdout.read() or b"").decode(), (child.stderr.read() or b"").decode()


def test_it_becomes_the_program_with_its_folder_environment_and_no_more(launcher: Launcher, tmp_path: Path) -> None:
    folder = tmp_path / "a folder with 'quotes' $and spaces"
    folder.mkdir()
    launcher.prepare()
    show = "import os, sys; print(os.getcwd(), sorted(os.environ.items()), sys.argv[1:], sep='|')"
    child = launcher.start([sys.executable, "-I", "-c", show, "--flag", "a 'b' \"c\" $d *"], folder, "x-1")
    code, output, errors = finished(child)
    assert (code, errors) == (0, "")
    variables = sorted({**ENVIRONMENT, MARKER: "x-1"}.items())
    # A shell that is bash names the program in `_`, and Python may set the locale.
    where, given, arguments = output.strip().split("|", 2)
    assert where == str(folder)
    assert [pair for pair in eval(given) if pair[0] not in ("_", "LC_CTYPE", "SHLVL")] == variables  # noqa: S307 - own output
    assert arguments == repr(["--flag", "a 'b' \"c\" $d *"])


def test_a_variable_can_be_left_out_for_one_program(launcher: Launcher, tmp_path: Path) -> None:
    launcher.prepare()
    _, output, _ = finished(launcher.start(["/usr/bin/env"], tmp_path, "x-1", ["GREETING"]))
    assert "GREETING" not in output
    assert "GREETING" in finished(launcher.start(["/usr/bin/env"], tmp_path, "x-2"))[1]


def test_what_follows_the_command_on_stdin_is_the_program_s(launcher: Launcher, tmp_path: Path) -> None:
    child = launcher.start(["/bin/cat"], tmp_path, "x-2")
    os.write(child.stdin.fileno(), b"first line\nsecond line\n")
    child.stdin.close()
    assert finished(child)[:2] == (0, "first line\nsecond line\n")


def test_it_inherits_no_file_of_the_worker(launcher: Launcher, tmp_path: Path) -> None:
    with (tmp_path / "open").open("w"):
        child = launcher.start(["/bin/ls", "/proc/self/fd"], tmp_path, "x-3")
        code, output, _ = finished(child)
    assert code == 0
    assert len(output.split()) == 4  # its three pipes, and the folder that ls itself reads


@pytest.mark.parametrize(("name", "content", "code"), [("missing", None, 127), ("broken", b"\x7fELF broken", 126)])
def test_a_program_that_cannot_be_started_ends_with_a_reason(
    launcher: Launcher, tmp_path: Path, name: str, content: bytes | None, code: int
) -> None:
    program = tmp_path / name
    if content is not None:
        program.write_bytes(content)
        program.chmod(0o700)
    ended, _, reason = finished(launcher.start([str(program)], tmp_path, "x-4"))
    assert ended == code
    assert str(program) in reason


def test_a_command_with_a_line_break_is_refused_and_runs_nothing(launcher: Launcher, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="line break"):
        launcher.start(["/bin/touch", f"{tmp_path}/a\ntouch {tmp_path}/b"], tmp_path, "x-5")
    assert list(tmp_path.iterdir()) == []


def test_one_that_was_killed_while_it_waited_is_replaced(launcher: Launcher, tmp_path: Path) -> None:
    launcher.prepare()
    (waiting,) = psutil.Process().children()
    waiting.kill()
    wait_until(lambda: waiting.status() == psutil.STATUS_ZOMBIE, "it to die")
    assert finished(launcher.start(["/bin/echo", "here"], tmp_path, "x-6"))[:2] == (0, "here\n")


@pytest.mark.parametrize("kind", ["setpriv", "none", "busybox"])
def test_it_dies_with_its_worker_waiting_or_not(tmp_path: Path, kind: str) -> None:
    other = tmp_path / "setpriv"
    if kind == "busybox":
        other.write_text("#!/bin/sh\necho unrecognized option >&2\nexit 1\n")
        other.chmod(0o700)
    path = os.defpath if kind == "setpriv" else str(tmp_path)
    program = (
        "import os, sys, time\n"
        f"os.defpath = {path!r}\n"
        "from pathlib import Path\n"
        "from occ_worker.execution.child import Launcher\n"
        "launcher = Launcher({'PATH': '/usr/bin:/bin'})\n"
        f"running = launcher.start(['/bin/sleep', '60'], Path({str(tmp_path)!r}), 'x')\n"
        "launcher.prepare()\n"
        "print(running.pid, launcher._next.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        children = [psutil.Process(int(pid)) for pid in worker.stdout.readline().split()]
        wait_until(lambda: [child.name() for child in children] == ["sleep", "sh"], "both to be what they shall be")
        worker.send_signal(signal.SIGKILL)
    wait_until(lambda: not any(child.is_running() for child in children), "both to die")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a process of another user")
def test_a_child_that_cannot_be_ended_is_told_and_not_waited_for(tmp_path: Path) -> None:
    program = (
        "import subprocess, time\nfrom occ_app.system.strays import sweep_children\n"
        "quiet = {'stdout': subprocess.DEVNULL, 'stderr': subprocess.DEVNULL}\n"
        "child = subprocess.Popen(['setpriv', '--reuid=65534', '--clear-groups', 'sleep', '60'], **quiet)\n"
        "while open(f'/proc/{child.pid}/comm').read() != 'sleep\\n': time.sleep(0.01)\n"
        "begun = time.monotonic()\nprint(sweep_children(), time.monotonic() - begun < 1, child.pid)\n"
    )
    weak = ["setpriv", "--inh-caps=-kill", "--bounding-set=-kill", sys.executable, "-c", program]
    done = subprocess.run(weak, capture_output=True, text=True, check=True)
    stayed, quick, pid = done.stdout.split()
    os.kill(int(pid), signal.SIGKILL)
    assert (stayed, quick) == ("False", "True")


def test_a_part_that_dies_at_once_is_started_again_after_growing_pauses() -> None:
    part = Part("web", f"{sys.executable} -c 'raise SystemExit(1)'", dict(os.environ), None)
    for pause in (0.25, 0.5, 1, 2, 4, 4):
        before = time.monotonic()
        part.start(0)
        wait_until(part.died, "the part to end")
        assert part.restart_at is not None
        assert before + pause <= part.restart_at <= time.monotonic() + pause


def test_a_start_sleeps_until_the_web_process_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other parts are due all the while, and start only then."""
    waits: list[float] = []
    monkeypatch.setattr(selectors.DefaultSelector, "select", lambda _, seconds: waits.append(seconds) or [])
    environment = dict(os.environ)
    web, worker = (Part(name, "python -c pass", environment, None) for name in ("web", "worker"))
    web.restart_at = None
    supervisor = Supervisor.__new__(Supervisor)  # without its signal handlers
    supervisor._parts = [web, worker]
    (supervisor._wake, wake_end), (supervisor._ready, ready_end) = (os.pipe2(os.O_NONBLOCK) for _ in range(2))
    try:
        assert not supervisor._web_serves(web, time.monotonic() + 60)
        os.write(ready_end, b"1")
        assert supervisor._web_serves(web, time.monotonic() + 60)
        supervisor._wait(supervisor._parts)
    finally:
        for descriptor in (supervisor._wake, wake_end, supervisor._ready, ready_end):
            os.close(descriptor)
    assert waits[0] > 0
    assert waits[-1] == 0
