"""Where the files that are not code are: beside the code in a wheel, at the top level in a checkout."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parents[1]


def packaged(name: str) -> Path:
    """The path of `migrations` or `Procfile` in this installation."""
    installed = _PACKAGE / ("_migrations" if name == "migrations" else name)
    return installed if installed.exists() else _PACKAGE.parent / name
