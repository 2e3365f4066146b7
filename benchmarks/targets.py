"""What is measured side by side: a bare pipe from the stub CLI, and OCC as `occ start` runs it in front of the same."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
import zipfile
from pathlib import Path
from typing import Protocol

import psutil

from benchmarks.capture import Broken, Capture, Prompt, Run
from occ_app.client import AgentClient

COMMAND_SECONDS = 45.0
WORKSPACE = "benchmark"

_SOURCE = Path(__file__).with_name("stub_cli.c")

# The shape of what OCC calls: the same number of arguments, so that a spawn costs the same.
_ARGUMENTS = [
    *("-p", "--verbose", "--output-format", "stream-json", "--input-format", "stream-json"),
    *("--include-partial-messages", "--setting-sources", "user", "--strict-mcp-config", "--disable-slash-commands"),
    *("--tools", "Read,Edit,Write,Grep,Glob", "--permission-mode", "acceptEdits"),
]


class Target(Protocol):
    """Something that runs the stub CLI and lets a client see its output."""

    name: str

    def run(self, prompt: Prompt) -> Run:
        """Ask for one stream and read it to its end."""


def compile_stub(folder: Path) -> Path:
    """Build the stub CLI. Raises Broken when there is no compiler."""
    if shutil.which("cc") is None:
        raise Broken("there is no C compiler; install one (on Debian: apt-get install gcc libc6-dev)")
    stub = folder / "stub_cli"
    done = subprocess.run(["cc", "-O2", "-o", stub, _SOURCE], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Broken(f"the stub CLI cannot be compiled: {done.stderr.strip()[:500]}")
    return stub


class Direct:
    """A bare subprocess whose pipe is read: nothing is stored, nothing is sent; the machine's own limit."""

    name = "direct"

    def __init__(self, stub: Path, folder: Path) -> None:
        self._argv = [str(stub), *_ARGUMENTS]
        self._folder = folder
        self._environment = {"PATH": os.environ["PATH"], "HOME": str(folder)}

    def run(self, prompt: Prompt) -> Run:
        message = {"type": "user", "message": {"role": "user", "content": str(prompt)}}
        line = json.dumps(message).encode() + b"\n"
        capture = Capture()
        with subprocess.Popen(
            self._argv,
            env=self._environment,
            cwd=self._folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            bufsize=0,
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                process.stdin.write(line)
                output = process.stdout.fileno()
                capture.read(lambda most: os.read(output, most), last=b'"type":"result"')
            except BaseException:
                process.kill()
                raise
        return capture.run(prompt)


class Relay:
    """A minimal Node server that spawns the stub CLI and passes its output on, keeping nothing (relay.js)."""

    name = "relay"

    def __init__(self, stub: Path, folder: Path) -> None:
        """Start it. Raises Broken when there is no Node."""
        node = shutil.which("node")
        if node is None:
            raise Broken("there is no Node.js to run the relay with; install one (on Debian: apt-get install nodejs)")
        self._process = subprocess.Popen(
            [node, _SOURCE.with_name("relay.js"), stub, folder, *_ARGUMENTS],
            env={"PATH": os.environ["PATH"], "HOME": str(folder)},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self._address = ("127.0.0.1", int(self._process.stdout.readline()))

    def run(self, prompt: Prompt) -> Run:
        body = json.dumps({"prompt": str(prompt)}).encode()
        request = f"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        capture = Capture()
        with socket.create_connection(self._address) as connection:
            connection.sendall(request.encode() + body)
            capture.read(connection.recv, last=b"\r\n0\r\n\r\n")
        return capture.relay_run(prompt)

    def stop(self) -> None:
        self._process.terminate()
        self._process.communicate()


class Occ:
    """A standalone agent in a home of its own, started and stopped by the `occ` command."""

    name = "occ"

    def __init__(self, home: Path, stub: Path, workers: int) -> None:
        self._home = home
        self._user = home.with_name(home.name + "-user")
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self._user),
            "LANG": "C.UTF-8",
            "OCC_HOME": str(home),
            "OCC_CLAUDE_BIN": str(stub),
            "OCC_WORKERS": str(workers),
        }
        self._address = ("127.0.0.1", 0)
        self._token = ""
        self.pid = 0

    def start(self) -> float:
        """Start the daemon with one workspace. Returns the seconds until `occ start` returned."""
        self._user.mkdir(exist_ok=True)
        begun = time.monotonic()
        self._command("start")
        seconds = time.monotonic() - begun
        status = json.loads(self._command("status", "--json"))
        self.pid = status["pid"]
        self._address = ("127.0.0.1", status["port"])
        self._token = self._command("token").strip()
        self._upload(status["url"])
        return seconds

    def stop(self) -> float:
        """Stop the daemon; harmless when it does not run. Returns the seconds until `occ stop` returned."""
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
        """All the daemon's processes, the supervisor first; none when it does not run."""
        if not self.pid:
            return []
        with contextlib.suppress(psutil.NoSuchProcess):
            supervisor = psutil.Process(self.pid)
            return [supervisor, *supervisor.children(recursive=True)]
        return []

    def run(self, prompt: Prompt) -> Run:
        """POST /execute and read its events to the last."""
        execution_id = f"bench-{uuid.uuid4()}"
        body = {"executionId": execution_id, "workspaceId": WORKSPACE, "prompt": str(prompt)}
        return self._stream("POST", "/execute", json.dumps(body).encode(), prompt, execution_id)

    def replay(self, run: Run, prompt: Prompt) -> Run:
        """Read all events of an execution that is over."""
        return self._stream("GET", f"/executions/{run.execution_id}/events", b"", prompt, run.execution_id)

    def _stream(self, method: str, path: str, body: bytes, prompt: Prompt, execution_id: str) -> Run:
        request = (
            f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {self._token}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nAccept: text/event-stream\r\n"
            "Connection: close\r\n\r\n"
        ).encode() + body
        capture = Capture()  # from before the connection is made: a client that has none open waits for that too
        with socket.create_connection(self._address) as connection:
            connection.sendall(request)
            capture.read(connection.recv, last=b"\r\n0\r\n\r\n")
        return capture.http_run(prompt, execution_id)

    def _upload(self, url: str) -> None:
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as zipped:
            zipped.writestr("README.md", "benchmark\n")
        archive.seek(0)
        client = AgentClient(url, self._token)
        try:
            client.upload(WORKSPACE, archive)
        finally:
            client.close()

    def _command(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "occ_app.cli", *arguments],
            env=self._environment,
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
        """The last line of each log that has one."""
        logs = sorted((self._home / "logs").glob("*.log"))
        texts = [(log.name, log.read_text(errors="replace").strip()) for log in logs]
        return "; ".join(f"{name}: {text.splitlines()[-1]}" for name, text in texts if text)
