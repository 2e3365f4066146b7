"""The parts of the daemon as its supervisor holds them: one process each, started, signalled, watched, probed."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from typing import IO, Any

from occ_app.system.kernel import die_with_parent
from occ_app.system.process_identity import ProcessIdentity, process_start

log = logging.getLogger("occ.supervisor")

STEADY_SECONDS = 5.0
FIRST_PAUSE = 0.25
LONGEST_PAUSE = 4.0


class Part:
    """One line of the Procfile and its process."""

    def __init__(self, name: str, command: str, environment: dict[str, str], output: IO[bytes] | None) -> None:
        self.name = name
        self._argv = shlex.split(command)
        if self._argv[0] == "python":
            self._argv[0] = sys.executable
        self._environment = environment
        self._output = output
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self.crashes = 0
        self.restart_at: float | None = 0.0

    def start(self, descriptor: int) -> None:
        """Start it, with the listening socket as `descriptor`."""
        parent = os.getpid()
        self._process = subprocess.Popen(
            self._argv,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._output,
            pass_fds=(descriptor,),
            start_new_session=True,
            preexec_fn=lambda: die_with_parent(parent, signal.SIGTERM),  # noqa: PLW1509 - the supervisor has one thread
        )
        self._started, self.restart_at = time.monotonic(), None

    def died(self) -> bool:
        """Whether it ended since the last look; if so, when it is to be started again is decided."""
        if self._process is None or self._process.poll() is None:
            return False
        # Its children go with it; those that did not must not meet their successors.
        self.signal_group(signal.SIGKILL)
        steady = time.monotonic() - self._started >= STEADY_SECONDS
        self.crashes = 1 if steady else self.crashes + 1
        self.restart_at = time.monotonic() + min(FIRST_PAUSE * 2 ** (self.crashes - 1), LONGEST_PAUSE)
        log.warning("%s ended with %s and is started again", self.name, self._process.returncode)
        self._process = None
        return True

    @property
    def pid(self) -> int | None:
        """Of its process, alive or not yet waited for; None when there is none."""
        return None if self._process is None else self._process.pid

    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def send_signal(self, number: signal.Signals) -> None:
        if self.running() and self._process is not None:
            self._process.send_signal(number)

    def signal_group(self, number: signal.Signals) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)

    def identity(self, boot_id: str) -> ProcessIdentity | None:
        if self._process is None or (start := process_start(self._process.pid)) is None:
            return None
        return ProcessIdentity(boot_id, self._process.pid, start)


class Probe:
    """Asks the web part for /health once, without waiting: the answer makes `descriptor` readable."""

    def __init__(self, address: tuple[Any, ...], family: int, token: str, *, tls: bool) -> None:
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        self._not_yet: tuple[type[OSError], ...] = (BlockingIOError,)
        with contextlib.suppress(OSError):
            self._socket.connect(address)  # our own listener takes it at once
        self._socket.setblocking(False)
        if tls:
            self._wrap()
        self._request = f"GET /health HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
        self._sent = False

    def _wrap(self) -> None:
        import ssl  # an agent without TLS does without its memory

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        # Nothing to verify: the other end is the socket this process bound.
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        self._socket = context.wrap_socket(self._socket, do_handshake_on_connect=False)
        self._not_yet = (BlockingIOError, ssl.SSLWantReadError)

    def fileno(self) -> int:
        return self._socket.fileno()

    def answer(self) -> bool | None:
        """True for a 200, False when the connection broke, None while nothing is known yet."""
        try:
            if not self._sent:
                if hasattr(self._socket, "do_handshake"):
                    self._socket.do_handshake()
                self._socket.send(self._request)
                self._sent = True
            return self._socket.recv(64).startswith(b"HTTP/1.1 200")
        except OSError as error:
            return None if isinstance(error, self._not_yet) else False

    def close(self) -> None:
        self._socket.close()
