"""`--sandbox bwrap`: what the CLI can see and do in it, with a prying stand-in and with the real CLI."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from occ_app.claude import projects, sandbox
from occ_app.config import config as configuration
from occ_app.errors import Refused
from tests.conftest import Occ, names, occ_in, output, wait_until
from tests.model_api import FAKE_KEY, ModelApi
from tests.promises import kill
from tests.test_real_cli import marks, reply

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


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Occ]:
    """A running agent whose sandboxed CLI does what pry.sh in its workspace says."""
    folder = tmp_path_factory.mktemp("prying")
    home = folder / "user"
    for name in ("bin", ".claude"):
        (home / name).mkdir(parents=True)
    program = home / "bin/claude"
    program.write_text(PRYING)
    program.chmod(0o700)
    (home / "secret.txt").write_text(SECRET)
    with occ_in(folder, home=folder / "occ-home", program=program, HOME=str(home)) as occ:
        occ.start("--sandbox", "bwrap")
        yield occ


@pytest.fixture
def prying(kept: Occ) -> Iterator[Occ]:
    """That agent with a workspace beside `work`; what a test makes in both and in the user's ~/.claude is removed."""
    claude = Path(kept.environment["HOME"], ".claude")
    (claude / "settings.json").write_text("{}")
    kept.workspace("other", {"secret.txt": SECRET})
    yield kept
    for name in [workspace["workspaceId"] for workspace in kept.client.workspaces()]:
        wait_until(lambda name=name: _deleted(kept, name), "the workspace to be removed")
    for path in (*claude.iterdir(), claude.parent / ".claude.json"):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _deleted(occ: Occ, workspace: str) -> bool:
    """Delete a workspace; False while it is held by what ran in it."""
    with contextlib.suppress(Refused):
        occ.client.delete_workspace(workspace)
        return True
    return False


def work_folder(occ: Occ) -> Path:
    """The folder of `work`: its name differs where the CLI has conversations of a former one."""
    return Path(occ.client.workspace("work")["path"])


def pry(occ: Occ, *lines: str) -> str:
    occ.workspace("work", {"pry.sh": "\n".join(lines) + "\n"})
    assert names(occ.run("pry"))[-1] == "complete", occ.logs()
    return (work_folder(occ) / "report").read_text()


def test_the_sandbox_shows_the_workspace_and_nothing_else_of_the_home(prying: Occ) -> None:
    home = Path(prying.environment["HOME"])
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
    work, *others = sorted(
        (Path(each["path"]) for each in prying.client.workspaces()), key=lambda path: "other" in path.name
    )
    assert told.startswith(f"{work}\nwritten\n")
    assert SECRET not in told
    assert prying.token not in told
    assert "WROTE" not in told
    assert "private tmp" in told
    assert int(told.split()[-1]) < 10
    assert sorted((prying.home / "workspaces").iterdir()) == sorted([*others, work])
    listed = told.split(f"{prying.home}/workspaces:")[1].split("\n\n")[0].split("cat:")[0].split()
    assert listed == [work.name]
    assert not Path("/tmp/mine").exists()


def test_a_project_is_there_to_write_in_the_sandbox_and_its_neighbours_are_not(prying: Occ) -> None:
    folder = Path(prying.environment["HOME"], "code/app")
    folder.mkdir(parents=True)
    (folder.parent / "neighbour.txt").write_text(SECRET)
    (folder / "pry.sh").write_text("pwd; echo written > in.txt; cat ../neighbour.txt; ls -A .. ../..\n")
    prying.command("projects", "add", str(folder))
    assert names(prying.run("pry", "app"))[-1] == "complete", prying.logs()
    told = (folder / "report").read_text()
    assert told.startswith(f"{folder}\n")
    assert SECRET not in told
    assert "secret.txt" not in told
    assert (folder / "in.txt").read_text() == "written\n"
    prying.command("projects", "remove", "app")


