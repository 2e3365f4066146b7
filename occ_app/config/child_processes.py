"""The variables and descriptors that a daemon passes to its processes."""

from __future__ import annotations

import contextlib
import os

from occ_app.config.config import Config, load
from occ_app.config.settings import secret, smtp_url

# An interpreter that needs one of these does not load, or loads other packages, without it. They reach OCC's own
# processes and not the CLI.
_INTERPRETER = ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME", "PYTHONUSERBASE", "PYTHONNOUSERSITE", "LD_LIBRARY_PATH")


def child_environment(config: Config, *, secrets: bool) -> dict[str, str]:
    """Return the environment of a daemon's process.

    It has all settings as resolved, and the CLI's variables. The API key and the mail server's password go only where
    `secrets` is true: to the control process.
    """
    environ = dict(config.cli_environment)
    environ[config.program.home_variable] = str(config.home)
    for setting in config.program.settings:
        value = getattr(config, setting.name)
        if value in (None, (), "") or (setting.parse in (secret, smtp_url) and not secrets):
            continue
        environ[setting.variable] = ",".join(value) if isinstance(value, tuple) else str(value)
    # glibc would give each of many threads a separate heap, and never take one back.
    environ["MALLOC_ARENA_MAX"] = "2"
    return environ | interpreter_variables()


def own_variables() -> dict[str, str]:
    """All variables of this process, for a command that is to run in its place."""
    return dict(os.environ)


def interpreter_variables() -> dict[str, str]:
    """Return the variables that OCC's Python processes need to load."""
    return {name: os.environ[name] for name in _INTERPRETER if name in os.environ}


def notify_socket() -> str | None:
    """Return the socket on which systemd waits for messages of this service.

    None under anything else.
    """
    return os.environ.get("NOTIFY_SOCKET") or None


def inherited_socket() -> int | None:
    """Return the descriptor of the listening socket that the supervisor bound.

    None under a plain Procfile runner.
    """
    value = os.environ.get("OCC_LISTEN_FD")
    return int(value) if value else None


def report_ready() -> None:
    """Write one byte to the descriptor that the supervisor waits on, if any."""
    value = os.environ.pop("OCC_READY_FD", None)
    if value:
        with contextlib.suppress(OSError), open(int(value), "wb", buffering=0) as ready:
            ready.write(b"1")


def listening_port() -> int:
    """Return the port that the supervisor bound.

    Under a plain Procfile runner it is the configured one.
    """
    return int(os.environ.get("OCC_LISTEN_PORT") or load().http_port)
