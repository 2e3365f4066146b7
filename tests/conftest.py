"""What the tests stand on: a real daemon in a folder of its own, a stand-in CLI, a stand-in model, the real CLI."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import urllib3

from occ_app.client.agent_client import AgentClient
from occ_app.client.sse import StreamEvent
from occ_app.database import database as db
from tests import command_server, model_api, real_cli
from tests import fake_claude as stand_in_cli
from tests.databases import make_database

if TYPE_CHECKING:
    from tests.fake_slack import FakeSlack
    from tests.kept_daemons import KeptAgent, KeptHub
    from tests.real_hub import Hub
    from tests.slack_office import Office

FAKE_CLAUDE = Path(__file__).with_name("fake_claude.py")
_PF_EXITING = 0x4  # a flag in /proc/PID/stat


# The files that take longest, the longest first: begun last, they would be waited for by themselves. Some files
# are skipped without TEST_ALL; at the start they would take the place of a long one.
_ONLY_IN_TEST_ALL = ("hub_openapi", "openapi", "browser", "journeys")
_LONGEST = tuple(
    f"test_{name}.py"
    for name in (
        *(_ONLY_IN_TEST_ALL if os.environ.get("TEST_ALL") else ()),
        "hub",
        "commands",
        "parking",
        "kills",
        "link",
        "approvals",
        "upgrade_command",
        "heartbeat",
        "stops",
        "disk",
        "slow_clients",
        "soak",
        "kept",
        "hub_questions",
        "admission",
        "workspaces",
        "upgrade",
        "webhooks",
        "tls",
        "costs",
        "parking_places",
        "limits",
        "spares",
        "machine_daemons",
        "hub_parking",
        "search",
        "documented_answers",
        "stubborn_machines",
        "branches",
        "origins",
        "real_cli",
        "mcp_servers",
        "install",
        "docs",
        "environments",
        "hostile_workspaces",
        "stubborn_cli",
        "salvage",
        "sandbox",
        "page_changes",
        "execute",
        "client",
    )
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: _LONGEST.index(item.path.name) if item.path.name in _LONGEST else len(_LONGEST))


def wait_until(condition: Callable[[], Any], what: str, seconds: float = 60.0) -> Any:
    """Wait for a condition and return what it gave; fails with `what` when it does not come."""
    deadline, pause = time.monotonic() + seconds, 0.005
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(pause)
        pause = min(pause * 1.2, 0.1)  # a look costs processor time, which the daemons need
    pytest.fail(f"waited {seconds:g} s in vain: {what}")


def make_zip(files: Mapping[str, str | bytes]) -> io.BytesIO:
    """A zip of these files, ready to be read."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, content in files.items():
            zipped.writestr(name, content)
    archive.seek(0)
    return archive


def steps(*steps: dict[str, Any]) -> str:
    """A prompt that makes the stand-in CLI do these steps."""
    return json.dumps(steps)


def run_occ(arguments: Sequence[str], environment: Mapping[str, str], folder: Path, seconds: float) -> Any:
    """Run `occ` in a folder and return its output, which may be anything but a traceback."""
    if command_server.can_run(environment):
        done = command_server.run(arguments, environment, folder, seconds)
    else:
        done = _run_interpreter(arguments, environment, folder, seconds)
    assert "Traceback" not in done.stderr + done.stdout
    return done


