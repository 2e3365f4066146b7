"""OCC as a target of measurements: a standalone agent as `occ start` runs it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import socket
import subprocess
import sys
import time
import uuid
import zipfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import IO

import psutil

from benchmarks import processes
from benchmarks.capture import Broken, Capture, Prompt
from benchmarks.streams import Stream, await_answer, over_http
from occ_app.client.agent_client import AgentClient
from occ_app.home import state

COMMAND_SECONDS = 45.0


class Occ:
    """A standalone agent in a separate home, run by the `occ` command."""

    name = "occ"

    def __init__(self, home: Path, stub: Path, workers: int, more: Mapping[str, str] | None = None) -> None:
        self.home = home
        self._workers = workers
        self._token = f"benchmark-{uuid.uuid4()}"
        self._address = ("127.0.0.1", _free_port())
        self._user = home.with_name(home.name + "-user")
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self._user),
            "LANG": "C.UTF-8",
            "OCC_HOME": str(home),
            "OCC_CLAUDE_BIN": str(stub),
            "OCC_WORKERS": str(workers),
            "OCC_HTTP_PORT": str(self._address[1]),
            "OCC_RETENTION_BYTES": "100000000000",
            **(more or {}),
        }
        self.pid = 0

    def start(self) -> tuple[float, float]:
        """Start the daemon with a workspace for each lane.

        Returns the seconds to the first /health and to the return.
        """
        self._user.mkdir(exist_ok=True)
        if not self.home.exists():
            self.home.mkdir(mode=0o700)
            state.save(self.home / "state.json", state.State(self._token))
        begun = time.monotonic()
        with ThreadPoolExecutor(1) as pool:
            started = pool.submit(self._command, "start")
            await_answer(self._address, self._head("GET", "/health", 0), started.done)
            healthy = time.monotonic() - begun
            started.result()
        seconds = time.monotonic() - begun
        self.pid = json.loads(self._command("status", "--json"))["pid"]
        for lane in range(self._workers):
            archive = io.BytesIO()
            with zipfile.ZipFile(archive, "w") as zipped:
                zipped.writestr("README.md", "benchmark\n")
            archive.seek(0)
            self.upload(f"lane-{lane}", archive)
        return healthy, seconds

    def client(self) -> AgentClient:
        """Return a client of the daemon, which the caller closes."""
        return AgentClient(f"http://127.0.0.1:{self._address[1]}", self._token)

    def stop(self) -> float:
        """Stop the daemon; harmless when it does not run.

        Returns the seconds until `occ stop` returned.
        """
        left = self.processes()
        begun = time.monotonic()
        try:
            self._command("stop")
        finally:
            seconds = time.monotonic() - begun
            for process in left:
                with contextlib.suppress(psutil.Error):
                    process.kill()  # only what `occ stop` left; psutil tells a process from a later one with its pid
            self.pid = 0
        return seconds

    def processes(self) -> list[psutil.Process]:
        """Return the daemon's processes, the supervisor first; none without one."""
        if not self.pid:
            return []
        with contextlib.suppress(psutil.NoSuchProcess):
            supervisor = psutil.Process(self.pid)
            return [supervisor, *supervisor.children(recursive=True)]
        return []

    def begin(self, prompt: Prompt, lane: int = 0) -> Stream:
        """POST /execute; its stream ends with the execution."""
        execution_id = f"bench-{uuid.uuid4()}"
        body = {"executionId": execution_id, "workspaceId": f"lane-{lane}", "prompt": str(prompt)}
        return self._stream("POST", "/execute", json.dumps(body).encode(), prompt, execution_id)

    def follow(self, execution_id: str, prompt: Prompt) -> Stream:
        """GET all events of an execution, over or not."""
        return self._stream("GET", f"/executions/{execution_id}/events", b"", prompt, execution_id)

    def get(self, path: str) -> float:
        """GET something. Returns the seconds it took."""
        begun = time.monotonic()
        await_answer(self._address, self._head("GET", path, 0))
        return time.monotonic() - begun

    def command_seconds(self, *arguments: str) -> float:
        """Run an `occ` command. Returns the seconds it took."""
        begun = time.monotonic()
        self._command(*arguments)
        return time.monotonic() - begun

    def cpu_seconds(self) -> float:
        return sum(processes.cpu_seconds(process.pid) for process in self.processes() if _is_python(process))

    def upload(self, workspace: str, archive: IO[bytes]) -> float:
        """Make a workspace. Returns the seconds it took."""
        client = AgentClient(f"http://127.0.0.1:{self._address[1]}", self._token)
        begun = time.monotonic()
        try:
            client.upload(workspace, archive)
        finally:
            client.close()
        return time.monotonic() - begun

    def _head(self, method: str, path: str, length: int) -> str:
        return (
            f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {self._token}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {length}\r\nAccept: text/event-stream\r\n"
            "Connection: close\r\n\r\n"
        )

    def _stream(self, method: str, path: str, body: bytes, prompt: Prompt, execution_id: str) -> Stream:
        request = self._head(method, path, len(body)).encode() + body
        capture = Capture()  # from before the connection is made: a client that has none open waits for that too
        stream = over_http(capture, self._address, request, lambda: capture.http_run(prompt, execution_id))
        return replace(stream, execution_id=execution_id)

    def argv(self, *arguments: str) -> list[str]:
        """Return the `occ` command installed beside this Python."""
        return [str(Path(sys.executable).with_name("occ")), *arguments]

    def _command(self, *arguments: str) -> str:
        done = subprocess.run(
            self.argv(*arguments),
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
        if done.returncode != 0:
            # The home is removed when the benchmark ends, and its logs with it.
            raise Broken(f"`occ {arguments[0]}` failed: {(done.stderr or done.stdout).strip()} {self._last_words()}")
        return done.stdout

    def _last_words(self) -> str:
        """Return the last line of each log that has one."""
        logs = sorted((self.home / "logs").glob("*.log"))
        texts = [(log.name, log.read_text(errors="replace").strip()) for log in logs]
        return "; ".join(f"{name}: {text.splitlines()[-1]}" for name, text in texts if text)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def _is_python(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return "occ_" in " ".join(process.cmdline())
    return False
