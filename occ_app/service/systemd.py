"""Calls of systemctl and loginctl for one unit.

It is of the user's manager or of the system's.
"""

from __future__ import annotations

import os
import pwd
import subprocess
from dataclasses import dataclass
from pathlib import Path

from occ_app.errors import StartFailed

_SECONDS = 90.0  # a start of the unit waits until OCC serves


@dataclass(frozen=True)
class Machine:
    """The places of systemd on this machine; tests name others."""

    booted: Path = Path("/run/systemd/system")  # exists when systemd is process 1
    lingering: Path = Path("/var/lib/systemd/linger")
    system_units: Path = Path("/etc/systemd/system")

    @property
    def has_systemd(self) -> bool:
        return self.booted.is_dir()

    def lingers(self, user: str) -> bool:
        """Return whether the manager of this user runs without a session.

        `loginctl enable-linger` makes the file that shows it.
        """
        return (self.lingering / user).exists()


@dataclass(frozen=True)
class Unit:
    """A unit by its name; of the system, or of this user's manager."""

    name: str
    system: bool
    machine: Machine = Machine()

    @property
    def path(self) -> Path:
        folder = self.machine.system_units if self.system else Path.home() / ".config" / "systemd" / "user"
        return folder / self.name

    @property
    def installed(self) -> bool:
        return self.path.exists()

    def enabled(self) -> bool:
        return self._ask("is-enabled", self.name) == "enabled"

    def active(self) -> bool:
        return self._ask("is-active", self.name) == "active"

    def is_managed(self) -> bool:
        """Whether its manager answers."""
        return run(self.command("show", "--property", "Version"))[0] == 0

    def main_pid(self) -> int | None:
        """Return the process id of the service, None while it does not run."""
        answer = self._ask("show", "--property", "MainPID", "--value", self.name)
        return int(answer) if answer.isdigit() and answer != "0" else None

    def command(self, *arguments: str) -> list[str]:
        return ["systemctl", *([] if self.system else ["--user"]), *arguments]

    def call(self, *arguments: str) -> None:
        """Run systemctl. Raises StartFailed with the last line that it prints."""
        code, printed = run(self.command(*arguments))
        if code != 0:
            reason = printed.strip().splitlines()[-1:] or [f"exit code {code}"]
            raise StartFailed(f"`{' '.join(self.command(*arguments))}` failed: {reason[0]}")

    def _ask(self, *arguments: str) -> str:
        return run(self.command(*arguments))[1].strip()


def user_name() -> str:
    """Return the name of this user, or the number of an unknown one.

    The user database may not know it.
    """
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def run(argv: list[str]) -> tuple[int, str]:
    """Run a program of systemd; returns its exit code and its output.

    The code is 127 when the program is missing.
    """
    # Without a login session, as after `su`, no variable leads to the user's manager.
    runtime = Path(f"/run/user/{os.geteuid()}")
    lead = ["env", f"XDG_RUNTIME_DIR={runtime}"] if "--user" in argv and runtime.is_dir() else []
    try:
        done = subprocess.run(
            [*lead, *argv], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except FileNotFoundError:
        return 127, f"{argv[0]} is not installed"
    except subprocess.TimeoutExpired:
        return 124, f"{argv[0]} did not answer within {_SECONDS:.0f} s"
    return done.returncode, done.stdout + done.stderr
