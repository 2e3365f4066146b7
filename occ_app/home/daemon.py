"""The daemon as other processes see it.

They need its address, whether it runs, and a way to stop it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from occ_app.config.config import Config
from occ_app.home import certificate
from occ_app.system.files import write_file
from occ_app.system.installation import fingerprint
from occ_app.system.process_identity import ProcessIdentity, own_identity

STOP_SECONDS = 10.0


@dataclass(frozen=True)
class Daemon:
    """The content of run/daemon.json of a running daemon."""

    boot_id: str
    pid: int
    start: int
    host: str
    port: int
    url: str
    fingerprint: str | None = None  # of its TLS certificate
    self_signed: bool = False  # so that nobody vouches for it
    public_url: str | None = None
    version: str | None = None
    installation: str | None = None  # the fingerprint of the files it was started from
    chain: str | None = None  # the file of its TLS certificate

    @property
    def pin(self) -> str | None:
        """Return the fingerprint that clients must pin.

        None when an authority signed the certificate that they will see.
        """
        plain = (self.public_url or "").startswith("http://")
        return self.fingerprint if self.self_signed and not plain else None

    @property
    def identity(self) -> ProcessIdentity:
        return ProcessIdentity(self.boot_id, self.pid, self.start)


def url_for(host: str, port: int, *, secure: bool) -> str:
    """Return a listening address as a URL that works on this machine."""
    local = local_host(host)
    return f"{'https' if secure else 'http'}://{f'[{local}]' if ':' in local else local}:{port}"


def local_host(host: str) -> str:
    """Return the host at which this machine reaches a listener on `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound


def write(config: Config, daemon: Daemon) -> None:
    """Say where the daemon is."""
    write_file(config.run / "daemon.json", json.dumps(asdict(daemon)))
    write_file(config.pid_file, f"{daemon.pid}\n")


def remove(config: Config) -> None:
    for path in (config.run / "daemon.json", config.run / "parts.json", config.pid_file):
        path.unlink(missing_ok=True)


def find(config: Config) -> Daemon | None:
    """Return the daemon of this home; None unless that process runs."""
    daemon = _written(config)
    return daemon if daemon is not None and daemon.identity.alive() else None


def replaced(config: Config) -> str | None:
    """Return a sentence if OCC's files changed since the daemon was started."""
    daemon = _written(config)
    if daemon is None or daemon.installation in (None, fingerprint()):
        return None
    command = config.program.command
    return (
        f"The files of OCC changed while it runs. The daemon keeps version {daemon.version}; `{command} stop` and"
        f" `{command} start` change to the installed one."
    )


def _written(config: Config) -> Daemon | None:
    """Return the content of daemon.json.

    A newer version may have written more fields than this one knows.
    """
    content = _read(config.run / "daemon.json")
    try:
        daemon = Daemon(**{field.name: content[field.name] for field in fields(Daemon) if field.name in content})
    except TypeError:
        return None
    if daemon.chain is None:
        return daemon
    # The file may have been renewed since, and is served as it is now.
    renewed = certificate.fingerprint_of(Path(daemon.chain))
    return replace(daemon, fingerprint=renewed or daemon.fingerprint)


def write_parts(config: Config, parts: list[ProcessIdentity]) -> None:
    """Record the leaders of the daemon's process groups.

    They can then be ended without the supervisor.
    """
    write_file(config.run / "parts.json", json.dumps([asdict(part) for part in parts]))


def end_parts(config: Config, seconds: float) -> None:
    """Wait for the processes of a killed supervisor, which end by themselves.

    Kill them after `seconds` in total.
    """
    deadline = time.monotonic() + seconds
    for part in _parts(config):
        if not part.alive():
            continue
        _await_exit(part.pid, max(0.0, deadline - time.monotonic()))
        if part.alive():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(part.pid, signal.SIGKILL)
            _await_exit(part.pid, 1.0)


def parts_alive(config: Config) -> list[ProcessIdentity]:
    """Return the processes of the last supervisor that are alive."""
    return [part for part in _parts(config) if part.alive()]


def environment(config: Config) -> dict[str, str] | None:
    """Return the variables of the running daemon; None when it does not run.

    They have its settings as resolved. They are those of a process that has the key of the hub, if there is one: not
    every process gets it.
    """
    found = [variables for part in parts_alive(config) if (variables := _variables(part.pid))]
    return max(found, key=lambda variables: "OCC_API_KEY" in variables, default=None)


def _variables(pid: int) -> dict[str, str]:
    try:
        entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return {}
    pairs = (os.fsdecode(entry).partition("=") for entry in entries)
    return {name: value for name, equals, value in pairs if equals}


def hold(config: Config) -> None:
    """Have a daemon that starts during this process accept nothing until `let_go`."""
    write_file(_hold_file(config), json.dumps(asdict(own_identity())))


def let_go(config: Config) -> None:
    """End a hold, and accept work."""
    _hold_file(config).unlink(missing_ok=True)
    take_work(config)


def is_held(config: Config) -> bool:
    """Whether a living process holds the daemon."""
    try:
        return ProcessIdentity(**_read(_hold_file(config))).alive()
    except TypeError:
        return False


def _hold_file(config: Config) -> Path:
    return config.run / "upgrading"


def refuse_work(config: Config) -> None:
    """From now on new work is refused with 503 and nothing that waits is started."""
    config.stopping.touch()


def take_work(config: Config) -> None:
    config.stopping.unlink(missing_ok=True)


def takes_work(config: Config) -> bool:
    return not config.stopping.exists()


def stop(config: Config, daemon: Daemon) -> bool:
    """Ask the daemon to stop, wait, then kill it and all its processes.

    False when that was needed.
    """
    with contextlib.suppress(ProcessLookupError):
        os.kill(daemon.pid, signal.SIGTERM)
    if _await_exit(daemon.pid, STOP_SECONDS) or not daemon.identity.alive():
        return True
    with contextlib.suppress(ProcessLookupError):
        os.kill(daemon.pid, signal.SIGKILL)
    _await_exit(daemon.pid, 1.0)
    end_parts(config, 0.0)
    remove(config)
    return False


def _parts(config: Config) -> list[ProcessIdentity]:
    content = _read(config.run / "parts.json")
    try:
        return [ProcessIdentity(**part) for part in content]
    except TypeError:
        return []


def _await_exit(pid: int, seconds: float) -> bool:
    """Whether process `pid` ended within `seconds`."""
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return True
    try:
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        return bool(poller.poll(seconds * 1000))
    finally:
        os.close(descriptor)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
