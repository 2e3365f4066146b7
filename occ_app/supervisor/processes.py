"""The parts of the daemon: one process each, started, signalled and watched."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import signal
import socket
import subprocess
import time
from pathlib import Path

from honcho.environ import parse_procfile

from occ_app.config import child_processes
from occ_app.config.config import Config
from occ_app.system import interpreter
from occ_app.system.kernel import die_with_parent
from occ_app.system.logs import open_log
from occ_app.system.packaged import packaged
from occ_app.system.process_identity import ProcessIdentity, process_start

log = logging.getLogger("occ.supervisor")

STEADY_SECONDS = 5.0
FIRST_PAUSE = 0.25
LONGEST_PAUSE = 4.0
_OPTIONAL = {"slack": "slack.json"}  # parts that run only while a file of the home exists


class Part:
    """One line of the Procfile and its process."""

    def __init__(
        self,
        name: str,
        command: str,
        environment: dict[str, str],
        log_file: Path | None,
        needs: Path | None = None,
    ) -> None:
        self.name = name
        self._needs = needs  # it runs only while this file exists, and its ends never end the daemon
        words = shlex.split(command)
        self._argv = interpreter.command(*words[1:]) if words[0] == "python" else words
        self._environment = environment
        self._log_file = log_file  # None: the terminal
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self.crashes = 0
        self.restart_at: float | None = 0.0

    def start(self, listener: int, ready: int | None = None) -> None:
        """Start it with the descriptor of the listening socket.

        It writes to `ready`, a descriptor, once it serves.
        """
        parent = os.getpid()
        environment = self._environment if ready is None else self._environment | {"OCC_READY_FD": str(ready)}
        output = None if self._log_file is None else open_log(self._log_file)  # the last one may be full and put aside
        try:
            self._process = subprocess.Popen(
                self._argv,
                env=environment,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(listener,) if ready is None else (listener, ready),
                start_new_session=True,
                preexec_fn=lambda: die_with_parent(parent, signal.SIGTERM),  # noqa: PLW1509 - the supervisor has one thread
            )
        finally:
            if output is not None:
                os.close(output)
        self._started, self.restart_at = time.monotonic(), None

    @property
    def optional(self) -> bool:
        """Whether the daemon does without it."""
        return self._needs is not None

    def wanted(self) -> bool:
        """Whether it is to run now."""
        return self._needs is None or self._needs.exists()

    def died(self) -> bool:
        """Return whether it ended since the last call.

        If so, the time of its next start is set.
        """
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


def read_procfile(config: Config, listener: socket.socket, *, to_terminal: bool) -> list[Part]:
    """Return the Procfile's processes, not started.

    Their output goes to logs or to the terminal.
    """
    procfile = parse_procfile(packaged(config.program.procfile).read_text())
    parts = []
    for name, command in procfile.processes.items():
        environment = child_processes.child_environment(config, secrets=name == "control")
        environment |= {
            "OCC_LISTEN_FD": str(listener.fileno()),
            "OCC_LISTEN_PORT": str(listener.getsockname()[1]),
        }
        log_file = None if to_terminal else config.logs / f"{name}.log"
        needs = config.home / _OPTIONAL[name] if name in _OPTIONAL else None
        parts.append(Part(name, command, environment, log_file, needs))
    return parts
