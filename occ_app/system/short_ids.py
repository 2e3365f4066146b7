"""Ids of executions that a person can read and type."""

from __future__ import annotations

import base64
import secrets

_CHARACTERS = 10  # of base 32: 50 random bits


def new_execution_id() -> str:
    """Return `run-` and ten random characters of base 32."""
    return f"run-{base64.b32encode(secrets.token_bytes(7)).decode().lower()[:_CHARACTERS]}"
