"""The variables of commands that call an agent or a hub.

They are OCC_TOKEN, OCC_URL and OCC_PIN.
"""

from __future__ import annotations

import os
from pathlib import Path

from occ_app.config.settings import secret
from occ_app.errors import ConfigError


def client_token() -> str | None:
    """Return the token for another agent: OCC_TOKEN, or the file of its @FILE.

    Raises ConfigError when it cannot be read.
    """
    value = os.environ.get("OCC_TOKEN")
    return read_secret(value, "OCC_TOKEN") if value else None


def client_url() -> str | None:
    """Return the agent or hub that commands use by default: OCC_URL."""
    return os.environ.get("OCC_URL") or None


def client_pin() -> str | None:
    """Return the fingerprint of its certificate: OCC_PIN."""
    return os.environ.get("OCC_PIN") or None


def read_line(path: str, source: str) -> str:
    """Return the first line of a file that holds a secret.

    Raises ConfigError naming `source`.
    """
    try:
        return Path(path).expanduser().read_text(encoding="utf-8").partition("\n")[0].strip()
    except (OSError, UnicodeDecodeError, RuntimeError) as error:
        raise ConfigError(f"The file of {source} cannot be read ({type(error).__name__}).") from None


def read_secret(value: str, source: str) -> str:
    """Return a secret that is given as itself or as @FILE.

    Raises ConfigError naming `source`.
    """
    try:
        return secret(value)
    except ValueError as error:
        raise ConfigError(f"{source} cannot be used: {error}.") from None


def claude_program() -> str | None:
    """Return OCC_CLAUDE_BIN of this process; None when it is not set.

    It is readable when other settings are wrong, too.
    """
    return os.environ.get("OCC_CLAUDE_BIN") or None
