"""Whether a daemon survives a logout and comes back after a reboot, and why not."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from occ_app.config.homes import Program
from occ_app.service.systemd import Machine, Unit, user_name
from occ_app.service.unit import home_line


@dataclass(frozen=True)
class Persistence:
    """The two answers, each with its reason, and the next step.

    `unit` is None when no service is installed.
    """

    unit: Unit | None
    running: bool
    logout: bool
    logout_reason: str
    reboot: bool
    reboot_reason: str
    action: str = ""


def unit_name(program: Program) -> str:
    return "occ.service" if program.kind == "agent" else "occ-hub.service"


def installed(program: Program, machine: Machine) -> Unit | None:
    """Return the unit of this program that is installed, the system's first."""
    units = (Unit(unit_name(program), system, machine) for system in (True, False))
    return next((unit for unit in units if unit.installed), None)


def unit_of(program: Program, home: Path, machine: Machine) -> Unit | None:
    """Return the unit of this home's daemon; None also without systemd."""
    unit = installed(program, machine) if machine.has_systemd else None
    try:
        lines = [] if unit is None else unit.path.read_text(errors="replace").splitlines()
    except OSError:  # removed meanwhile, or the unit of another user
        return None
    return unit if home_line(program.home_variable, home) in lines else None


def start_command(unit: Unit) -> str:
    """Return the command with which a person starts a unit."""
    sudo = ["sudo"] if unit.system and os.geteuid() != 0 else []
    return " ".join([*sudo, *unit.command("start", unit.name)])


def persistence(program: Program, machine: Machine) -> Persistence:
    """Ask systemd about the service of this program."""
    install = f"occ service install{' --hub' if program.kind == 'hub' else ''}"
    if not machine.has_systemd:
        why = "systemd does not run here"
        return Persistence(None, False, False, why, False, why, f"`{install}` prints a line for crontab.")
    unit = installed(program, machine)
    if unit is None:
        why = "no service is installed"
        return Persistence(None, False, False, why, False, why, f"`{install}` installs one.")
    active, enabled = unit.active(), unit.enabled()
    lingers = unit.system or machine.lingers(user_name())
    of_user = "" if unit.system else f", and {user_name()} lingers"
    if not lingers:
        why = f"{unit.name} ends with the last session of {user_name()}, who does not linger"
        return Persistence(
            unit, active, False, why, False, why, f"`sudo loginctl enable-linger {user_name()}` changes that."
        )
    sudo = ["sudo"] if unit.system and os.geteuid() != 0 else []
    starts = " ".join([*sudo, *unit.command("enable", "--now", unit.name)])
    return Persistence(
        unit,
        active,
        active,
        f"{unit.name} runs{of_user}" if active else f"{unit.name} does not run",
        enabled,
        f"{unit.name} is enabled{of_user}" if enabled else f"{unit.name} is not enabled",
        "" if active and enabled else f"`{starts}` starts it now and at each boot.",
    )