def test_the_sandbox_shows_nothing_of_other_conversations(prying: Occ) -> None:
    """Nothing that the CLI keeps of other folders can be read, and nothing that it obeys elsewhere can be written."""
    claude = Path(prying.environment["HOME"], ".claude")
    private = (
        "history.jsonl",
        "projects/-a/s.jsonl",
        "tasks/s/1.json",
        "file-history/s/1",
        "plans/p.md",
        "debug/s.txt",
    )
    for name in (*private, "backups/.claude.json.backup.1", "paste-cache/1.txt", "todos/s-agent-s.json"):
        (claude / name).parent.mkdir(parents=True, exist_ok=True)
        (claude / name).write_text(SECRET)
    (claude / "hooks").mkdir()
    for name in ("hooks/check", "check.sh"):
        (claude / name).write_text("operator's file\n")
    settings = claude.parent / ".claude.json"
    settings.write_text(json.dumps({"userID": "kept", "projects": {SECRET: {}}, "mcpServers": {"x": {"env": SECRET}}}))
    told = pry(
        prying,
        f"grep -r . {claude} {settings}",
        f"ls -R {claude}",
        f"for n in tasks plans todos file-history; do mkdir -p {claude}/$n && echo mine > {claude}/$n/mine; done",
        f"cat {claude}/tasks/mine",
        f'echo \'{{"mcpServers": {{"planted": {{}}}}}}\' > {settings}',
        f"echo PLANTED > {claude}/hooks/check; echo PLANTED > {claude}/check.sh; echo x > {claude}/CLAUDE.md",
    )
    assert SECRET not in told
    assert told.count("operator's file") == 2
    assert '"userID": "kept"' in told
    assert "mine" in told
    assert "planted" not in settings.read_text()
    assert (claude / "hooks/check").read_text() == (claude / "check.sh").read_text() == "operator's file\n"
    assert not (claude / "CLAUDE.md").exists()
    assert not (claude / "tasks/mine").exists()
    # They are kept for the workspace, and go with it.
    assert "mine" in pry(prying, f"cat {claude}/tasks/mine")
    prying.client.delete_workspace("work")
    assert [path.name for path in (claude / "projects").iterdir()] == ["-a"]
    assert list((claude / "occ-sandboxes").iterdir()) == []


def test_a_configuration_folder_outside_the_home_is_hidden_too(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/var/lib") as folder:
        claude, work = Path(folder, "claude"), tmp_path / "occ/workspaces/work"
        work.mkdir(parents=True)
        (claude / "projects/-other").mkdir(parents=True)
        (claude / "projects/-other/s.jsonl").write_text(SECRET)
        (claude / ".claude.json").write_text(json.dumps({"userID": "kept", "projects": {SECRET: {}}}))
        variables = {"HOME": str(tmp_path), "OCC_HOME": str(tmp_path / "occ"), "PATH": os.defpath}
        config = configuration.load(variables | {"OCC_SANDBOX": "bwrap", "CLAUDE_CONFIG_DIR": str(claude)})
        argv = sandbox.wrapped(["/bin/sh", "-c", f"grep -r . {claude}; ls -A {claude}/projects"], work, config)
        done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd="/")
        assert SECRET not in done.stdout + done.stderr
        assert '"userID": "kept"' in done.stdout
        assert done.stdout.split()[-1] == projects.name_of(str(work))


def test_nothing_hidden_comes_to_light_by_unmounting(prying: Occ) -> None:
    """As root, too: no capability is left that could take a mount away or reach a disk."""
    home = Path(prying.environment["HOME"])
    told = pry(
        prying,
        "grep Cap /proc/self/status",
        f"for m in {home}/.claude {prying.home} {home} /tmp /root /; do umount -l $m; done",
        f"cat {home}/secret.txt {prying.home}/state.json",
        "mkdir -p /tmp/x; mount --bind / /tmp/x && echo MOUNTED",
        "mount -o remount,rw,bind / && echo MOUNTED",
        "mknod /tmp/disk b 8 0 && echo MADE",
    )
    capabilities = [line.split()[1] for line in told.splitlines() if line.startswith("Cap")]
    assert (len(capabilities), {int(bits, 16) for bits in capabilities}) == (5, {0})
    assert SECRET not in told
    assert prying.token not in told
    assert "MOUNTED" not in told
    assert "MADE" not in told


