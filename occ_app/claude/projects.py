"""The folders in which the CLI stores the conversations of a workspace.

A conversation is in `projects/NAME` of the CLI's own folder. NAME is the workspace's path with a dash for everything
but ASCII letters and digits, so different paths can share it. More of a conversation is stored elsewhere, by the id of
its session; docs/claude-cli.md lists these places.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import stat
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

_BEGINNING_BYTES = 1 << 20  # of a transcript, in which a line names the folder
LONGEST_NAME = 200  # the CLI shortens longer names and appends a hash

_SESSION = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
# The parts of a session in the CLI's folder, in folders that all sessions share.
_OF_SESSION = (
    *("tasks/{}", "file-history/{}", "session-env/{}", "uploads/{}", "image-cache/{}", "debug/{}.txt"),
    *("todos/{}-agent-*.json", "usage-data/session-meta/{}.json", "usage-data/facets/{}.json"),
)


@dataclass(frozen=True)
class CliFolders:
    """The folders of the CLI's session state and temporary files."""

    state: Path
    temporary: Path


def cli_folders(environment: Mapping[str, str]) -> CliFolders:
    """Return the CLI's folders, under the environment that the CLI gets."""
    names = ("CLAUDE_CODE_TMPDIR", "TMPDIR", "TMP", "TEMP")
    temporary = next((environment[name] for name in names if environment.get(name)), "/tmp")  # noqa: S108 - the CLI's
    return CliFolders(claude_folder(environment), Path(temporary, f"claude-{os.getuid()}"))


def claude_folder(environment: Mapping[str, str]) -> Path:
    """Return the CLI's own folder, under the environment that the CLI gets."""
    configured = environment.get("CLAUDE_CONFIG_DIR")
    return Path(configured) if configured else Path(environment["HOME"], ".claude")


def encoded(path: str) -> str:
    """Return a path as in the name of the CLI's folder.

    The CLI shortens long names afterwards.
    """
    # JavaScript counts a character beyond the basic plane as two.
    return "".join(char if char.isascii() and char.isalnum() else "-" * (1 + (ord(char) > 0xFFFF)) for char in path)


def name_of(path: str) -> str:
    """Return the name of the CLI's folder for a working directory."""
    name = encoded(path)
    return name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}-{_hash(path)}"


def folders(claude: Path, workspace: Path) -> list[Path]:
    """Return the CLI's folders for a workspace.

    One is by its path as given, one by the path with links resolved.
    """
    paths = dict.fromkeys((str(workspace), os.path.realpath(workspace)))
    return [claude / "projects" / name_of(path) for path in paths]


def private(claude: Path, workspace: Path) -> Path:
    """Return OCC's folder beside the CLI's for the state of a sandboxed workspace.

    No sandbox can write it, so none can put a link there that the next start would follow.
    """
    return claude / "occ-sandboxes" / name_of(str(workspace))


def fits(workspace: Path) -> bool:
    """Return whether the CLI uses the whole path of a workspace in its folder's name."""
    return max(len(encoded(str(workspace))), len(encoded(os.path.realpath(workspace)))) <= LONGEST_NAME


def remove(cli: CliFolders, workspace: Path, sessions: Collection[str] = ()) -> None:
    """Delete all that the CLI stores of a workspace and of its sessions.

    Nothing of other sessions is deleted.
    """
    kept = folders(cli.state, workspace)
    others = (private(cli.state, workspace), *_temporary(cli.temporary, kept))
    for path in (*_of_sessions(cli.state, sessions), *others, *kept):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()


def _of_sessions(state: Path, sessions: Collection[str]) -> Iterator[Path]:
    for session in sessions:
        if _SESSION.fullmatch(session):  # the CLI said it, and it becomes a part of a path
            for pattern in _OF_SESSION:
                yield from state.glob(pattern.format(session))


def _temporary(temporary: Path, kept: Collection[Path]) -> Iterator[Path]:
    """Yield the temporary folders of a workspace.

    None when another user made the folder that they are in.
    """
    with contextlib.suppress(OSError):
        status = temporary.lstat()
        if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid():
            yield from (temporary / folder.name for folder in kept)


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
