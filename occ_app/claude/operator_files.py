"""The operator's files that the CLI reads when it starts.

They are settings, login, memory and extensions.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from occ_app.claude.projects import claude_folder

_MANAGED = Path("/etc/claude-code")
_FILES = ("settings.json", "settings.local.json", "remote-settings.json", ".credentials.json", "CLAUDE.md")
_FOLDERS = ("agents", "commands", "output-styles", "plugins", "rules", "skills", "workflows")

State = tuple[tuple[int, int, int], ...]


def state_of(environment: Mapping[str, str]) -> State:
    """Return inode, size and change time of each file.

    Zeros for a missing one. The CLI's environment decides on the places. A folder counts by its entries, not by their
    content.
    """
    return tuple(_stamp(path) for path in _paths(claude_folder(environment)))


def _paths(folder: Path) -> Iterator[Path]:
    yield from (folder / name for name in (*_FILES, *_FOLDERS))
    yield from (_MANAGED / name for name in ("managed-settings.json", "managed-mcp.json", "managed-settings.d"))
    yield _MANAGED / "CLAUDE.md"


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        status = os.stat(path)
    except OSError:
        return 0, 0, 0
    return status.st_ino, status.st_size, status.st_mtime_ns


def run_more_at_start(environment: Mapping[str, str]) -> bool:
    """Return whether the operator's settings may name hooks or plugins.

    These run when a process starts or ends.
    """
    folder = claude_folder(environment)
    more = sorted((_MANAGED / "managed-settings.d").glob("*.json"))
    names = ("settings.json", "settings.local.json", "remote-settings.json")
    return any(map(_names_programs, (*(folder / name for name in names), _MANAGED / "managed-settings.json", *more)))


def _names_programs(path: Path) -> bool:
    try:
        settings = json.loads(path.read_bytes())
        return bool(settings.get("hooks") or settings.get("enabledPlugins"))
    except FileNotFoundError:
        return False
    except (OSError, ValueError, AttributeError):
        return True
