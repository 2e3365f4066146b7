"""The `occ` command as a person and a script meet it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from occ_app.cli.run_watch import take_back
from occ_app.errors import Refused
from occ_app.executions import queries as executions
from occ_app.home import state
from tests import sentences
from tests.conftest import Occ, command_line, is_gone, make_zip, migrate, run_occ, steps, wait_until
from tests.terminal import occ_at_terminal


def test_start_prints_where_it_is_and_answers_when_it_returns(occ: Occ) -> None:
    started = occ.command("start", "--port", "0")
    url = re.search(r"http://127\.0\.0\.1:\d+", started.stdout)
    assert url is not None
    occ.url, occ.token = url.group(), occ.command("token").stdout.strip()
    assert occ.request("GET", "/health").status == 200
    assert "occ token" in started.stdout
    assert str(occ.home / "logs") in started.stdout


def test_a_standalone_agent_makes_one_token_and_keeps_it(occ: Occ) -> None:
    occ.start()
    first = occ.token
    occ.stop()
    occ.start()
    assert occ.token == first
    assert len(first) > 32
    assert occ.command("token").stdout == first + "\n"


def test_what_is_in_the_home_is_closed_to_others(agent: Occ) -> None:
    agent.run("hello")
    seen = 0
    for folder, folders, files in os.walk(agent.home):
        for path in [Path(folder), *(Path(folder, name) for name in (*folders, *files))]:
            with contextlib.suppress(FileNotFoundError):  # a file of the snapshot that is just made
                assert stat.S_IMODE(path.lstat().st_mode) & 0o077 == 0, path
                seen += 1
    assert seen > 20


def test_a_second_start_says_who_runs_and_exits_3(agent: Occ) -> None:
    again = agent.command("start", check=False)
    assert again.returncode == 3
    assert agent.url in again.stderr
    assert agent.client.health()["status"] == "healthy"


def test_twenty_starts_at_once_make_one_daemon(occ: Occ) -> None:
    with ThreadPoolExecutor(20) as pool:
        codes = sorted(done.returncode for done in pool.map(lambda _: occ.command("start", check=False), range(20)))
    assert codes == [0] + [3] * 19

    def supervisors() -> int:
        return sum("occ_app.supervisor.supervisor" in command for command in occ.commands().values())

    wait_until(lambda: supervisors() == 1, "one supervisor, and no part of it that is just becoming its program")


def test_a_port_in_use_is_told_in_a_sentence_and_nothing_is_left(occ: Occ) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        failed = occ.command("start", "--port", str(port), check=False)
    assert failed.returncode == 1
    assert f"127.0.0.1:{port}" in failed.stderr
    assert "--port" in failed.stderr
    assert not occ.processes()
    assert occ.command("status", check=False).returncode == 3


def test_stop_when_nothing_runs_is_fine(occ: Occ) -> None:
    done = occ.command("stop")
    assert "not running" in done.stdout


def test_stop_ends_what_runs_with_daemon_stopped_and_leaves_no_process(agent: Occ) -> None:
    stream = agent.client.execute(
        "work", steps({"spawn": "daemon"}, {"stubborn": True}, {"say": "on"}, {"sleep": 60}), executionId="stopped"
    )
    wait_until(lambda: next(stream).name == "output", "it to be under way")
    child = psutil.Process(int((agent.home / "workspaces/work/spawned.pid").read_text()))
    with ThreadPoolExecutor(1) as pool:
        rest = pool.submit(list, stream)
        begun = time.monotonic()
        assert "has stopped" in agent.command("stop").stdout
        assert time.monotonic() - begun < 30  # it would go on for 60
        final = rest.result()[-1]
    assert final.data["code"] == "DAEMON_STOPPED"
    assert is_gone(child)
    assert not agent.processes()
    shown = json.loads(agent.command("jobs", "show", "stopped", "--json").stdout)
    assert (shown["state"], shown["errorCode"]) == ("failed", "DAEMON_STOPPED")


def stopped_with_one_waiting(occ: Occ) -> None:
    """One execution was running and another waited for it when the agent was stopped."""
    occ.start(OCC_WORKERS="1")
    occ.workspace()
    running = occ.client.execute("work", steps({"say": "on"}, {"sleep": 60}), executionId="running")
    wait_until(lambda: next(running).name == "output", "it to be under way")
    waiting = occ.client.execute("work", "hello", executionId="waiting")
    next(waiting)
    occ.stop()


def test_waiting_work_survives_a_stop_and_runs_at_the_next_start(occ: Occ) -> None:
    stopped_with_one_waiting(occ)
    assert json.loads(occ.command("jobs", "show", "waiting", "--json").stdout)["state"] == "queued"
    occ.start()
    assert list(occ.client.events("waiting"))[-1].name == "complete"


def test_status_tells_the_same_as_json(agent: Occ) -> None:
    status = json.loads(agent.command("status", "--json").stdout)
    assert status["running"] is True
    assert (status["host"], status["url"]) == ("127.0.0.1", f"http://127.0.0.1:{status['port']}")
    assert psutil.pid_exists(status["pid"])
    assert status["workers"] == {"total": 2, "busy": 0}
    assert status["home"] == str(agent.home)
    assert (status["url"], status["tlsFingerprint"]) == (agent.url, None)
    assert (agent.home / "daemon.pid").read_text() == f"{status['pid']}\n"
    text = agent.command("status").stdout
    for part in (status["url"], str(status["pid"]), "uptime", "0 of 2 busy", "heartbeat", status["logs"]):
        assert part in text


def test_status_of_nothing_is_exit_code_3(occ: Occ) -> None:
    done = occ.command("status", "--json", check=False)
    assert done.returncode == 3
    assert json.loads(done.stdout)["running"] is False


def test_a_stale_pid_file_names_nobody(occ: Occ) -> None:
    """A recycled pid: the file names a process that lives and is not ours; nothing is ever sent to it."""
    bystander = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        (occ.home / "run").mkdir(parents=True)
        place = {"boot_id": "x", "pid": bystander.pid, "start": 1, "host": "127.0.0.1", "port": 1, "url": "http://x"}
        (occ.home / "run" / "daemon.json").write_text(json.dumps(place))
        (occ.home / "daemon.pid").write_text(f"{bystander.pid}\n")
        assert "not running" in occ.command("stop").stdout
        occ.start()
        occ.stop()
        assert bystander.poll() is None
    finally:
        bystander.communicate(b"\n")


def test_flag_wins_over_variable_over_file_over_default(occ: Occ) -> None:
    del occ.environment["OCC_WORKERS"]

    def workers(*arguments: str, **environment: str) -> int:
        occ.command("start", *arguments, **environment)
        total = json.loads(occ.command("status", "--json").stdout)["workers"]["total"]
        occ.command("stop")
        return int(total)

    assert workers() == 5
    (occ.home / "config.toml").write_text("workers = 2\n")
    assert workers() == 2
    assert workers(OCC_WORKERS="3") == 3
    assert workers("--workers", "4", OCC_WORKERS="3") == 4


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("workers = ", "cannot be read"),
        ("wrokers = 3\n", "wrokers"),
        ('workers = "many"\n', "whole number"),
        ("workers = 0\n", "between"),
        ("\x00\xff", "cannot be read"),
    ],
)
def test_a_broken_config_file_is_named_in_a_sentence(occ: Occ, content: str, told: str) -> None:
    occ.home.mkdir()
    del occ.environment["OCC_WORKERS"]
    (occ.home / "config.toml").write_bytes(content.encode("latin-1"))
    failed = occ.command("start", check=False)
    assert failed.returncode == 2
    assert "config.toml" in failed.stderr
    assert told in failed.stderr
    assert not occ.processes()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--remote-url", "https://hub.example"], "--api-key"),
        (["--remote-url", "hub.example", "--api-key", "k"], "https://"),
        (["--port", "70000"], "--port"),
        (["--port", "http"], "--port"),
        (["--workers", "-1"], "--workers"),
        (["--bind-address", "no.such.address.invalid"], "--bind-address"),
        (["--bind-address", "192.0.2.1"], "choose another --bind-address"),
        (["--api-key", "@/no/such/file"], "file"),
        (["--nonsense"], "nonsense"),
    ],
)
def test_wrong_usage_is_told_in_a_sentence(occ: Occ, arguments: list[str], told: str) -> None:
    failed = occ.command("start", *arguments, check=False)
    assert failed.returncode in (1, 2)
    assert told in failed.stderr
    assert not occ.processes()


def test_a_secret_given_as_a_flag_is_gone_from_ps(occ: Occ) -> None:
    started = occ.command("start", "--api-key", "made-up-and-secret", OCC_WORKER="3")
    assert sentences.THE_API_KEY_IS_NOT_USED in started.stderr
    assert f"OCC_WORKER {sentences.IS_SET_AND_IS_NO_SETTING}" in started.stderr
    assert "made-up-and-secret" not in str(occ.commands())
    watched = subprocess.Popen(
        [sys.executable, "-m", "occ_app.cli", "start", "--foreground", "--api-key=made-up-and-secret"],
        env=occ.environment | {"OCC_HOME": str(occ.home.parent / "second")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert watched.stdout is not None
        assert b"running at" in watched.stdout.readline()
        assert "made-up" not in " ".join(command_line(psutil.Process(watched.pid)))
    finally:
        watched.send_signal(signal.SIGINT)
        watched.communicate(timeout=60)
    assert watched.returncode == 0


@pytest.mark.parametrize("given", [("--token", "made-up"), ("--token=made-up",)])
@pytest.mark.parametrize("known", ["", "made-up"])
def test_a_secret_given_as_an_argument_is_warned_of(occ: Occ, given: tuple[str, ...], known: str) -> None:
    where = ("jobs", "--url", "http://127.0.0.1:9")
    done = occ.command(*where, *given, check=False, OCC_TOKEN=known)
    assert done.stderr.count("warning: ") == 1
    assert "--token @FILE" in done.stderr
    assert "OCC_TOKEN" in done.stderr
    assert "made-up" not in done.stderr
    (occ.home.parent / "secret").write_text("made-up\n")
    quiet = occ.command(*where, "--token", f"@{occ.home.parent / 'secret'}", check=False)
    assert (quiet.returncode, "warning" in quiet.stderr) == (5, False)
    quiet = occ.command(*where, check=False, OCC_TOKEN="made-up")
    assert (quiet.returncode, "warning" in quiet.stderr) == (5, False)


def test_an_exposed_agent_says_so_once(occ: Occ) -> None:
    started = occ.command("start", "--bind-address", "0.0.0.0")
    assert started.stderr.count("without TLS") == 1


def test_a_newer_database_is_refused_with_the_version(occ: Occ) -> None:
    migrate(occ.home)
    with contextlib.closing(sqlite3.connect(occ.home / "occ.db")) as connection:
        connection.execute("PRAGMA user_version = 99")
    failed = occ.command("start", check=False)
    assert failed.returncode == 1
    assert "schema 99" in failed.stderr


def pending(agent: Occ) -> bool:
    """Whether the changes of a run are still being recorded, which its record shows."""
    return any(one["changesReason"] == "pending" for one in agent.client.executions()["executions"])


def test_jobs_lists_filters_and_shows(agent: Occ) -> None:
    agent.run("the first prompt", executionId="one")
    agent.run(steps({"exit": 2}), executionId="two")
    everything = agent.command("jobs").stdout
    assert re.search(r"two +failed \(CLAUDE_EXIT\) +work", everything)
    assert re.search(r"one +succeeded +work.*\$0\.2500.*the first prompt", everything)
    assert "two" not in agent.command("jobs", "--state", "succeeded").stdout
    assert "No executions" in agent.command("jobs", "--workspace", "other").stdout
    assert "one" in agent.command("jobs", "--since", "2d").stdout
    assert agent.command("jobs", "--since", "yesterday", check=False).returncode == 2
    wait_until(lambda: not pending(agent), "the changes to be recorded")
    assert json.loads(agent.command("jobs", "--json").stdout) == agent.client.executions()
    assert json.loads(agent.command("jobs", "show", "one", "--json").stdout) == agent.client.execution("one")
    assert "the first prompt" in agent.command("jobs", "show", "one").stdout
    missing = agent.command("jobs", "show", "three", check=False)
    assert missing.returncode == 4
    assert "three" in missing.stderr


def test_jobs_of_an_agent_elsewhere_are_the_same(agent: Occ) -> None:
    agent.run("the first prompt", executionId="one")
    wait_until(lambda: "one" in agent.command("jobs", "search", "first").stdout, "it is indexed")
    wait_until(lambda: not pending(agent), "the changes to be recorded")
    elsewhere = {"OCC_HOME": str(agent.home.parent / "none"), "OCC_TOKEN": agent.token}
    for arguments in (("--json",), ("show", "one", "--json"), ("search", "first", "--json")):
        here = agent.command("jobs", *arguments).stdout
        told = agent.command("jobs", *arguments, "--url", agent.url, **elsewhere).stdout
        assert json.loads(told) == json.loads(here)
    shown = agent.command("jobs", "show", "one", "--url", agent.url, **elsewhere).stdout.splitlines()
    assert sorted(shown) == sorted(agent.command("jobs", "show", "one").stdout.splitlines())
    assert "the first prompt" in agent.command("jobs", "--url", agent.url, **elsewhere).stdout
    assert agent.command("jobs", "--url", agent.url, "show", "one", check=False, **elsewhere).returncode == 2


def test_jobs_can_be_read_when_the_daemon_is_down(agent: Occ) -> None:
    agent.run("remember me", executionId="kept")
    agent.stop()
    assert "remember me" in agent.command("jobs").stdout
    assert agent.command("jobs", "tail", "kept").stdout == "You said: remember me\n"
    assert agent.command("jobs", "tail", "kept", "--follow").stdout == "You said: remember me\n"
    assert agent.command("jobs", "cancel", "kept", check=False).returncode == 3


def test_jobs_tail_follows_to_the_end_with_the_outcome(agent: Occ, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    stream = agent.client.execute("work", steps({"say": "a\n"}, {"wait": str(gate)}, {"exit": 7}), executionId="t")
    wait_until(lambda: next(stream).name == "output", "it to be under way")
    with ThreadPoolExecutor(1) as pool:
        tail = pool.submit(agent.command, "jobs", "tail", "t", "--follow", "--json", check=False)
        assert agent.command("jobs", "tail", "t").stdout == "a\n"
        gate.touch()
        done = tail.result()
    assert done.returncode == 1
    assert [json.loads(line)["event"] for line in done.stdout.splitlines()][-1] == "error"


def test_jobs_cancel_ends_an_execution(agent: Occ) -> None:
    stream = agent.client.execute("work", steps({"say": "on"}, {"sleep": 60}), executionId="c")
    wait_until(lambda: next(stream).name == "output", "it to be under way")
    assert "being cancelled" in agent.command("jobs", "cancel", "c").stdout
    assert list(stream)[-1].data["code"] == "EXECUTION_CANCELLED"
    assert "c is cancelled" in agent.command("jobs", "cancel", "c").stdout
    assert agent.command("jobs", "tail", "c", "--follow", check=False).returncode == 130


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "my project"
    (folder / "src").mkdir(parents=True)
    (folder / "src" / "main.py").write_text("print(1)\n")
    (folder / ".gitignore").write_text("*.log\nbuild/\n")
    (folder / "noise.log").write_text("x")
    (folder / "build").mkdir()
    (folder / "build" / "out").write_text("x")
    (folder / ".git").mkdir()
    (folder / ".git" / "HEAD").write_text("x")
    return folder


def test_run_sends_the_folder_and_streams_the_answer(agent: Occ, project: Path) -> None:
    done = agent.command("run", "what is this?", "--dir", str(project))
    assert done.stdout == "You said: what is this?\n"
    workspace = re.search(r"workspace (my-project-[0-9a-f]+)", done.stderr)
    assert workspace is not None
    files = agent.home / "workspaces" / workspace.group(1)
    assert sorted(p.relative_to(files).as_posix() for p in files.rglob("*") if p.is_file()) == [
        ".gitignore",
        "src/main.py",
    ]
    again = agent.command("run", "more", "--workspace", workspace.group(1))
    assert again.stdout == "You said: more\n"
    assert agent.command("run", "what is this?", "--dir", str(project)).returncode == 0
    assert len(agent.client.workspaces()) == 3


def test_run_prints_events_as_json_lines(agent: Occ, project: Path) -> None:
    done = agent.command("run", "hi", "--workspace", "work", "--json")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["event"] for event in events] == ["queued", "started", "output", "complete"]
    assert [event["id"] for event in events] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("prompt", "options", "code"),
    [
        (steps({"exit": 3}), [], 1),
        (steps({"sleep": 60}), ["--timeout", "0.5"], 124),
    ],
)
def test_run_exits_with_the_outcome(agent: Occ, prompt: str, options: list[str], code: int) -> None:
    done = agent.command("run", prompt, "--workspace", "work", *options, check=False)
    assert done.returncode == code
    assert done.stderr


def test_run_against_a_url_needs_its_token(agent: Occ, tmp_path: Path) -> None:
    elsewhere = {"OCC_HOME": str(tmp_path / "nowhere")}
    url = ["run", "hi", "--workspace", "work", "--url", agent.url]
    assert agent.command(*url, check=False, **elsewhere).returncode == 2
    assert agent.command(*url, "--token", agent.token, **elsewhere).stdout == "You said: hi\n"
    assert agent.command(*url, OCC_TOKEN=agent.token, **elsewhere).stdout == "You said: hi\n"
    (tmp_path / "secret").write_text(agent.token + "\n")
    assert agent.command(*url, "--token", f"@{tmp_path / 'secret'}", **elsewhere).returncode == 0
    wrong = agent.command(*url, "--token", "wrong", check=False, **elsewhere)
    assert wrong.returncode == 4
    assert "occ token" in wrong.stderr
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "file").touch()
    nobody = ["--url", "http://127.0.0.1:9", "--token", "x"]
    gone = agent.command("run", "hi", "--dir", "some", *nobody, check=False, **elsewhere)
    assert gone.returncode == 5
    assert agent.command("run", "hi", check=False, **elsewhere).returncode == 3


def test_run_in_a_missing_workspace_is_refused(agent: Occ) -> None:
    done = agent.command("run", "hi", "--workspace", "nope", check=False)
    assert done.returncode == 4
    assert "no workspace nope" in done.stderr


def test_a_run_never_sends_a_home_of_occ(agent: Occ) -> None:
    folder = agent.home.parent
    (folder / "notes.txt").write_text("a note")
    (folder / "hub").mkdir(exist_ok=True)
    done = agent.command("run", "--dir", str(folder), "hello", OCC_HUB_HOME=str(folder / "hub"))
    workspace = re.search(r"workspace (\S+)", done.stderr)
    assert workspace is not None
    sent = {path.name for path in (agent.home / "workspaces" / workspace.group(1)).iterdir()}
    assert "notes.txt" in sent
    assert not sent & {agent.home.name, "hub"}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([""], "prompt is empty"),
        (["-"], "prompt is empty"),
        (["hi", "--workspace", "work", "--dir", "."], "give one of them"),
        (["hi", "--session", "5f0c5f3e-3f0d-4b0e-9a52-0d3f6a1c2b3d"], "--workspace"),
        (["hi", "--dir", "HOME"], "OCC's own"),
    ],
)
def test_a_run_that_makes_no_sense_sends_nothing(agent: Occ, arguments: list[str], told: str) -> None:
    given = [str(agent.home) if argument == "HOME" else argument for argument in arguments]
    done = agent.command("run", *given, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert told in done.stderr
    assert len(agent.client.workspaces()) == 1


def test_a_whole_home_is_sent_only_when_it_is_named(agent: Occ, tmp_path: Path) -> None:
    (tmp_path / "user" / "notes.txt").write_text("private")
    done = run_occ(["run", "hi"], agent.environment, tmp_path / "user", 60)
    assert done.returncode == 2
    assert sentences.YOUR_HOME_FOLDER in done.stderr
    assert run_occ(["run", "hi"], agent.environment, tmp_path, 60).returncode == 2
    assert agent.command("run", "hi", "--dir", "user").stdout == "You said: hi\n"


def test_a_refused_run_leaves_no_workspace(agent: Occ, project: Path) -> None:
    done = agent.command("run", "hi", "--dir", str(project), "--timeout", "999999", check=False)
    assert done.returncode == 4
    assert "timeoutSeconds" in done.stderr
    labelled = agent.command("run", "hi", "--dir", str(project), "--label", "gpu", check=False)
    assert sentences.ARE_FOR_A_HUB in labelled.stderr
    assert [workspace["workspaceId"] for workspace in agent.client.workspaces()] == ["work"]


def test_what_was_accepted_keeps_its_workspace_whatever_is_refused_later(agent: Occ) -> None:
    agent.run("hi", executionId="accepted")
    take_back(agent.client, "work", "accepted")
    assert len(agent.client.workspaces()) == 1
    take_back(agent.client, "work", "never-accepted")
    assert agent.client.workspaces() == []


@pytest.mark.parametrize(
    ("given", "code", "told"), [(b"two\nlines", 0, b"You said: two\nlines\n"), (b"\xff\xfe", 2, b"")]
)
def test_a_prompt_is_read_from_standard_input(agent: Occ, given: bytes, code: int, told: bytes) -> None:
    command = [sys.executable, "-m", "occ_app.cli", "run", "--workspace", "work", "-"]
    done = subprocess.run(command, env=agent.environment, input=given, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (code, told)
    assert b"fault" not in done.stderr


def test_links_that_are_not_sent_are_named(agent: Occ, project: Path) -> None:
    (project / "src" / "passwd").symlink_to("/etc/passwd")
    (project / "build" / "ignored").symlink_to("/etc/passwd")
    told = agent.command("run", "hi", "--dir", str(project)).stderr
    assert f"{sentences.LINKS_ARE_NOT_FOLLOWED}: src/passwd\n" in told


def test_an_empty_folder_is_told_in_a_sentence(agent: Occ, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = agent.command("run", "hi", "--dir", str(tmp_path / "empty"), check=False)
    assert done.returncode == 2
    assert "no files" in done.stderr


@pytest.mark.parametrize(("answer", "state"), [("l\n", "running"), ("c\n", "cancelled"), ("\x03", "running")])
def test_ctrl_c_asks_whether_to_leave_it_running(agent: Occ, answer: str, state: str) -> None:
    """On a real terminal: the answer streams, Ctrl-C asks, the choice is carried out."""
    prompt = steps({"say": "some text"}, {"sleep": 60})
    with occ_at_terminal(agent.environment, "run", "--workspace", "work", prompt) as terminal:
        terminal.until("some text")
        terminal.press("\x03")
        terminal.until("cancel it?")
        terminal.until_it_reads()  # a signal that comes just before Python reads is seen only after the next key
        terminal.press(answer)
        said = terminal.until("cancelled." if state == "cancelled" else "shows it.")
        assert "run-" in said or state == "cancelled"
        assert terminal.wait() == 130
    (record,) = agent.client.executions()["executions"]
    wait_until(lambda: agent.client.execution(record["executionId"])["state"] == state, f"it to be {state}")
    agent.client.cancel(record["executionId"])


def test_a_terminal_shows_progress_until_the_first_text(agent: Occ, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    prompt = steps({"wait": str(gate)}, {"say": "text \x1b[31m\n"})
    with occ_at_terminal(agent.environment, "run", "--workspace", "work", prompt) as terminal:
        terminal.until("waiting for the answer")
        gate.touch()
        assert "text \\x1b[31m" in terminal.until("done"), "a terminal is not made to obey the answer"
        assert terminal.wait() == 0


def test_nothing_is_coloured_where_there_is_no_terminal(agent: Occ) -> None:
    done = agent.command("run", "hi", "--workspace", "work")
    assert "\x1b" not in done.stdout + done.stderr


def test_the_daemon_stops_on_ctrl_c_in_the_foreground(occ: Occ) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "occ_app.cli", "start", "--foreground"],
        env=occ.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert "running at" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "Traceback" not in errors
    assert not occ.processes()


def test_the_whole_tree_ends_with_a_killed_supervisor(agent: Occ) -> None:
    stream = agent.client.execute("work", steps({"spawn": "child"}, {"say": "on"}, {"sleep": 60}), executionId="k")
    wait_until(lambda: next(stream).name == "output", "it to be under way")
    os.kill(json.loads(agent.command("status", "--json").stdout)["pid"], signal.SIGKILL)
    wait_until(lambda: not agent.processes(), "everything to be gone")
    agent.start()
    assert list(agent.client.events("k"))[-1].data["code"] in ("DAEMON_STOPPED", "WORKER_LOST")


@pytest.mark.parametrize("victim", ["occ_app.wsgi", "occ_worker.agent control", "occ_worker.agent executions"])
def test_a_killed_part_is_started_again(agent: Occ, victim: str) -> None:
    def parts() -> set[int]:
        return {pid for pid, command in agent.commands().items() if victim in command}

    before = parts()
    assert before
    os.kill(min(before), signal.SIGKILL)
    wait_until(lambda: parts() - before, "another one")
    agent.workspace("after")
    assert agent.run("hello", "after")[-1].name == "complete"


def test_a_killed_worker_ends_its_execution_with_worker_lost(agent: Occ) -> None:
    stream = agent.client.execute("work", steps({"spawn": "session"}, {"say": "on"}, {"sleep": 60}), executionId="w")
    wait_until(lambda: next(stream).name == "output", "it to be under way")
    child = psutil.Process(int((agent.home / "workspaces/work/spawned.pid").read_text()))
    with agent.database.read() as connection:
        owner = connection.execute("SELECT owner_pid FROM executions WHERE execution_id = 'w'").fetchone()[0]
    os.kill(owner, signal.SIGKILL)
    begun = time.monotonic()
    assert list(stream)[-1].data["code"] == "WORKER_LOST"
    assert time.monotonic() - begun < 30  # it would go on for 60
    assert is_gone(child)
    assert agent.run("hello")[-1].name == "complete"


@pytest.mark.parametrize("victim", ["worker", "consumer"])
def test_what_carries_no_marker_goes_with_its_execution_too(agent: Occ, victim: str) -> None:
    stream = agent.client.execute("work", steps({"spawn": "bare"}, {"say": "on"}, {"sleep": 60}), executionId="w")
    wait_until(lambda: next(stream).name == "output", "it to be under way")
    stray = psutil.Process(int((agent.home / "workspaces/work/spawned.pid").read_text()))
    owner = executions.get(agent.database, "w").owner_pid
    assert owner is not None
    os.kill(owner if victim == "worker" else psutil.Process(owner).ppid(), signal.SIGKILL)
    assert list(stream)[-1].data["code"] == "WORKER_LOST"
    wait_until(lambda: not stray.is_running(), "it to be ended")
    assert agent.run("hello")[-1].name == "complete"


def test_a_lost_worker_takes_nothing_of_another_agent_with_it(agent: Occ, tmp_path: Path) -> None:
    """Two agents of one machine may run executions of the same id: the id marks what is swept."""
    other = Occ(tmp_path / "other", agent.environment | {"OCC_HOME": str(tmp_path / "other")}).start()
    try:
        other.workspace()
        gate = tmp_path / "gate"
        prompt = steps({"say": "on"}, {"wait": str(gate)}, {"say": "!"})
        streams = [each.client.execute("work", prompt, executionId="same") for each in (agent, other)]
        for stream in streams:
            wait_until(lambda stream=stream: next(stream).name == "output", "it to be under way")
        owner = executions.get(agent.database, "same").owner_pid
        assert owner is not None
        os.kill(owner, signal.SIGKILL)
        assert list(streams[0])[-1].data["code"] == "WORKER_LOST"
        gate.touch()
        assert list(streams[1])[-1].name == "complete"
    finally:
        other.stop()
        for client in other.clients:
            client.close()


def test_a_lost_queue_is_rebuilt_from_the_rows(occ: Occ) -> None:
    stopped_with_one_waiting(occ)
    for path in occ.home.glob("queue.db*"):
        path.unlink()
    occ.start()
    assert list(occ.client.events("waiting"))[-1].name == "complete"


def test_a_rotated_token_replaces_the_old_one_at_once(agent: Occ) -> None:
    old = agent.token
    new = agent.command("token", "rotate").stdout.strip()
    assert new != old
    assert agent.command("token").stdout.strip() == new
    assert agent.request("GET", "/health").status == 401
    agent.token = new
    assert agent.request("GET", "/health").status == 200
    assert stat.S_IMODE((agent.home / "state.json").stat().st_mode) == 0o600


def test_a_rotated_token_ends_the_streams_of_the_old_one(agent: Occ) -> None:
    stream, _ = agent.under_way(steps({"say": "on "}, {"say": "and on ", "times": 1000, "every": 0.05}), "long")
    agent.token = agent.command("token", "rotate").stdout.strip()
    begun = time.monotonic()
    with pytest.raises(Refused, match=sentences.WRONG_EXPIRED_OR_REVOKED):  # the client asked again with what it had
        list(stream)
    assert time.monotonic() - begun < 30  # it would go on for 50
    agent.client.cancel("long")


def test_a_state_that_others_can_read_stops_the_start(occ: Occ) -> None:
    migrate(occ.home)
    state.ensure(occ.home / "state.json")
    (occ.home / "state.json").chmod(0o644)
    done = occ.command("start", check=False)
    assert done.returncode == 1
    assert sentences.CAN_BE_READ_BY_OTHERS in done.stderr
    assert not occ.processes()
    (occ.home / "state.json").chmod(0o600)
    occ.start()


def test_a_wrong_token_is_logged_and_slow(agent: Occ) -> None:
    begun = time.monotonic()
    for _ in range(5):
        assert agent.request("GET", "/health", Authorization="Bearer guess").status == 401
    assert time.monotonic() - begun >= 0.5
    assert agent.logs().count(f"{sentences.A_WRONG_TOKEN_CAME_FROM} 127.0.0.1") == 5
    assert "guess" not in agent.logs()


def test_a_trusted_workspace_keeps_what_would_run_something(occ: Occ) -> None:
    occ.start("--trust-workspaces")
    reply = occ.client.upload("work", make_zip({".claude/settings.json": "{}", ".mcp.json": "{}"}))
    assert (reply["skipped"], reply["files"]) == ([], 2)


def test_named_variables_reach_the_cli_and_others_do_not(occ: Occ, tmp_path: Path) -> None:
    program = tmp_path / "env-claude"
    program.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] || env > "{tmp_path}/seen"\nexec "{tmp_path}/fake-claude" "$@"\n'
    )
    program.chmod(0o700)
    occ.start(OCC_CLAUDE_BIN=str(program), OCC_ENV_PASS="MINE", MINE="wanted", OTHER="x", BUN_OPTIONS="--preload=x")
    occ.workspace()
    occ.run("x", executionId="e1")
    seen = dict(line.split("=", 1) for line in (tmp_path / "seen").read_text().splitlines() if "=" in line)
    assert seen["MINE"] == "wanted"
    assert not {"OTHER", "BUN_OPTIONS"} & set(seen)
    assert {name for name in seen if name.startswith("OCC_")} == {"OCC_EXECUTION_ID"}
    assert occ.token not in (tmp_path / "seen").read_text()
    refused = occ.command("start", check=False, OCC_ENV_PASS="OCC_API_KEY")
    assert refused.returncode == 2


def test_status_tells_a_standalone_agent_from_one_whose_hub_is_away(occ: Occ, free_port: int) -> None:
    occ.start()
    alone = occ.command("status").stdout
    assert sentences.THIS_AGENT_IS_STANDALONE in alone
    assert "  link  " not in alone
    occ.stop()
    occ.start("--api-key", "made-up", "--remote-url", f"http://127.0.0.1:{free_port}", "--bind-address", "127.0.0.1")
    waiting = occ.command("status").stdout
    assert sentences.THE_HUB_HAS_NOT_REGISTERED_THIS in waiting
    assert sentences.THIS_AGENT_IS_STANDALONE not in waiting
