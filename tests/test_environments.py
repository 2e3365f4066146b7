"""What a parent process hands down, and the places OCC runs in: no descriptors, no home, no UTF-8, first of all."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from occ_app import errors
from occ_app.config import child_processes, homes
from occ_app.config import config as configuration
from occ_app.config.claude_environment import chosen
from occ_app.system import interpreter
from tests import sentences
from tests.conftest import Occ, command_line, control_process, make_zip, steps, wait_until

OCC = [sys.executable, "-m", "occ_app.cli"]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make namespaces and other users here")


def occ_run(occ: Occ, shell: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Run a line of shell in which $OCC is the command; its output goes to files where the line says so."""
    environment = occ.environment | {"OCC": " ".join(OCC)}
    return subprocess.run(["sh", "-c", shell], env=environment, timeout=60, check=False, text=True, **options)  # type: ignore[call-overload,no-any-return]


@pytest.mark.parametrize("command", ["start", "hub start --port 0"])
def test_a_start_with_all_standard_descriptors_closed_succeeds(occ: Occ, tmp_path: Path, command: str) -> None:
    occ.environment["OCC_HUB_HOME"] = str(tmp_path / "hub")
    try:
        assert occ_run(occ, f"$OCC {command} <&- >&- 2>&-").returncode == 0
        status = occ.command(*command.split()[:-3], "status", "--json") if "hub" in command else occ.command("status")
        assert status.returncode == 0
    finally:
        occ.command("hub", "stop")


def test_a_foreground_daemon_with_all_standard_descriptors_closed_serves(occ: Occ) -> None:
    daemon = subprocess.Popen(
        ["sh", "-c", f"exec {' '.join(OCC)} start --foreground <&- >&- 2>&-"], env=occ.environment
    )
    try:
        wait_until(lambda: occ.command("status", check=False).returncode == 0, "the daemon to answer")
        occ.attach()
        occ.workspace()
        assert occ.run("hello")[-1].name == "complete"
    finally:
        daemon.send_signal(signal.SIGINT)
        assert daemon.wait(60) == 0


def test_a_run_with_a_closed_descriptor_keeps_its_meaning(agent: Occ, tmp_path: Path) -> None:
    run = "$OCC run --workspace work hello"
    assert occ_run(agent, f"{run} > {tmp_path}/out 2>&-").returncode == 0
    done = occ_run(agent, f"{run} >&- 2> {tmp_path}/err")
    said = (tmp_path / "err").read_text()
    assert (done.returncode, sentences.CANNOT_BE_WRITTEN in said, sentences.FAULT_IN_OCC in said) == (1, True, False)
    assert occ_run(agent, f"{run} <&- > {tmp_path}/out").returncode == 0