def test_a_plain_user_gets_the_same_sandbox() -> None:
    """The argv that OCC makes, run by a user without rights; where the tests have none, by this one."""
    plain = {"user": 65534, "group": 65534, "extra_groups": ()} if os.geteuid() == 0 else {}
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:  # one that the other user can reach
        home, work = Path(folder), Path(folder, "occ/workspaces/work")
        work.mkdir(parents=True)
        (home / "secret.txt").write_text(SECRET)
        script = (
            f"cat {home}/secret.txt; grep Cap /proc/self/status; umount -l {home}; cat {home}/secret.txt; echo x > in"
        )
        config = configuration.load(
            {"HOME": folder, "OCC_HOME": f"{folder}/occ", "PATH": os.defpath, "OCC_SANDBOX": "bwrap"}
        )
        argv = sandbox.wrapped(["/bin/sh", "-c", script], work, config)
        for path in (home, *home.rglob("*")) if plain else ():
            os.chown(path, 65534, 65534)
        done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd="/", **plain)  # type: ignore[call-overload]
        assert SECRET not in done.stdout
        assert {line.split()[1] for line in done.stdout.splitlines() if line.startswith("Cap")} == {"0" * 16}
        assert (work / "in").read_text() == "x\n"


def test_without_user_namespaces_the_start_says_so_in_one_sentence(occ: Occ, tmp_path: Path) -> None:
    """A bwrap that the kernel forbids its namespaces, as its own words are."""
    (tmp_path / "bwrap").write_text(
        '#!/bin/sh\ncase "$*" in *--unshare-user*) echo "bwrap: No permissions to create namespace" >&2; exit 1; esac\n'
    )
    (tmp_path / "bwrap").chmod(0o700)
    done = occ.command("start", "--sandbox", "bwrap", check=False, PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert done.returncode == 1
    assert "user namespaces" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not occ.processes()


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
    wait_until(lambda: not _running(marked), "what it left to be gone")


def test_a_killed_worker_takes_its_sandbox_with_it(prying: Occ) -> None:
    marked = "sleep 987655"
    prying.workspace("work", {"pry.sh": f"setsid {marked} &\n{marked}\n"})
    stream = prying.client.execute("work", "pry", executionId="sandboxed")
    reader = threading.Thread(target=lambda: list(stream))
    reader.start()
    wait_until(lambda: _running(marked), "it to be under way")
    wait_until(lambda: kill(prying, "its whole group"), "it to be killed")
    wait_until(lambda: not _running(marked), "the sandbox to be gone")
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
    wait_until(lambda: not _running(marked), "the sandbox to be gone")


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
            with contextlib.suppress(ProcessLookupError):  # it was just ending
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
    files = {"CLAUDE.md": "@AGENTS.md", "AGENTS.md": "MARK-agents", "CLAUDE.local.md": "MARK-local"}
    occ.workspace("work", {**files, ".claude/rules/a.md": "MARK-rule", ".claude/CLAUDE.md": "MARK-dot"})
    look = {"name": "Bash", "input": {"command": f"cat {home}/secret.txt; echo here > in.txt", "description": "x"}}
    events = occ.run("Look. " + reply({"text": "a", "tools": [look]}, {"text": "done"}))
    assert names(events)[-1] == "complete", events[-1]
    assert SECRET not in str(events)
    assert "No such file" in str(events)
    assert (occ.home / "workspaces/work/in.txt").read_text() == "here\n"
    sent = json.dumps([request["body"] for request in model.requests()])
    assert marks(sent) == {"MARK-agents", "MARK-local", "MARK-rule", "MARK-dot"}
    assert list((occ.home / "run/memory").iterdir()) == []
    session = events[-1].data["sessionId"]
    again = occ.run("And again. " + reply({"text": "more"}), sessionId=session)
    assert (output(again), again[-1].data["sessionId"]) == ("more", session)
    assert not (home / ".claude/settings.json").exists()


def test_without_bubblewrap_the_start_says_what_to_do(occ: Occ, tmp_path: Path) -> None:
    done = occ.command("start", "--sandbox", "bwrap", check=False, PATH=str(tmp_path))
    assert (done.returncode, "install bubblewrap" in done.stderr) == (1, True)
    assert not occ.processes()
