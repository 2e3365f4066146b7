"""The folders of a machine that can be projects.

They are apart from OCC's, Claude Code's and each other. Folders are compared by path with links resolved, and by
identity: a folder that is mounted twice has two paths.
"""

from __future__ import annotations

import contextlib
import os
import pwd
from collections.abc import Iterable, Iterator
from pathlib import Path

from occ_app.claude import projects
from occ_app.config import homes
from occ_app.config.config import Config
from occ_app.errors import NotFound

MAX_PATH_CHARACTERS = 1024


def problem(path: Path, config: Config) -> str | None:
    """Return why a folder cannot be, or remain, a project; None when it can.

    `path` is the project's, with all links resolved when it was added.
    """
    if not path.is_dir():
        return f"{path} is gone or is no folder"
    if was_replaced(path):
        return f"{path} was replaced by a link"
    if path.stat().st_uid != os.geteuid():
        return f"{path} belongs to another user"
    text = str(path)
    if not text.isprintable() or len(text) > MAX_PATH_CHARACTERS:
        return f"{text!a} has control characters, or more than {MAX_PATH_CHARACTERS} characters"
    for home in _homes_of_persons(config):
        if _lies_in(home, path):
            return f"{path} is or contains a home folder"
    for own, owner in _own_folders(config):
        if overlap(path, own):
            return f"{path} is, contains or lies in {own}, a folder of {owner}"
    if projects.encoded(text).startswith(projects.encoded(os.path.realpath(config.workspaces)) + "-"):
        return f"Claude Code would keep the conversations of {path} with those of an uploaded workspace"
    return None


def was_replaced(path: Path) -> bool:
    """Return whether a project's path, or a folder above it, is a link now.

    Such a link leads to another folder.
    """
    return Path(os.path.realpath(path)) != path


def refuse_replaced(path: Path) -> None:
    """Raise NotFound for a project whose folder was replaced by a link."""
    if was_replaced(path):
        raise NotFound(
            "WORKSPACE_NOT_FOUND",
            f"{path} was replaced by a link; put the folder back, or `occ projects remove` and add it again.",
        )


def overlap(one: Path, other: Path) -> bool:
    """Return whether two folders are the same, or one contains the other."""
    return _lies_in(one, other) or _lies_in(other, one)


def _homes_of_persons(config: Config) -> Iterator[Path]:
    yield Path(config.cli_environment["HOME"])
    with contextlib.suppress(KeyError):  # a user that the user database does not know
        yield Path(pwd.getpwuid(os.geteuid()).pw_dir)


def _own_folders(config: Config) -> Iterator[tuple[Path, str]]:
    folders = [config.home, *homes.secret_folders(), *homes.default_homes()]
    yield from ((home, "OCC") for home in dict.fromkeys(folders))
    yield projects.claude_folder(config.cli_environment), "Claude Code"


def _lies_in(path: Path, container: Path) -> bool:
    """Return whether `path` is `container` or lies in it."""
    real, outer = Path(os.path.realpath(path)), Path(os.path.realpath(container))
    if real.is_relative_to(outer):
        return True
    try:
        wanted = _identity(outer)
    except OSError:  # it does not exist, so nothing lies in it
        return False
    return any(wanted == found for found in _identities([real, *real.parents]))


def _identities(paths: Iterable[Path]) -> Iterator[tuple[int, int]]:
    for path in paths:
        with contextlib.suppress(OSError):
            yield _identity(path)


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino
