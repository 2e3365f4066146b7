"""Checks of the daemon: whether it runs, its files, its problems, and its service."""

from __future__ import annotations

from collections.abc import Iterator

from occ_app import __version__
from occ_app.client.agent_client import AgentClient
from occ_app.config.config import Config
from occ_app.doctor.findings import Finding, note, ok, wrong
from occ_app.errors import Refused, Unreachable
from occ_app.home import daemon, state
from occ_app.home import health as health_of_home
from occ_app.service.persistence import persistence
from occ_app.service.systemd import Machine

_SECONDS = 10.0


def running(config: Config) -> Iterator[Finding]:
    """Find the daemon and ask it for its health."""
    command = config.program.command
    found = daemon.find(config)
    if found is None:
        yield note("daemon", f"{config.program.name} is not running in {config.home}", f"`{command} start` starts it.")
        return
    identity = state.load(config.state)
    client = AgentClient(found.url, identity.token if identity else "", found.fingerprint)
    try:
        health = client.health(_SECONDS)
    except (Unreachable, Refused) as error:
        yield wrong("daemon", str(error), f"See `occ logs web`; `{command} stop` and `{command} start` replace it.")
        return
    finally:
        client.close()
    yield ok("daemon", f"version {health['version']} answers at {found.url} (pid {found.pid})")
    changed = daemon.replaced(config)
    if changed is None and health["version"] != __version__:
        yield wrong(
            "version",
            f"The daemon is of version {health['version']} and this command of {__version__}",
            "Use the `occ` of one installation.",
        )
    for problem in health["problems"]:
        what, _, step = problem.partition("; ")
        cause = next((check for beginning, check in health_of_home.CHECKS.items() if problem.startswith(beginning)), "")
        yield wrong("problem", what.rstrip("."), step or "`occ logs` has more.", cause)


def service(config: Config, machine: Machine) -> Iterator[Finding]:
    """Ask whether the daemon survives a logout and a reboot."""
    found = persistence(config.program, machine)
    make = note if found.unit is None else wrong
    for name, kept, reason in (
        ("logout", found.logout, found.logout_reason),
        ("reboot", found.reboot, found.reboot_reason),
    ):
        yield ok(name, f"it stays: {reason}") if kept else make(name, f"it may be gone: {reason}", found.action)
