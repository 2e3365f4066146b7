"""The place of packaged files that are not code.

They are beside the code in a wheel, and at the top level in a checkout.
"""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parents[1]


def packaged(name: str) -> Path:
    """Return the path of `migrations` or `Procfile` in this installation."""
    installed = _PACKAGE / ("_migrations" if name == "migrations" else name)
    return installed if installed.exists() else _PACKAGE.parent / name
