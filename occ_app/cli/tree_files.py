"""Files below an open folder, reached without links and without leaving it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
"""The flags that open a folder and no link to one."""

_PIECE = 1 << 20

OTHER = "other"
"""The digest of a link, a folder or a special file: no file has it."""


class Changed(Exception):
    """Raised when a path is not as the plan found it; the message is the path."""


def look(root: int, path: str) -> tuple[str | None, int]:
    """Return the SHA-256 and the mode of a file below an open folder.

    As TreeUpdate.look does.
    """
    try:
        with parent(root, path) as (folder, name):
            found = os.stat(name, dir_fd=folder, follow_symlinks=False)
            return (digest(folder, name) if stat.S_ISREG(found.st_mode) else OTHER), stat.S_IMODE(found.st_mode)
    except FileNotFoundError:
        return None, 0
    except Changed:
        return OTHER, 0


@contextlib.contextmanager
def parent(root: int, path: str, *, create: bool = False) -> Iterator[tuple[int, str]]:
    """Yield the open folder of a path and its last part, no link followed.

    Raises FileNotFoundError, or with `create` makes the folders; Changed when something else is in a folder's place.
    """
    parts = path.split("/")
    if not all(parts) or {".", ".."} & set(parts):
        raise Changed(path)
    with contextlib.ExitStack() as opened:
        folder = root
        for part in parts[:-1]:
            if create:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o777, dir_fd=folder)
            try:
                folder = os.open(part, FOLDER, dir_fd=folder)
            except FileNotFoundError:
                raise
            except OSError:
                raise Changed(path) from None
            opened.callback(os.close, folder)
        yield folder, parts[-1]


@contextlib.contextmanager
def opened(folder: int, name: str) -> Iterator[int]:
    """Yield a regular file, open for reading. Raises Changed when it is none."""
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except OSError:
        raise Changed(name) from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise Changed(name)
        yield descriptor
    finally:
        os.close(descriptor)


def digest(folder: int, name: str) -> str | None:
    """Return the SHA-256 of a file.

    None where there is none, OTHER where it cannot be read or is no file.
    """
    if not exists(folder, name):
        return None
    digest = hashlib.sha256()
    try:
        with opened(folder, name) as descriptor:
            for piece in pieces(descriptor):
                digest.update(piece)
    except Changed:
        return OTHER
    return digest.hexdigest()


def pieces(descriptor: int) -> Iterator[bytes]:
    while piece := os.read(descriptor, _PIECE):
        yield piece


def exists(folder: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def store(folder: int, name: str, content: bytes, mode: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(name, "wb", opener=lambda path, _: os.open(path, flags, 0o600, dir_fd=folder)) as file:
        file.write(content)
        os.fchmod(file.fileno(), mode)
