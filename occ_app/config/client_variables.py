"""The variables that commands read to call an agent or a hub: OCC_TOKEN, OCC_URL, OCC_PIN."""

from __future__ import annotations

import os

from occ_app.config.settings import secret
from occ_app.errors import ConfigError


def client_token() -> str | None:
    """The token for another agent: OCC_TOKEN, or @FILE in it. Raises ConfigError when it cannot be read."""
    value = os.environ.get("OCC_TOKEN")
    return read_secret(value, "OCC_TOKEN") if value else None


def client_url() -> str | None:
    """The agent or hub that commands use when they name none: OCC_URL."""
    return os.environ.get("OCC_URL") or None


def client_pin() -> str | None:
    """The fingerprint of the certificate of that agent or hub: OCC_PIN."""
    return os.environ.get("OCC_PIN") or None


def read_secret(value: str, source: str) -> str:
    """A secret as the person gave it: itself or @FILE. Raises ConfigError naming `source`."""
    try:
        return secret(value)
    except ValueError as error:
        raise ConfigError(f"{source} cannot be used: {error}.") from None
