"""Runs `occ` commands quickly: each is a process, forked from one that has loaded the modules of the commands.

`run` is for tests. Run as a program with the number of a socket, this file is the server that forks.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import pkgutil
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

_LOADED = (
    "occ_app.cli",
    "occ_app.client",
    "occ_app.config",
    "occ_app.executions",
    "occ_app.home",
    "occ_app.workspaces",
)


def can_run(environment: Mapping[str, str]) -> bool:
    """Whether the server can stand in for a new interpreter: locale and PYTHON variables are read at its start."""
    special = [name for name in environment if name.startswith(("LC_", "PYTHON"))]
    return environment.get("LANG") == "C.UTF-8" and not special


def run(
    arguments: Sequence[str], environment: Mapping[str, str], folder: Path, seconds: float
) -> subprocess.CompletedProcess[str]:
    """Run `occ` in a folder to its end. May be called in any thread. Raises TimeoutExpired."""
    request = {"arguments": list(arguments), "environment": dict(environment), "folder": str(folder)}
    server_end, connection = socket.socketpair()
    outputs = [os.pipe(), os.pipe()]
    nothing = os.open(os.devnull, os.O_RDONLY)
    handed = [server_end.fileno(), nothing, *(write_end for _, write_end in outputs)]
    try:
        socket.send_fds(_control(), [b"run"], handed)
    except BrokenPipeError:  # a test that ends all children of its process has ended the server, too
        _control.cache_clear()
        socket.send_fds(_control(), [b"run"], handed)
    server_end.close()
    for descriptor in handed[1:]:
        os.close(descriptor)
    with connection:
        connection.sendall(json.dumps(request).encode() + b"\n")
        texts = _read_all([connection.fileno(), *(read_end for read_end, _ in outputs)], time.monotonic() + seconds)
        for read_end, _ in outputs:
            os.close(read_end)
    pid, _, code = texts[0].decode().partition("\n")
    if not code:
        os.kill(int(pid), signal.SIGKILL)
        raise subprocess.TimeoutExpired(["occ", *arguments], seconds, texts[1], texts[2])
    stdout, stderr = (text.decode().replace("\r\n", "\n").replace("\r", "\n") for text in texts[1:])
    return subprocess.CompletedProcess(["occ", *arguments], int(code), stdout, stderr)


def _read_all(descriptors: list[int], deadline: float) -> list[bytes]:
    """Read each descriptor to its end, or all of them until the deadline."""
    texts = dict.fromkeys(descriptors, b"")
    with selectors.DefaultSelector() as selector:
        for descriptor in descriptors:
            selector.register(descriptor, selectors.EVENT_READ)
        while selector.get_map() and (left := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                data = os.read(key.fd, 65536)
                texts[key.fd] += data
                if not data:
                    selector.unregister(key.fd)
    return list(texts.values())


@functools.cache
def _control() -> socket.socket:
    """Start the server; returns the socket that takes requests."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OCC_", "LC_"))}
    with theirs:
        server = subprocess.Popen(
            [sys.executable, "-P", __file__, str(theirs.fileno())],
            env=environment | {"LANG": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
        )

    server.wait()  # it goes on in a process of its own, which is no child of the tests
    atexit.register(ours.close)
    return ours


def _serve(control: socket.socket) -> list[str]:
    """Fork for each request until the tests are over. Returns the arguments, in each child."""
    running: dict[int, socket.socket] = {}
    wake, wake_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake_end, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    selector = selectors.DefaultSelector()
    selector.register(control, selectors.EVENT_READ)
    selector.register(wake, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj is not control:
                os.read(wake, 4096)
                for pid, status in _ended():
                    with running.pop(pid) as connection, contextlib.suppress(OSError):
                        connection.sendall(str(os.waitstatus_to_exitcode(status)).encode())
                continue
            data, descriptors, _, _ = socket.recv_fds(control, 16, 4)
            if not data:
                sys.exit()
            connection = socket.socket(fileno=descriptors[0])
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                selector.close()
                for opened in (control, *running.values()):
                    opened.close()
                for descriptor in (wake, wake_end):
                    os.close(descriptor)
                return _take_over(connection, descriptors[1:])
            running[pid] = connection
            with contextlib.suppress(OSError):
                connection.sendall(f"{pid}\n".encode())
            for descriptor in descriptors[1:]:
                os.close(descriptor)


def _ended() -> Iterator[tuple[int, int]]:
    """Yield the id and the status of each child that has ended."""
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            yield ended


def _take_over(connection: socket.socket, standard: list[int]) -> list[str]:
    """Make this child the process that the request describes. Returns its arguments."""
    with connection, connection.makefile("rb") as lines:
        request: dict[str, Any] = json.loads(lines.readline())
    for number, descriptor in enumerate(standard):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(request["environment"])
    time.tzset()
    os.chdir(request["folder"])
    arguments: list[str] = request["arguments"]
    return arguments


def main() -> None:
    """Leave the process that started this, load the commands, and serve; each child goes on as `occ`."""
    if os.fork():
        os._exit(0)
    os.setsid()
    for name in _LOADED:
        package = importlib.import_module(name)
        for module in pkgutil.walk_packages(package.__path__, f"{name}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    gc.collect()
    gc.freeze()
    arguments = _serve(socket.socket(fileno=int(sys.argv[1])))
    sys.argv[1:] = arguments
    sys.orig_argv[:] = [sys.executable, "-m", "occ_app.cli", *arguments]
    importlib.import_module("occ_app.cli").main()


if __name__ == "__main__":
    main()
