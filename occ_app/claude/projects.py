"""Where the CLI keeps the conversations of a folder: `projects/NAME` in its own folder.

NAME is the folder's path with a dash for everything but ASCII letters and digits, so different paths can share it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

_BEGINNING_BYTES = 1 << 20  # of a transcript, in which a line names the folder
LONGEST_NAME = 200  # the CLI shortens longer names and appends a hash


def claude_folder(environment: Mapping[str, str]) -> Path:
    """Return the CLI's own folder, under the environment that the CLI gets."""
    given = environment.get("CLAUDE_CONFIG_DIR")
    return Path(given) if given else Path(environment["HOME"], ".claude")


def encoded(path: str) -> str:
    """Return a path, or a part of one, as it is in the name of the CLI's folder before that is shortened."""
    # JavaScript counts a character beyond the basic plane as two.
    return "".join(char if char.isascii() and char.isalnum() else "-" * (1 + (ord(char) > 0xFFFF)) for char in path)


def name_of(path: str) -> str:
    """Return the name of the CLI's folder for a working directory."""
    name = encoded(path)
    return name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}-{_hash(path)}"


def folders(claude: Path, workspace: Path) -> list[Path]:
    """Return the CLI's folders for a workspace: by its path as given, and with links resolved."""
    paths = dict.fromkeys((str(workspace), os.path.realpath(workspace)))
    return [claude / "projects" / name_of(path) for path in paths]


def fits(workspace: Path) -> bool:
    """Return whether the CLI uses the whole path of a workspace in its folder's name."""
    return max(len(encoded(str(workspace))), len(encoded(os.path.realpath(workspace)))) <= LONGEST_NAME


def remove(claude: Path, workspace: Path) -> None:
    """Delete the CLI's folders for a workspace, with its conversations and memory."""
    for folder in folders(claude, workspace):
        shutil.rmtree(folder, ignore_errors=True)


def has_session(claude: Path, workspace: Path, session_id: str) -> bool:
    """Return whether the CLI has a session that began in a folder.

    Folders whose paths encode alike share the CLI's folder, so the folder that the transcript names decides.
    """
    paths = {str(workspace), os.path.realpath(workspace)}
    return any(_first_folder(folder / f"{session_id}.jsonl") in paths for folder in folders(claude, workspace))


def _first_folder(transcript: Path) -> str | None:
    """Return the first working directory in the beginning of a transcript."""
    try:
        with transcript.open("rb") as file:
            lines = file.read(_BEGINNING_BYTES).split(b"\n")
    except OSError:
        return None
    for line in lines:
        try:
            content = json.loads(line)
        except ValueError:
            continue
        if isinstance(content, dict) and isinstance(content.get("cwd"), str):
            return str(content["cwd"])
    return None


def _hash(text: str) -> str:
    """Return the CLI's hash of a text: 32 bits, signed, without the sign, in base 36."""
    value = 0
    units = text.encode("utf-16-le", "surrogatepass")
    for low, high in zip(units[::2], units[1::2], strict=True):
        value = (value * 31 + low + 256 * high) & 0xFFFFFFFF
    value = abs(value - (1 << 32) if value >= 1 << 31 else value)
    digits = ""
    while value or not digits:
        value, digit = divmod(value, 36)
        digits = "0123456789abcdefghijklmnopqrstuvwxyz"[digit] + digits
    return digits