def _run_interpreter(
    arguments: Sequence[str], environment: Mapping[str, str], folder: Path, seconds: float
) -> subprocess.CompletedProcess[str]:
    """Run `occ` as a person does, in a new interpreter."""
    return subprocess.run(
        [sys.executable, "-m", "occ_app.cli", *arguments],
        env=environment,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


def migrate(home: Path) -> None:
    """Make a new home with the database that its first start would make. Tests of that run the command."""
    if not home.exists():
        home.mkdir(mode=0o700)
        make_database(home / "occ.db")


@dataclass
class Occ:
    """The `occ` command with a home of its own, and the agent it starts.

    Commands run in `folder`, by default the parent of the home.
    """

    home: Path
    environment: dict[str, str]
    url: str = ""
    token: str = ""
    pin: str | None = None
    clients: list[AgentClient] = field(default_factory=list)
    folder: Path | None = None

    def command(self, *arguments: str, check: bool = True, seconds: float = 60, **environment: str) -> Any:
        """Run `occ` and return its output."""
        done = run_occ(arguments, self.environment | environment, self.folder or self.home.parent, seconds)
        if check:
            assert done.returncode == 0, (done.returncode, done.stdout, done.stderr, self.logs())
        return done

    def start(self, *arguments: str, **environment: str) -> Occ:
        self.environment |= environment
        migrate(self.home)
        self.command("start", *arguments)
        self.attach()
        return self

    def attach(self) -> None:
        """Read the address and the token of the agent that runs; a command takes fifty times as long."""
        running = json.loads((self.home / "run" / "daemon.json").read_text())
        self.url, self.pin = running["url"], running["fingerprint"]
        self.token = json.loads((self.home / "state.json").read_text())["token"]

    def stop(self) -> None:
        self.command("stop")

    @property
    def client(self) -> AgentClient:
        client = AgentClient(self.url, self.token, self.pin)
        self.clients.append(client)
        return client

    def request(
        self, method: str, path: str, *, body: Any = None, json_body: Any = None, **headers: str
    ) -> urllib3.BaseHTTPResponse:
        """One raw call, with the right token unless another is given."""
        sent = {"Authorization": f"Bearer {self.token}"} | {k.replace("_", "-"): v for k, v in headers.items()}
        if json_body is not None:
            body = json.dumps(json_body).encode()
            sent.setdefault("Content-Type", "application/json")
        trust: dict[str, Any] = {"cert_reqs": "CERT_NONE", "assert_fingerprint": self.pin} if self.pin else {}
        with urllib3.PoolManager(retries=False, **trust) as pool:
            return pool.request(method, self.url + path, body=body, headers=sent, redirect=False, timeout=30)

    def workspace(self, workspace_id: str = "work", files: Mapping[str, str | bytes] | None = None) -> str:
        self.client.upload(workspace_id, make_zip(files or {"README.md": "hello\n"}))
        return workspace_id

    def run(self, prompt: str, workspace_id: str = "work", **options: Any) -> list[StreamEvent]:
        """Execute a prompt to its end and return all events."""
        return list(self.client.execute(workspace_id, prompt, **options))

    @property
    def database(self) -> db.Database:
        return db.Database(self.home / "occ.db")

    def processes(self) -> list[psutil.Process]:
        """Every live process that belongs to this home, by its environment."""
        return processes_with(f"OCC_HOME={self.home}\0".encode())

    def kill(self, first: str = "") -> None:
        """Kill all of them, those with `first` in their command line before the others, and wait for their end."""
        processes = sorted(self.processes(), key=lambda process: first not in " ".join(command_line(process)))
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):  # it ended with another
                process.kill()
        wait_until(lambda: all(map(is_gone, processes)), "the killed processes to end")

    def commands(self) -> dict[int, str]:
        """Their command lines by process id, of those that live long enough to be asked."""
        lines = {process.pid: " ".join(command_line(process)) for process in self.processes()}
        return {pid: line for pid, line in lines.items() if line}

    def under_way(self, prompt: str, execution_id: str) -> tuple[Iterator[StreamEvent], list[StreamEvent]]:
        """Start a prompt and wait for its first text; returns its stream, and the events that came already."""
        stream = self.client.execute("work", prompt, executionId=execution_id)
        seen = [next(stream)]
        while seen[-1].name != "output":
            seen.append(next(stream))
        return stream, seen

    def logs(self) -> str:
        return "\n".join(f"--- {path.name}\n{path.read_text()}" for path in sorted((self.home / "logs").glob("*.log")))


