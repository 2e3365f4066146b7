"""The supervisor: the process that owns all others of a daemon.

It binds the socket, starts the parts of the Procfile, restarts parts that die, and ends everything in order within ten
seconds. One thread, one loop: wait for a signal, a dead child or the clock, and act. Parts are started without a
shell, each as the leader of a separate session, and get SIGTERM from the kernel if the supervisor is killed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from occ_app import __version__
from occ_app.claude import sandbox
from occ_app.config import child_processes
from occ_app.config import config as configuration
from occ_app.config.config import Config
from occ_app.errors import OCCError, StartFailed
from occ_app.home import certificate as tls
from occ_app.home import daemon
from occ_app.supervisor import processes
from occ_app.supervisor import startup as readiness
from occ_app.supervisor.preparation import prepare_agent, prepare_hub
from occ_app.supervisor.processes import Part
from occ_app.supervisor.replaced_files import RunningFiles
from occ_app.system import interpreter
from occ_app.system.inheritance import prepare_daemon
from occ_app.system.kernel import become_subreaper
from occ_app.system.leaving import leave
from occ_app.system.logs import log_to_stderr
from occ_app.system.process_identity import own_identity
from occ_app.system.service_manager import READY, STOPPING
from occ_app.system.strays import sweep_children

log = logging.getLogger("occ.supervisor")

START_SECONDS = 30.0
WORKERS_SECONDS = 5.7  # to end executions: 4 s of grace, the sweep, the final event
CONTROL_SECONDS = 0.5  # more than the others at least, for the last bytes of a link
WEB_SECONDS = 3.3  # to send every stream its last events
CRASHES = 5
_REPLACED_PAUSE_SECONDS = 1.0  # between two looks at files that are being replaced


@dataclass(frozen=True)
class Ready:
    """The facts that `occ start` prints once the daemon serves."""

    url: str
    logs: str
    warnings: tuple[str, ...]
    fingerprint: str | None


class Supervisor:
    """The daemon of one home; `run` returns the exit code when it is over.

    `prepare` is called with the config and the port once the web process loads; it ensures a token and returns
    warnings for a person. `notify` gets the states of the service manager's protocol.
    """

    def __init__(
        self,
        config: Config,
        prepare: Callable[[Any, int], list[str]],
        announce: Callable[[Ready], None],
        *,
        to_terminal: bool,
        notify: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._config = config
        self._notify = notify
        self._prepare = prepare
        self._announce = announce
        self._to_terminal = to_terminal
        self._stopping = self.replaced = False
        self._ready, self._ready_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)  # the web process reports that it serves
        self._wake, wake_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_end, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_stop)
        # A closed terminal stops a daemon in the foreground, unless it was started with nohup. A handler, since the
        # parts and the CLI would inherit that the signal is ignored.
        closes = to_terminal and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN
        signal.signal(signal.SIGHUP, self._on_stop if closes else lambda *_: None)

    def run(self) -> int:
        """Run the daemon. Until it serves, raises StartFailed, AlreadyRunning, Refused."""
        self._config.make_folders()
        become_subreaper()
        with readiness.lock(self._config):
            self._warnings = readiness.clean(self._config, WORKERS_SECONDS)
            self._certificate = tls.certificate(self._config)
            self._warnings += tls.problems(self._config)
            sandbox.check(self._config)
            listener = readiness.bind(self._config)
            with listener:
                self._identity, self._files = own_identity(), RunningFiles()
                self._write_place(listener)
                self._parts = processes.read_procfile(self._config, listener, to_terminal=self._to_terminal)
                try:
                    return self._serve(listener)
                finally:
                    self._stop()
                    daemon.take_work(self._config)
                    daemon.remove(self._config)

    def _write_place(self, listener: socket.socket) -> None:
        port = self.port = listener.getsockname()[1]
        identity = self._identity
        self._place = daemon.Daemon(
            identity.boot_id,
            identity.pid,
            identity.start,
            self._config.bind_address,
            port,
            daemon.url_for(self._config.bind_address, port, secure=self._certificate is not None),
            self._certificate.fingerprint if self._certificate else None,
            self._config.tls is not None,
            self._config.public_url,
            __version__,
            self._files.fingerprint,
            str(self._certificate.chain) if self._certificate else None,
        )
        daemon.write(self._config, self._place)

    def _serve(self, listener: socket.socket) -> int:
        # Alone at first: it takes the longest to load, and the caller of the start waits for it.
        web = next(part for part in self._parts if part.name == "web")
        moved = readiness.prepare_database(self._config, lambda: self._start_due(listener.fileno(), one=web))
        warnings = [*self._warnings, *moved, *self._prepare(self._config, listener.getsockname()[1])]
        deadline = time.monotonic() + START_SECONDS
        while not self._stopping and not self._web_serves(web, deadline):
            self._start_due(listener.fileno(), one=web)
            self._watch_children()
        if not self._stopping:
            self._announce(Ready(self._place.url, str(self._config.logs), tuple(warnings), self._place.fingerprint))
            log.info("OCC %s serves at %s", __version__, self._place.url)
            self._notify(f"{READY}\nSTATUS=serving at {self._place.url}")
        while not self._stopping:
            self._start_due(listener.fileno())
            self._wait(self._parts)
            self._watch_children()
        return 0

    def _web_serves(self, web: Part, deadline: float) -> bool:
        """Wait for the web process to serve, or a signal. Raises StartFailed."""
        if time.monotonic() > deadline:
            raise StartFailed(f"It did not answer within {START_SECONDS:.0f} s; see the logs in {self._config.logs}.")
        self._wait([web], self._ready, START_SECONDS / 10)  # the others are due, and start once it serves
        with contextlib.suppress(BlockingIOError):
            return bool(os.read(self._ready, 1))
        return False

    def _start_due(self, descriptor: int, one: Part | None = None) -> None:
        """Start the processes that are due, of all parts or of one."""
        started = False
        for part in self._parts if one is None else [one]:
            if part.restart_at is not None and part.restart_at <= time.monotonic() and part.wanted():
                if part.crashes and self._files.were_replaced():
                    part.restart_at = time.monotonic() + _REPLACED_PAUSE_SECONDS
                    self._start_again_if_complete()
                    continue
                part.start(descriptor, self._ready_end if part.name == "web" else None)
                started = True
        if started:
            identities = [part.identity(self._identity.boot_id) for part in self._parts]
            daemon.write_parts(self._config, [identity for identity in identities if identity is not None])

    def _start_again_if_complete(self) -> None:
        if self._files.successor_is_complete:
            log.warning("The files of OCC changed and a part ended: all parts are started again from the new files.")
            self._stopping = self.replaced = True

    def _wait(self, parts: Sequence[Part], ready: int | None = None, limit: float | None = None) -> None:
        """Wait at most `limit` seconds for a signal, `ready`, or the next due part."""
        due = [part.restart_at for part in parts if part.restart_at is not None and part.wanted()]
        if limit is not None:
            due.append(time.monotonic() + limit)
        seconds = max(0.0, min(due) - time.monotonic()) if due else None
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake, selectors.EVENT_READ)
            if ready is not None:
                selector.register(ready, selectors.EVENT_READ)
            selector.select(seconds)
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake, 4096)

    def _watch_children(self) -> None:
        for part in self._parts:
            if part.died() and part.crashes >= CRASHES and not part.optional:
                raise StartFailed(
                    f"{part.name} ended {CRASHES} times in a row; {self._config.logs / (part.name + '.log')} says why."
                )
        self._sweep()

    def _sweep(self) -> None:
        """End orphans that this process inherited from a killed part."""
        sweep_children([part.pid for part in self._parts if part.pid is not None])

    def _on_stop(self, *_: Any) -> None:
        self._stopping = True

    def _stop(self) -> None:
        """End every part, those that run executions first.

        Their last events then still reach the readers. Control is waited for last: a hub reads those events over its
        link.
        """
        begun = time.monotonic()
        log.info("stopping")
        self._notify(f"{STOPPING}\nSTATUS=stopping")
        daemon.refuse_work(self._config)
        named = {name: [part for part in self._parts if part.name == name] for name in ("web", "control")}
        workers = [part for part in self._parts if part.name not in named]
        for part in (*workers, *named["control"]):
            part.signal_group(signal.SIGTERM)
        self._await_parts(workers, WORKERS_SECONDS)
        for part in named["web"]:
            part.send_signal(signal.SIGTERM)
        self._await_parts(named["web"], WEB_SECONDS)
        self._await_parts(named["control"], max(CONTROL_SECONDS, begun + WORKERS_SECONDS - time.monotonic()))
        self._sweep()

    def _await_parts(self, parts: list[Part], seconds: float) -> None:
        """Wait at most `seconds` until all have ended, then kill the rest of their groups."""
        deadline = time.monotonic() + seconds
        while any(part.running() for part in parts) and (left := deadline - time.monotonic()) > 0:
            with selectors.DefaultSelector() as selector:
                selector.register(self._wake, selectors.EVENT_READ)
                selector.select(left)
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake, 4096)
        for part in parts:
            part.signal_group(signal.SIGKILL)


def main() -> int:
    """Run the daemon in the background and report its start as a line.

    The command line is `occ_app.supervisor.supervisor FD KIND`; the line goes to FD.
    """
    answer = os.fdopen(int(sys.argv[1]), "w")
    prepare_daemon()
    log_to_stderr("daemon")

    def tell(content: dict[str, Any]) -> None:
        with contextlib.suppress(OSError, ValueError):  # the caller may have gone
            answer.write(json.dumps(content) + "\n")
            answer.close()

    def announce(ready: Ready) -> None:
        tell(asdict(ready))

    try:
        config = configuration.load_daemon(sys.argv[2])
        log_to_stderr("daemon", config.log_format, config.logs / "daemon.log")
        prepare = {"agent": prepare_agent, "hub": prepare_hub}[config.program.kind]
        supervisor = Supervisor(config, prepare, announce, to_terminal=False)
        code = supervisor.run()
        if supervisor.replaced:
            _start_again(config, supervisor.port)
        return code
    except OCCError as error:
        log.error("%s", error)
        tell({"error": type(error).__name__, "message": str(error)})
        return 1
    except OSError as error:
        log.exception("the daemon could not go on")
        tell(
            {
                "error": "StartFailed",
                "message": f"{error.strerror or error}: {error.filename or ''}; nothing was started.",
            }
        )
        return 1


def _start_again(config: Config, port: int) -> None:
    """Become the daemon of the installed files, at the same port."""
    nobody = os.open(os.devnull, os.O_WRONLY)
    os.set_inheritable(nobody, True)
    environment = child_processes.child_environment(replace(config, http_port=port), secrets=True)
    command = interpreter.command("-m", "occ_app.supervisor.supervisor", str(nobody), config.program.kind)
    os.execve(command[0], command, environment)  # noqa: S606 - OCC itself


if __name__ == "__main__":
    leave(main())
