"""The service of a home's daemon, as commands that start and stop it name it."""

from __future__ import annotations

from typing import Any

from occ_app.cli import output
from occ_app.service.persistence import start_command, unit_of
from occ_app.service.systemd import Machine

MACHINE = Machine()


def start_line(config: Any) -> str:
    """Return the command that starts this home's daemon, or its service."""
    unit = unit_of(config.program, config.home, MACHINE)
    return f"{config.program.command} start" if unit is None else start_command(unit)


def warnings(config: Any) -> list[str]:
    """Return a warning when the daemon has a service that a command bypasses."""
    unit = unit_of(config.program, config.home, MACHINE)
    if unit is None:
        return []
    return [
        f"{unit.name} is installed, but this start is not part of it: systemd does not restart the daemon, and your"
        f" logout may end it. `{config.program.command} stop` and then `{start_command(unit)}` start the service."
    ]


def note_stopped(config: Any) -> None:
    """Print how to start a stopped daemon again, if it has a service."""
    unit = unit_of(config.program, config.home, MACHINE)
    if unit is not None:
        output.note(f"`{start_command(unit)}` starts its service again.")