def hostile_parent() -> None:
    """Everything that a parent can hand down and that breaks a daemon."""
    for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGQUIT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CPU, (20, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_NOFILE, (20, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    os.umask(0)
    os.nice(3)


def status_of(pid: int | str) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


@pytest.mark.parametrize("foreground", [False, True])
def test_what_a_parent_hands_down_reaches_neither_the_daemon_nor_the_cli(
    occ: Occ, tmp_path: Path, foreground: bool
) -> None:
    program = tmp_path / "claude"
    program.write_text(
        f'#!/bin/sh\ncase "$*" in *stream-json*) cat /proc/self/status > {tmp_path}/status; pwd > {tmp_path}/pwd\n'
        f'ulimit -f > {tmp_path}/fsize;; esac\nexec "{tmp_path}/fake-claude" "$@"\n'
    )
    program.chmod(0o755)
    folder = tmp_path / "gone"
    folder.mkdir()
    (folder / "flask.py").write_text("raise SystemExit('a module of the current folder was loaded')\n")
    daemon = subprocess.Popen(
        [sys.executable, "-P", "-m", "occ_app.cli", "start", *(["--foreground"] if foreground else [])],
        env=occ.environment | {"OCC_CLAUDE_BIN": str(program)},
        cwd=folder,
        stdout=subprocess.DEVNULL,
        preexec_fn=hostile_parent,  # noqa: PLW1509 - the fault that is injected
    )
    if not foreground:
        assert daemon.wait(60) == 0
    wait_until(lambda: occ.command("status", check=False).returncode == 0, "the daemon to answer")
    occ.attach()
    occ.client.upload("work", make_zip({"large": os.urandom(200_000)}))
    assert occ.run("hello")[-1].name == "complete"
    seen = status_of("self") | {
        name: value.strip()
        for name, _, value in (line.partition(":") for line in (tmp_path / "status").read_text().splitlines())
    }
    assert int(seen["SigBlk"], 16) == 0
    # Signals 32 and 33 are the C library's: no program can change how they are handled.
    assert int(seen["SigIgn"], 16) & ~(0b11 << 31) == 0
    assert seen["Umask"] == "0077"
    assert (tmp_path / "pwd").read_text().strip() == str(occ.home / "workspaces" / "work")
    assert (tmp_path / "fsize").read_text().strip() == "unlimited"
    for process in occ.processes():
        arguments = " ".join(command_line(process))
        if "occ_worker" in arguments or "wsgi" in arguments:
            with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError):  # one that was to become a program
                assert process.cwd() == "/"
                # While it starts a program Python blocks all signals.
                wait_until(lambda pid=process.pid: int(status_of(pid)["SigBlk"], 16) == 0, "no signal to be blocked")  # type: ignore[misc]
                assert process.rlimit(psutil.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
                assert process.rlimit(psutil.RLIMIT_NOFILE)[0] >= min(4096, process.rlimit(psutil.RLIMIT_NOFILE)[1])
    (record,) = occ.client.executions()["executions"]
    assert record["exitCode"] == 0  # with SIGCHLD ignored nobody could have known
    if foreground:
        daemon.send_signal(signal.SIGINT)
        assert daemon.wait(60) == 0


def test_a_signal_that_nohup_ignores_stays_ignored_in_a_command(tmp_path: Path) -> None:
    show = "import signal; from occ_app.system.inheritance import prepare_command as p; p(); print(signal.getsignal(1))"
    done = subprocess.run(["nohup", sys.executable, "-c", show], capture_output=True, text=True, check=True)
    assert str(signal.SIG_IGN.value) in done.stdout or "SIG_IGN" in done.stdout


def test_no_module_is_loaded_from_the_current_folder(occ: Occ, tmp_path: Path) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    for name in ("click", "flask", "sqlite3", "urllib3"):
        (folder / f"{name}.py").write_text("raise SystemExit('a module of the current folder was loaded')\n")
    done = subprocess.run(
        [*OCC, "status"], cwd=folder, env=occ.environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, sentences.IS_NOT_RUNNING in done.stdout) == (3, True)


def text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def first_of_all(occ: Occ, shell: str) -> subprocess.Popen[bytes]:
    """Be process 1 of a new pid namespace, as in a container."""
    unshare = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child=SIGKILL"]
    return subprocess.Popen([*unshare, "sh", "-c", shell], env=occ.environment, stdin=subprocess.DEVNULL)


@needs_root
def test_the_first_process_of_a_container_ends_only_what_occ_started(occ: Occ, tmp_path: Path) -> None:
    outer = first_of_all(occ, f"exec {' '.join(OCC)} start --foreground > {tmp_path}/out")
    try:
        wait_until(lambda: "running at" in text(tmp_path / "out"), "the daemon to serve")
        (first,) = psutil.Process(outer.pid).children()
        inside = ["nsenter", "-t", str(first.pid), "-p", "-m", "sh", "-c"]
        subprocess.run([*inside, "setsid sleep 311 </dev/null >/dev/null 2>&1 &"], check=True)
        (stranger,) = wait_until(
            lambda: [child for child in first.children() if command_line(child) == ["sleep", "311"]], "the stranger"
        )
        subprocess.run([*inside, "sleep 0.1 & exit"], check=True)  # an orphan that ends, at which OCC looks around
        wait_until(
            lambda: not [c for c in first.children() if command_line(c)[:2] == ["sleep", "0.1"]], "it to be reaped"
        )
        killed = control_process(first.pid)
        killed.kill()  # a part that is replaced is another occasion
        wait_until(lambda: not killed.is_running(), "the part to be reaped")
        assert stranger.is_running()
        assert stranger.status() != psutil.STATUS_ZOMBIE
        first.terminate()
        assert outer.wait(60) == 0
    finally:
        outer.kill()
        outer.wait()


def test_a_supervisor_that_a_shell_became_spares_the_shell_s_children_and_theirs(occ: Occ, tmp_path: Path) -> None:
    spare = f"sh -c 'sleep 313 & echo $! > {tmp_path}/orphan; sleep 0.5' & "
    shell = subprocess.Popen(
        ["sh", "-c", f"{spare} exec {' '.join(OCC)} start --foreground > {tmp_path}/out"], env=occ.environment
    )
    orphan = int(wait_until(lambda: text(tmp_path / "orphan"), "a child"))
    try:
        wait_until(lambda: "running at" in text(tmp_path / "out"), "the start")
        wait_until(lambda: psutil.Process(orphan).ppid() != shell.pid, "its parent to end")
        occ.attach()
        killed = control_process(shell.pid)
        killed.kill()
        wait_until(lambda: not killed.is_running(), "the part to be reaped")
        assert control_process(shell.pid).pid != killed.pid
        shell.terminate()
        assert shell.wait(60) == 0
        assert command_line(psutil.Process(orphan)) == ["sleep", "313"]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(orphan, signal.SIGKILL)


def test_what_the_interpreter_needs_reaches_the_daemon_and_not_the_cli(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = {"LD_LIBRARY_PATH": "/opt/lib", "PYTHONUSERBASE": "/opt/base", "PYTHONHOME": "/opt/python"}
    for name, value in needed.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OCC_HOME", str(tmp_path))
    config = configuration.load()
    reaching = child_processes.child_environment(config, secrets=False)
    assert {name: reaching[name] for name in needed} == needed
    assert not needed.keys() & dict(config.cli_environment).keys()
    assert interpreter.command("-m", "x")[1:] == ["-P", "-X", "utf8", "-m", "x"]


def test_without_a_user_entry_the_home_is_asked_for_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # as for a user whom nobody knows
    monkeypatch.setattr("pwd.getpwuid", lambda _: {}["no entry"])
    with pytest.raises(errors.ConfigError, match="OCC_HOME"):
        configuration.load({})
    assert homes.secret_folders() == [] or "OCC_HOME" in os.environ
    config = configuration.load({"OCC_HOME": str(tmp_path)})
    assert config.cli_environment["HOME"] == str(tmp_path)
    with pytest.raises(errors.ConfigError, match="OCC_TLS_CERT"):
        configuration.load({"OCC_HOME": str(tmp_path), "OCC_TLS_CERT": "~/a.pem", "OCC_TLS_KEY": "~/b.pem"})
    assert chosen({"HOME": "/elsewhere"}, (), tmp_path)["HOME"] == "/elsewhere"


@needs_root
def test_a_user_without_an_entry_gets_sentences_and_can_run(occ: Occ, tmp_path: Path) -> None:
    open_to_all = tmp_path / "open"
    open_to_all.mkdir(mode=0o777)
    open_to_all.chmod(0o777)
    for parent in (tmp_path, *tmp_path.parents[:3]):
        parent.chmod(parent.stat().st_mode | 0o055)
    as_nobody = ["setpriv", "--reuid", "54321", "--regid", "54321", "--clear-groups", "env", "-i"]

    def command(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        variables = [f"{name}={value}" for name, value in {"PATH": "/usr/bin:/bin", **environment}.items()]
        return subprocess.run(
            [*as_nobody, *variables, *OCC, *words], cwd="/", capture_output=True, text=True, timeout=60, check=False
        )

    if "Permission denied" in command("--version").stderr:
        pytest.skip("this installation cannot be read by other users")
    status = command("status")
    assert (status.returncode, "OCC_HOME" in status.stderr, "Traceback" in status.stderr) == (2, True, False)
    (open_to_all / "project").mkdir()
    (open_to_all / "project" / "a").write_text("a")
    run = command("run", "--url", "http://127.0.0.1:9", "--dir", str(open_to_all / "project"), "hi", OCC_TOKEN="x")
    assert (run.returncode, "Traceback" in run.stderr, sentences.FAULT_IN_OCC in run.stderr) == (5, False, False)


@needs_root
def test_names_keep_their_characters_in_a_locale_that_is_not_utf_8(occ: Occ, tmp_path: Path) -> None:
    if shutil.which("localedef") is None or not Path("/usr/share/i18n/locales/de_DE").exists():
        pytest.skip("no locale can be made here")
    made = ["localedef", "-i", "de_DE", "-f", "ISO-8859-1", str(tmp_path / "locales" / "de_DE")]
    (tmp_path / "locales").mkdir()
    subprocess.run(made, capture_output=True, check=False)
    occ.environment["LANG"] = "de_DE"
    start = f"mount --bind {tmp_path}/locales /usr/lib/locale && exec {' '.join(OCC)} start"
    assert subprocess.run(["unshare", "-m", "sh", "-c", start], env=occ.environment, check=False).returncode == 0
    occ.environment["LANG"] = "C.UTF-8"
    occ.attach()
    names = {"日本.txt": "x", "café.txt": "y"}
    occ.workspace(files=names)
    assert {path.name for path in (occ.home / "workspaces" / "work").iterdir()} == set(names)


@pytest.mark.parametrize("number", sorted(errno.errorcode))
def test_every_errno_of_a_write_is_a_sentence(number: int) -> None:
    refusal = errors.unwritable(OSError(number, os.strerror(number)))
    assert refusal.code in ("NO_SPACE", "BUSY")
    full = number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    assert (refusal.code == "NO_SPACE") == full
    assert (sentences.NO_OPEN_FILE_LEFT in str(refusal)) == (number in (errno.EMFILE, errno.ENFILE))


def test_a_file_over_the_limit_on_sizes_is_refused_and_a_missing_folder_made(occ: Occ) -> None:
    hard = f"ulimit -f 2000; exec {' '.join(OCC)} start"
    assert subprocess.run(["bash", "-c", hard], env=occ.environment, check=False).returncode == 0
    occ.attach()
    with pytest.raises(errors.Refused) as refused:
        occ.client.upload("large", make_zip({"a": os.urandom(3_000_000)}))
    assert refused.value.code == "NO_SPACE"
    shutil.rmtree(occ.home / "run" / "uploads")
    occ.workspace()
    assert occ.run(steps({"say": "here"}))[-1].name == "complete"
