"""A small coordination server in a process of its own, on OCC's real server: it registers agents and takes their links.

`python -m tests.fake_link_hub FD FOLDER PING [CHAIN KEY]` serves on the socket FD; the links' sockets stand in FOLDER.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import urllib3
from flask import Flask, request

from occ_app.client.agent_client import AgentClient
from occ_app.errors import RequestError
from occ_app.home.certificate import Certificate
from occ_app.hub.links import Links, add_link
from occ_app.system.logs import log_to_stderr
from occ_app.web import refusals
from occ_app.web.server import Application
from tests.conftest import wait_until


@dataclass
class _Known:
    """What the hub knows: tokens by agent, and the error it answers a link with, if any."""

    tokens: dict[str, str] = field(default_factory=dict)
    registrations: int = 0
    attempts: int = 0
    refuse: str | None = None


def make_app(folder: Path, ping_seconds: float) -> Flask:
    app = Flask(__name__, static_folder=None)
    known, links = _Known(), Links(folder, ping_seconds)
    refusals.answer_errors(app)

    def admit(agent_id: str) -> None:
        known.attempts += 1
        if known.refuse:
            raise RequestError(known.refuse, "This hub was told to refuse.")
        if request.headers.get("Authorization") != f"Bearer {known.tokens.get(agent_id)}":
            raise RequestError("UNAUTHORIZED", "This token is not known.")

    add_link(app, links, admit)

    @app.post("/api/agents/register")
    def register() -> Any:
        body = request.get_json()
        agent_id = body["agentId"] or f"agent-{len(known.tokens) + 1}"
        known.registrations += 1
        known.tokens[agent_id] = f"token-{known.registrations}"
        return {"agentId": agent_id, "token": known.tokens[agent_id], "heartbeatIntervalSeconds": 1}, 201

    @app.post("/api/agents/<agent_id>/heartbeat")
    def beat(agent_id: str) -> Any:
        if request.headers.get("Authorization") != f"Bearer {known.tokens.get(agent_id)}":
            raise RequestError("UNAUTHORIZED", "This token is not known.")
        return {}

    @app.post("/behave")
    def behave() -> Any:
        for name, value in request.get_json().items():
            setattr(known, name, value)
        return {}

    @app.get("/known")
    def show() -> Any:
        return {**vars(known), "connected": sorted(links.connected())}

    app.occ_on_stop = links.close  # type: ignore[attr-defined]  # the server calls it when it is told to stop
    return app


@dataclass
class LinkHub:
    """The process, and what is asked of it."""

    url: str
    folder: Path
    log: Path
    listener: socket.socket
    ping_seconds: float
    certificate: tuple[Path, Path] | None = None
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        arguments = [str(self.listener.fileno()), str(self.folder), str(self.ping_seconds)]
        arguments += map(str, self.certificate or ())
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.fake_link_hub", *arguments],
                pass_fds=(self.listener.fileno(),),
                stdout=output,
                stderr=output,
                cwd=Path(__file__).parents[1],
            )

    def stop(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    @property
    def server(self) -> psutil.Process:
        """The process that serves."""
        assert self.process is not None
        return psutil.Process(self.process.pid)

    def call(self, method: str, path: str, **body: Any) -> Any:
        with urllib3.PoolManager(retries=urllib3.Retry(3, backoff_factor=0.1), cert_reqs="CERT_NONE") as pool:
            answer = pool.request(method, self.url + path, json=body if method == "POST" else None, timeout=20)
        return json.loads(answer.data)

    def known(self) -> dict[str, Any]:
        return dict(self.call("GET", "/known"))

    def behave(self, **settings: Any) -> None:
        self.call("POST", "/behave", **settings)

    def linked(self, agent_id: str = "agent-1") -> None:
        """Wait until this agent is linked."""
        wait_until(lambda: agent_id in self.known()["connected"], f"{agent_id} to be linked", 30)

    def client(self, agent_id: str = "agent-1", pin: str | None = None) -> AgentClient:
        scheme = "https" if pin else "http"
        token = self.known()["tokens"][agent_id]
        return AgentClient(f"{scheme}://127.0.0.1", token, pin, through=self.folder / agent_id)


@contextlib.contextmanager
def serve(folder: Path, ping_seconds: float = 20.0, certificate: tuple[Path, Path] | None = None) -> Iterator[LinkHub]:
    """A hub for the time of the block, its links' sockets in a folder with a name longer than a socket's address."""
    deep = folder / ("deep-" + "x" * 100) / "links"
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        os.set_inheritable(listener.fileno(), True)
        url = f"{'https' if certificate else 'http'}://127.0.0.1:{listener.getsockname()[1]}"
        hub = LinkHub(url, deep, folder / "hub.log", listener, ping_seconds, certificate)
        hub.start()
        try:
            hub.known()
            yield hub
        finally:
            hub.stop()


def main() -> None:
    descriptor, folder, ping_seconds, *certificate = sys.argv[1:]
    log_to_stderr("web")
    shown = Certificate(Path(certificate[0]), Path(certificate[1]), "") if certificate else None
    app = Application(
        lambda: make_app(Path(folder), float(ping_seconds)), lambda: None, f"fd://{descriptor}", 300, shown
    )
    app.run()


if __name__ == "__main__":
    main()
