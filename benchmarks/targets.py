"""The targets beside which OCC is measured: a bare pipe and a relay.

agent.py has OCC in front of the same stub.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Protocol

from benchmarks import processes
from benchmarks.capture import READ_BYTES, Broken, Capture, Prompt
from benchmarks.streams import Stream, await_answer, over_http

_SOURCE = Path(__file__).with_name("stub_cli.c")

# The shape of what OCC calls: the same number of arguments, so that a spawn costs the same.
ARGUMENTS = [
    *("-p", "--verbose", "--output-format", "stream-json", "--input-format", "stream-json"),
    *("--include-partial-messages", "--setting-sources", "user", "--strict-mcp-config", "--disable-slash-commands"),
    *("--tools", "Read,Edit,Write,Grep,Glob", "--permission-mode", "acceptEdits"),
]


class Target(Protocol):
    """Something that runs the stub CLI and lets a client see its output."""

    name: str

    def begin(self, prompt: Prompt, lane: int = 0) -> Stream:
        """Request one stream.

        Streams that are to run at the same time are requested in separate lanes.
        """

    def cpu_seconds(self) -> float:
        """Return the server's CPU time so far, without the CLIs it started."""


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
    """A bare subprocess whose pipe is read: the machine's own limit.

    Nothing is stored or sent.
    """

    name = "direct"

    def __init__(self, stub: Path, folder: Path) -> None:
        self._argv = [str(stub), *ARGUMENTS]
        self._folder = folder
        self._environment = {"PATH": os.environ["PATH"], "HOME": str(folder)}

    def begin(self, prompt: Prompt, lane: int = 0) -> Stream:
        message = {"type": "user", "message": {"role": "user", "content": str(prompt)}}
        capture = Capture()
        process = subprocess.Popen(
            self._argv,
            env=self._environment,
            cwd=self._folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            bufsize=0,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        output = process.stdout.fileno()

        def close() -> None:
            process.kill()
            process.communicate()

        process.stdin.write(json.dumps(message).encode() + b"\n")
        return Stream(
            capture, output, lambda: os.read(output, READ_BYTES), b'"type":"result"', lambda: capture.run(prompt), close
        )

    def cpu_seconds(self) -> float:
        return 0.0


class Relay:
    """A minimal Node server in front of the stub CLI, storing nothing (relay.js)."""

    name = "relay"

    def __init__(self, stub: Path, folder: Path) -> None:
        """Start it. Raises Broken when there is no Node."""
        node = shutil.which("node")
        if node is None:
            raise Broken("there is no Node.js to run the relay with; install one (on Debian: apt-get install nodejs)")
        begun = time.monotonic()
        self._process = subprocess.Popen(
            [node, _SOURCE.with_name("relay.js"), stub, folder, *ARGUMENTS],
            env={"PATH": os.environ["PATH"], "HOME": str(folder)},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self._address = ("127.0.0.1", int(self._process.stdout.readline()))
        await_answer(self._address, "GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        self.start_seconds = time.monotonic() - begun

    def begin(self, prompt: Prompt, lane: int = 0) -> Stream:
        body = json.dumps({"prompt": str(prompt)}).encode()
        request = f"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        capture = Capture()
        return over_http(capture, self._address, request.encode() + body, lambda: capture.relay_run(prompt))

    def cpu_seconds(self) -> float:
        return processes.cpu_seconds(self._process.pid)

    def stop(self) -> None:
        self._process.terminate()
        self._process.communicate()
