"""A real hub and real agents for the tests: each a daemon in a folder of its own, gone afterwards."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import urllib3

from occ_app.client.agent_client import AgentClient
from occ_app.database import database as db
from tests.conftest import Occ, command_line, migrate, occ_in, processes_with, run_occ, wait_until


@dataclass
class Hub:
    """The `occ hub` commands with a home of their own, the hub they start, and its agents.

    Commands run in `folder`, by default the parent of the home, and the agents have their homes there.
    `kept_box` lends a machine that is running already, to tests that use one called `box` without settings.
    """

    home: Path
    environment: dict[str, str]
    stack: contextlib.ExitStack
    url: str = ""
    agent_key: str = ""
    client_key: str = ""
    clients: list[AgentClient] = field(default_factory=list)
    folder: Path | None = None
    kept_box: Callable[[], AbstractContextManager[Occ]] | None = None

    @property
    def place(self) -> Path:
        return self.folder or self.home.parent

    def command(self, *arguments: str, check: bool = True, seconds: float = 60, **environment: str) -> Any:
        """Run `occ hub …` and return its output."""
        done = run_occ(("hub", *arguments), self.environment | environment, self.place, seconds)
        if check:
            assert done.returncode == 0, (done.returncode, done.stdout, done.stderr, self.logs())
        return done

    def start(self, *arguments: str, **environment: str) -> Hub:
        """Start it on the port it had, with a key of each kind the first time."""
        self.environment |= environment
        port = self.url.rpartition(":")[2] or "0"
        migrate(self.home)
        self.command("start", "--port", port, *arguments)
        running = json.loads((self.home / "run" / "daemon.json").read_text())
        self.url = running["url"]
        if not self.agent_key:
            self._make_keys(running["fingerprint"])
        return self

    def _make_keys(self, pin: str | None) -> None:
        operator = AgentClient(self.url, json.loads((self.home / "state.json").read_text())["token"], pin)
        with contextlib.closing(operator):
            self.agent_key = operator.call("POST", "/keys", {"name": "machines", "for": "agent"})["key"]
            self.client_key = operator.call("POST", "/keys", {"name": "tester", "for": "client", "admin": True})["key"]

    def stop(self) -> None:
        self.command("stop")

    def key(self, name: str, kind: str, *options: str) -> str:
        """A new key."""
        return str(self.command("keys", "create", name, "--for", kind, *options).stdout.strip())

    @property
    def client(self) -> AgentClient:
        return self.client_with(self.client_key)

    def client_with(self, key: str) -> AgentClient:
        client = AgentClient(self.url, key)
        self.clients.append(client)
        return client

    def agent(self, name: str, *arguments: str, **environment: str) -> Occ:
        """A new machine that was started with this hub; waited for until the hub can use it."""
        if self.kept_box and name == "box" and not arguments and not environment:
            occ = self.stack.enter_context(self.kept_box())
        else:
            occ = self._new_agent(name, environment)
            occ.start(*arguments)
        agent_id = json.loads((occ.home / "state.json").read_text())["agentId"]
        wait_until(lambda: self.seen(agent_id)["via"] == "link", f"{name} is reached by the hub")
        # Its registration is a sign of life for two beats only, and a slow machine takes longer to send the first.
        wait_until(lambda: self.seen(agent_id)["state"] == "online", f"{name} to beat")
        return occ

    def _new_agent(self, name: str, environment: dict[str, str]) -> Occ:
        program = self.place / "fake-claude"
        user = self.place / f"{name}-user"
        user.mkdir(exist_ok=True)
        settings = self.settings_of(name) | environment
        kept = program if program.exists() else None
        return self.stack.enter_context(occ_in(user, home=self.place / name, program=kept, **settings))

    def settings_of(self, name: str) -> dict[str, str]:
        """The variables of an agent that registers with this hub."""
        variables = {"OCC_API_KEY": self.agent_key, "OCC_REMOTE_URL": self.url, "OCC_NAME": name}
        return variables | {"OCC_BIND_ADDRESS": "127.0.0.1", "OCC_HUB_HOME": ""}

    def seen(self, name: str) -> dict[str, Any]:
        """The hub's record of an agent, by its name or id."""
        return self.client.call("GET", f"/agents/{name}")

    def request(
        self, method: str, path: str, *, json_body: Any = None, token: str | None = None, **headers: str
    ) -> urllib3.BaseHTTPResponse:
        """One raw call, with the admin's key unless another secret is given."""
        sent = {"Authorization": f"Bearer {self.client_key if token is None else token}"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        body = None if json_body is None else json.dumps(json_body).encode()
        if body is not None:
            sent.setdefault("Content-Type", "application/json")
        with urllib3.PoolManager(retries=False) as pool:
            return pool.request(method, self.url + path, body=body, headers=sent, redirect=False, timeout=30)

    @property
    def token(self) -> str:
        """What opens everything: the key of an admin."""
        return self.client_key

    @property
    def database(self) -> db.Database:
        return db.Database(self.home / "occ.db")

    def part(self, command: str) -> list[int]:
        """The ids of this hub's processes whose command line has `command` in it."""
        return [pid for pid, line in self.commands().items() if command in line]

    def commands(self) -> dict[int, str]:
        """The command lines of this hub's processes."""
        return {process.pid: " ".join(command_line(process)) for process in processes_with(self.marker)}

    @property
    def marker(self) -> bytes:
        return f"OCC_HUB_HOME={self.home}\0".encode()

    def logs(self) -> str:
        return "\n".join(f"--- {path.name}\n{path.read_text()}" for path in sorted((self.home / "logs").glob("*.log")))


@contextlib.contextmanager
def hub_in(folder: Path, **environment: str) -> Iterator[Hub]:
    """The command, not started yet; afterwards the hub and its agents are stopped, and nothing of them may be left."""
    home = folder / "hub"
    base = {"PATH": os.environ["PATH"], "HOME": str(folder), "LANG": "C.UTF-8", "OCC_HUB_HOME": str(home)}
    with contextlib.ExitStack() as stack:
        hub = Hub(home, base | {"OCC_HUB_HEARTBEAT_SECONDS": "1"} | environment, stack)
        try:
            yield hub
        finally:
            for client in hub.clients:
                client.close()
            stack.close()
            if (home / "run").exists():
                hub.command("stop", check=False)
            left = processes_with(hub.marker)
            for process in left:
                process.kill()
        assert not left, "processes of the hub were left behind"
