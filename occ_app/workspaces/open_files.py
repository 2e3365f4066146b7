"""Opening files of a workspace for a caller.

Never through a link, and of a project only files that git would list.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from occ_app.errors import NotFound, file_not_found
from occ_app.snapshots.scan import rules_along
from occ_app.system.ignore_patterns import ignored
from occ_app.system.timestamps import iso
from occ_app.workspaces import folders as folders_of_projects

MAX_ENTRIES = 10_000
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_TYPES = {stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFLNK: "link"}


@dataclass(frozen=True)
class Entry:
    """An entry of a folder."""

    name: str
    type: str
    size: int
    mode: str
    modified_at: str


def open_file(root: Path, path: str, *, project: bool) -> IO[bytes]:
    """Open a regular file of a workspace; the caller closes it.

    Raises NotFound with the reason.
    """
    *folders, name = plain_parts(path)
    with _opened(root, folders, path, project=project) as descriptor:
        if project and _hidden(root, folders, name, folder=False):
            raise file_not_found(path, "it is ignored, or git's own")
        try:
            found = os.open(name, _FLAGS, dir_fd=descriptor)
        except OSError as error:
            raise _not_found(path, error) from None
    if not stat.S_ISREG(os.fstat(found).st_mode):
        os.close(found)
        raise file_not_found(path, "it is no regular file")
    return os.fdopen(found, "rb")


def entries(root: Path, path: str, *, project: bool) -> tuple[list[Entry], bool]:
    """Return the entries of a folder by name, and whether there are more.

    Raises NotFound with the reason.
    """
    folders = plain_parts(path) if path else []
    with _opened(root, folders, path, project=project) as descriptor:
        found = list[Entry]()
        for name in sorted(os.listdir(descriptor)):
            with contextlib.suppress(FileNotFoundError):
                status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                kind = _TYPES.get(stat.S_IFMT(status.st_mode))
                if kind is None or (project and _hidden(root, folders, name, folder=kind == "folder")):
                    continue
                if len(found) >= MAX_ENTRIES:
                    return found, True
                modified = iso(datetime.fromtimestamp(status.st_mtime, UTC))
                shown = os.fsencode(name).decode(errors="replace")
                found.append(Entry(shown, kind, status.st_size, f"{status.st_mode:06o}", modified))
        return found, False


def plain_parts(path: str) -> list[str]:
    """Return the names in a path, none of which leads up or nowhere. Raises NotFound."""
    parts = path.split("/")
    if "\0" in path or any(part in ("", ".", "..") or len(part.encode(errors="replace")) > 255 for part in parts):
        raise file_not_found(path, "it is no plain path")
    return parts


@contextlib.contextmanager
def _opened(root: Path, folders: Sequence[str], path: str, *, project: bool) -> Iterator[int]:
    """Open a folder of a workspace, step by step."""
    with contextlib.ExitStack() as opened:
        if project and folders_of_projects.was_replaced(root):
            raise file_not_found(path, "the folder of its project was replaced by a link")
        try:
            descriptor = os.open(root, _FLAGS | os.O_DIRECTORY)
            opened.callback(os.close, descriptor)
            for index, folder in enumerate(folders):
                if project and _hidden(root, folders[:index], folder, folder=True):
                    raise file_not_found(path, "it is ignored, or git's own")
                descriptor = os.open(folder, _FLAGS | os.O_DIRECTORY, dir_fd=descriptor)
                opened.callback(os.close, descriptor)
        except (OSError, UnicodeEncodeError) as error:
            raise _not_found(path, error) from None
        yield descriptor


def _hidden(root: Path, folders: Sequence[str], name: str, *, folder: bool) -> bool:
    """Return whether git would not list an entry whose folders it does list."""
    if name.lower() == ".git":
        return True
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        rules = list(rules_along(descriptor, folders))
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return ignored(rules, os.fsencode("/".join([*folders, name])), folder=folder)


def _not_found(path: str, error: Exception) -> NotFound:
    reason = error.strerror or "it cannot be read" if isinstance(error, OSError) else "it is no plain path"
    return file_not_found(path, reason.lower())
