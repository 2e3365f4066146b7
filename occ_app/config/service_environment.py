"""The variables of this shell that a service needs.

A service inherits none of them.
"""

from __future__ import annotations

import os

from occ_app.config.config import Config

# These the unit sets, or systemd itself.
_NOT_COPIED = frozenset({"PATH", "HOME", "USER", "LOGNAME", "SHELL", "TMPDIR"})


def service_variables(config: Config) -> dict[str, str]:
    """Return the variables that are settings of this program or reach the CLI.

    Secrets are among them.
    """
    settings = {setting.variable for setting in config.program.settings}
    named = {name: value for name, value in os.environ.items() if name in settings and value}
    of_cli = {name: value for name, value in config.cli_environment.items() if name in os.environ}
    return {name: value for name, value in {**of_cli, **named}.items() if name not in _NOT_COPIED}


def search_path(config: Config) -> str:
    """Return this shell's PATH without relative folders, ended by those of the system."""
    folders = [*config.cli_environment.get("PATH", os.defpath).split(":"), *_SYSTEM_FOLDERS]
    return ":".join(dict.fromkeys(folder for folder in folders if folder.startswith("/")))


_SYSTEM_FOLDERS = ("/usr/local/bin", "/usr/bin", "/bin")
