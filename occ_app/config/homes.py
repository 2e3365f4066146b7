"""The two programs of OCC, agent and hub, and the folders of their files.

The folders of the commands are here, too.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from occ_app.config.settings import HUB_SETTINGS, SETTINGS, Setting
from occ_app.errors import ConfigError


@dataclass(frozen=True)
class Program:
    """The differences between the two daemons: name, home, processes, settings."""

    kind: str
    name: str
    command: str
    home_variable: str
    home: str
    procfile: str
    settings: tuple[Setting, ...]


AGENT = Program("agent", "OCC", "occ", "OCC_HOME", "~/.occ", "Procfile", SETTINGS)
HUB = Program("hub", "The hub", "occ hub", "OCC_HUB_HOME", "~/.occ-hub", "Procfile.hub", HUB_SETTINGS)


def home_folder(environ: Mapping[str, str] | None = None, program: Program = AGENT) -> Path:
    """Return the folder that holds all files of a daemon.

    It is OCC_HOME, or ~/.occ; for a hub OCC_HUB_HOME, or ~/.occ-hub.
    """
    environ = os.environ if environ is None else environ
    try:
        return Path(environ.get(program.home_variable) or program.home).expanduser().absolute()
    except RuntimeError:
        raise ConfigError(
            f"This user has no home folder: neither HOME nor the user database names one; set {program.home_variable}"
            " to a folder of your own."
        ) from None


def secret_folders() -> list[Path]:
    """Return the folders in which an agent, a hub and the commands keep secrets.

    A folder that no variable names and no home has is left out.
    """
    folders = []
    for program in (AGENT, HUB):
        with contextlib.suppress(ConfigError):
            folders.append(home_folder(program=program))
    with contextlib.suppress(ConfigError):
        folders.append(user_folder())
    return folders


def default_homes() -> list[Path]:
    """Where an agent and a hub of this user are when no variable names another folder."""
    found = []
    for program in (AGENT, HUB):
        with contextlib.suppress(ConfigError):
            found.append(home_folder({}, program))
    return found


def user_folder() -> Path:
    """Return the folder of the files that commands keep for this user.

    It is XDG_STATE_HOME/occ, or ~/.local/state/occ.
    """
    named = os.environ.get("XDG_STATE_HOME", "")
    if os.path.isabs(named):  # others are to be ignored, says the specification
        return Path(named, "occ")
    try:
        return Path.home() / ".local" / "state" / "occ"
    except RuntimeError:
        raise ConfigError(
            "This user has no home folder: neither HOME nor the user database names one; set XDG_STATE_HOME to a"
            " folder of your own."
        ) from None