def command_line(process: psutil.Process) -> list[str]:
    """The arguments of a process, none when it has just ended."""
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return []


def is_gone(process: psutil.Process) -> bool:
    """Whether a process has ended or is just ending, whether or not its parent knows."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE or _is_ending(process.pid)
    except psutil.NoSuchProcess:
        return True


def _is_ending(pid: int) -> bool:
    """Whether the kernel is ending a process, which no signal and no program can stop any more.

    One that was killed has a pending SIGKILL until it has a processor, and then this flag until it is a zombie.
    """
    try:
        flags = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[6])
        status = Path(f"/proc/{pid}/status").read_text()
    except (OSError, IndexError):
        return True
    pending = re.findall(r"^(?:Sig|Shd)Pnd:\s*(\w+)", status, re.MULTILINE)
    return bool(flags & _PF_EXITING) or any(int(mask, 16) >> (signal.SIGKILL - 1) & 1 for mask in pending)


def control_process(supervisor: int) -> psutil.Process:
    """The control process of a daemon, which may come up after the daemon serves."""

    def found() -> list[psutil.Process]:
        children = psutil.Process(supervisor).children(recursive=True)
        return [child for child in children if "control" in command_line(child)]

    process: psutil.Process = wait_until(found, "the control process")[0]
    return process


def processes_with(marker: bytes) -> list[psutil.Process]:
    """Every live process whose environment has this in it, without those that are just ending."""
    found = []
    for pid in psutil.pids():
        try:
            if marker in Path(f"/proc/{pid}/environ").read_bytes() + b"\0":
                process = psutil.Process(pid)
                if not is_gone(process):
                    found.append(process)
        except (OSError, psutil.Error):
            continue
    return found


@pytest.fixture
def fake_claude(tmp_path: Path) -> Path:
    """The stand-in CLI as a program."""
    return stand_in(tmp_path)


def stand_in(folder: Path) -> Path:
    path = folder / "fake-claude"
    version = f'if [ "$1" = --version ]; then echo "{stand_in_cli.VERSION} (a stand-in)"; exit; fi'
    path.write_text(f'#!/bin/sh\n{version}\nexec "{sys.executable}" -S "{FAKE_CLAUDE}" "$@"\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@contextlib.contextmanager
def occ_in(folder: Path, *, home: Path | None = None, program: Path | None = None, **environment: str) -> Iterator[Occ]:
    """The command, not started yet, with its home in `folder`; afterwards stopped, and nothing of it may be left."""
    home = home or folder / "home"
    base = {"PATH": os.environ["PATH"], "HOME": str(folder), "LANG": "C.UTF-8", "OCC_HOME": str(home)}
    base |= {"OCC_CLAUDE_BIN": str(program or stand_in(folder)), "OCC_WORKERS": "2", "OCC_WARM_PROCESSES": "0"}
    occ = Occ(home, base | environment)
    yield occ
    for client in occ.clients:
        client.close()
    if (home / "run").exists():
        occ.command("stop", check=False)
    left = occ.processes()
    occ.kill()
    assert not left, "processes were left behind"


@contextlib.contextmanager
def shared_agent(folder: Path, **environment: str) -> Iterator[Occ]:
    """A running agent that many tests look at; each leaves it as it was."""
    with occ_in(folder, OCC_WORKERS="1") as occ:
        yield occ.start(**environment)


def raw(agent: Occ, request: bytes) -> tuple[int, dict[str, Any]]:
    """Send bytes as they are, and nothing more, and return the status and the JSON of the answer."""
    host, port = agent.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while data := connection.recv(65536):
            answer += data
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/json" in head.lower(), answer[:300]
    return int(head.split()[1]), json.loads(body)


@pytest.fixture
def occ(tmp_path: Path) -> Iterator[Occ]:
    """The command, not started yet; afterwards the agent is stopped and nothing of it may be left."""
    user = tmp_path / "user"
    user.mkdir(exist_ok=True)
    with occ_in(tmp_path, home=tmp_path / "occ-home", HOME=str(user)) as occ:
        yield occ


@pytest.fixture(scope="session")
def kept_agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KeptAgent]:
    """An agent that tests use one after another."""
    from tests.kept_daemons import KeptAgent  # which imports this module

    kept = KeptAgent(tmp_path_factory.mktemp("kept"))
    yield kept
    kept.end()


@pytest.fixture(scope="session")
def kept_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KeptHub]:
    """A hub that tests use one after another."""
    from tests.kept_daemons import KeptHub  # which imports this module

    kept = KeptHub(tmp_path_factory.mktemp("kept-hub"), box=False)
    yield kept
    kept.end()


@pytest.fixture(scope="session")
def kept_hub_with_box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KeptHub]:
    """A hub that tests use one after another, and its machine `box`."""
    from tests.kept_daemons import KeptHub  # which imports this module

    kept = KeptHub(tmp_path_factory.mktemp("kept-hub-with-box"), box=True)
    yield kept
    kept.end()


@pytest.fixture
def hub(kept_hub: KeptHub, tmp_path: Path) -> Iterator[Hub]:
    """A running hub without machines; what a test makes in it is removed."""
    with kept_hub.lent(tmp_path) as hub:
        yield hub


@pytest.fixture
def hub_with_box(kept_hub_with_box: KeptHub, tmp_path: Path) -> Iterator[Hub]:
    """A running hub with a machine, which is `hub.agent("box")`; what a test makes in them is removed."""
    with kept_hub_with_box.lent(tmp_path) as hub:
        yield hub


@pytest.fixture
def agent(kept_agent: KeptAgent, tmp_path: Path) -> Iterator[Occ]:
    """A running agent with the stand-in CLI and one workspace, `work`; what a test makes in it is removed."""
    with kept_agent.lent(tmp_path) as occ:
        occ.workspace()
        yield occ


@pytest.fixture
def slack() -> Iterator[FakeSlack]:
    """A Slack on loopback."""
    from tests.fake_slack import fake_slack

    with fake_slack() as slack:
        yield slack


@pytest.fixture
def office(tmp_path: Path, slack: FakeSlack, monkeypatch: pytest.MonkeyPatch) -> Iterator[Office]:
    """A hub that is connected to that Slack, and sends to it without pauses."""
    from occ_worker.slack import composing, sending
    from tests.slack_office import office_in

    monkeypatch.setattr(sending, "_POST_SECONDS", 0.0)
    monkeypatch.setattr(composing, "_LEAST_SECONDS", 0.0)
    monkeypatch.setattr(composing, "_SECONDS_A_RUN", 0.0)
    with office_in(tmp_path, slack) as office:
        yield office


@pytest.fixture
def free_port() -> int:
    """A port of loopback that nobody listens on."""
    return free_port_number()


def free_port_number() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module", params=real_cli.tested())
def release(request: pytest.FixtureRequest) -> str:
    """A release of the real CLI. A test of it runs with each that this run of the tests tries."""
    return str(request.param)


@pytest.fixture(scope="module")
def real_claude(release: str) -> Path:
    """The program of that release, installed once and kept; its tests are skipped, loudly, where it cannot be."""
    return real_cli.require(release)


@pytest.fixture(scope="session")
def served_model() -> Iterator[model_api.ModelApi]:
    """A stand-in for the model's API on loopback, for daemons that several tests use."""
    with model_api.serve() as api:
        yield api


@pytest.fixture
def model(served_model: model_api.ModelApi) -> model_api.ModelApi:
    """A stand-in for the model's API on loopback, which nobody has called yet."""
    served_model.forget()
    return served_model


def output(events: list[StreamEvent]) -> str:
    """The text of an execution."""
    return "".join(event.data["chunk"] for event in events if event.name == "output")


def names(events: list[StreamEvent]) -> list[str]:
    return [event.name for event in events]
