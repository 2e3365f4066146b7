"""The daemons that run from this installation.

They are held while it is replaced, stopped, started, and checked.
"""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from occ_app.client.agent_client import AgentClient
from occ_app.config import config as configuration
from occ_app.config.config import Config, HubConfig
from occ_app.errors import ConfigError, OCCError, StartFailed
from occ_app.home import daemon, state
from occ_app.service.persistence import installed
from occ_app.service.systemd import Machine, Unit
from occ_app.system import interpreter

_HEALTH_SECONDS, _PAUSE_SECONDS = 60.0, 0.2


@dataclass(frozen=True)
class Target:
    """A running daemon: its settings, variables and port.

    It has a unit when a service runs it.
    """

    config: Config
    running: daemon.Daemon
    variables: Mapping[str, str]
    unit: Unit | None

    @property
    def name(self) -> str:
        return f"the {self.config.program.kind}"

    @property
    def copy(self) -> Path:
        """The place for a copy of the database; it is kept until the next upgrade."""
        return self.config.home / "before-upgrade.db"


def targets(machine: Machine, *, of_these_files: bool) -> list[Target]:
    """Return the daemons of this user, a hub before its agent.

    With `of_these_files` raises ConfigError for one that was started from other files than those of this process.
    """
    found = []
    for kind in (HubConfig, Config):
        config = configuration.load_daemon(kind.program.kind)
        running, variables = daemon.find(config), daemon.environment(config)
        if running is None or variables is None:
            continue
        if of_these_files and daemon.replaced(config) is not None:
            raise ConfigError(
                f"{config.program.name} runs other files than those of this `occ`: use its own `occ`, or restart it."
            )
        unit = installed(config.program, machine)
        by_service = unit is not None and unit.main_pid() == running.pid
        found.append(Target(config, running, variables, unit if by_service else None))
    return found


def stop(target: Target) -> None:
    """Stop a daemon, if it runs."""
    running = daemon.find(target.config)
    if target.unit is not None:
        target.unit.call("stop", target.unit.name)
    elif running is not None:
        daemon.stop(target.config, running)


def start(target: Target) -> None:
    """Start a daemon from the installed files, with its former settings and port.

    Raises StartFailed.
    """
    if target.unit is not None:
        target.unit.call("start", target.unit.name)
        return
    group = ["hub"] if target.config.program.kind == "hub" else []
    port = {f"{target.config.program.settings[0].prefix}HTTP_PORT": str(target.running.port)}
    done = subprocess.run(
        interpreter.command("-m", "occ_app.cli", *group, "start"),
        env=clean(target.variables) | port,
        cwd="/",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        raise StartFailed(f"{target.config.program.name} does not start: {' '.join(done.stderr.split())}")


def clean(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the variables without those of the copy that this process runs from.

    Those of the process they come from are left out, too.
    """
    own = ("PYTHONPATH", "OCC_LISTEN_FD", "OCC_LISTEN_PORT", "OCC_READY_FD")
    return {name: value for name, value in variables.items() if name not in own}


def check(target: Target, version: str | None) -> None:
    """Wait until the daemon answers /health as this version.

    With None, as any version. Raises StartFailed.
    """
    deadline, problem = time.monotonic() + _HEALTH_SECONDS, "it does not run"
    while time.monotonic() < deadline:
        running, identity = daemon.find(target.config), state.load(target.config.state)
        if running is not None and identity is not None:
            client = AgentClient(running.url, identity.token, running.fingerprint)
            try:
                answered = client.health(_PAUSE_SECONDS * 25)["version"]
                if version in (None, answered):
                    return
                problem = f"it answers as version {answered}"
            except (OCCError, KeyError) as error:
                problem = str(error)
            finally:
                client.close()
        time.sleep(_PAUSE_SECONDS)
    raise StartFailed(f"{target.config.program.name} is not healthy as version {version}: {problem}")


def keep_database(target: Target) -> None:
    """Copy the database of a stopped daemon. Raises StartFailed."""
    if not target.config.database.exists():
        return
    target.copy.unlink(missing_ok=True)
    target.copy.touch(mode=0o600)
    try:
        with (
            closing(sqlite3.connect(target.config.database)) as source,
            closing(sqlite3.connect(target.copy)) as sink,
        ):
            source.backup(sink)
    except sqlite3.Error as error:
        target.copy.unlink(missing_ok=True)
        raise StartFailed(f"{target.config.database} cannot be copied ({error}).") from None


def restore_database(target: Target) -> None:
    """Put the copy in the place of the database; the queue is rebuilt from it."""
    if not target.copy.exists():
        return
    for path in (target.config.database, target.config.queue):
        for name in (f"{path}-wal", f"{path}-shm"):
            Path(name).unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError):
        target.config.queue.unlink()
    target.copy.replace(target.config.database)
