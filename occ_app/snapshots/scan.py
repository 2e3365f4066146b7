"""Reading a workspace into a tree.

The tree has every file and link that no ignore file names, and nothing outside of the workspace. No link is followed,
only regular files are opened, and no process is started. A nested repository is recorded as the files it holds; an
entry called `.git`, in any case, is left out.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from occ_app.snapshots.index import FileState, Folder, Index, as_bytes, as_text
from occ_app.snapshots.objects import (
    FILE_MODE,
    FOLDER_MODE,
    LINK_MODE,
    PROGRAM_MODE,
    ChangedFile,
    Objects,
    TreeEntry,
)
from occ_app.system.ignore_patterns import Rules, ignored

IGNORE_FILE = ".gitignore"
_DEEPEST = 100
_MAX_IGNORE_BYTES = 1 << 16  # more patterns than any file needs, and each takes time
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_SETTLED_NS, _COARSE_NS = 100_000_000, 2_000_000_000  # beyond the step of a file system's clock
_READ_AGAIN = 3
_GONE = (errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.ENXIO)


class Skipped(Exception):
    """Raised when there is no snapshot; the message is the reason, as records show it."""


@dataclass(frozen=True)
class Limits:
    """The files and bytes that a workspace may have."""

    files: int
    bytes: int


class Scan:
    """One reading of a workspace.

    `check` is called often, and may raise to end it. With `frozen` the ignore files count as in `known`, except those
    of folders that it does not have.
    """

    def __init__(
        self, objects: Objects, known: Index, limits: Limits, check: Callable[[], None], *, frozen: bool = False
    ) -> None:
        self._objects = objects
        self._known = known
        self._limits = limits
        self._check = check
        self._frozen = frozen
        self.files = self._bytes = 0
        self._folders = dict[str, Folder]()
        self.complete = True  # False: something could not be read
        self.changed = False  # whether the index differs from the known one

    def run(self, root: Path) -> Index:
        """Read the workspace.

        Raises Skipped with the reason, FileNotFoundError when it does not exist.
        """
        descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            exclude = self._known.exclude if self._frozen else _exclude_of(descriptor)
            self.changed = exclude != self._known.exclude
            rules = [Rules.of(as_bytes(exclude), b"")]
            tree = self._folder(descriptor, "", rules, alike=not self.changed, depth=0)
        finally:
            os.close(descriptor)
        self.changed = self.changed or self._folders.keys() != self._known.folders.keys() or tree != self._known.tree
        return Index(tree or self._objects.put("tree", b""), exclude, self._folders)

    def _folder(self, descriptor: int, path: str, rules: Sequence[Rules], *, alike: bool, depth: int) -> str | None:
        """Read one folder; returns the id of its tree, None when it is empty.

        `alike`: the rules of all folders above are those of the known index, so no file of it needs to be matched.
        """
        if depth > _DEEPEST:
            raise Skipped("too deep")
        known = self._known.folders.get(path)
        entries = list(os.scandir(descriptor))
        ignore = self._ignore_of(descriptor, known, entries)
        base = os.fsencode(path + "/") if path else b""
        rules = [*rules, Rules.of(as_bytes(ignore), base)] if ignore else rules
        alike = alike and known is not None and known.ignore == ignore
        own = self._folders[path] = Folder(ignore)
        content = list[TreeEntry]()
        for entry in entries:
            self._check()
            name = entry.name
            if name.lower() == ".git":
                continue
            below = f"{path}/{name}" if path else name
            if entry.is_dir(follow_symlinks=False):
                if (alike and below in self._known.folders) or not ignored(rules, os.fsencode(below), folder=True):
                    tree = self._subfolder(descriptor, name, below, rules, alike=alike, depth=depth + 1)
                    if tree is not None:
                        content.append(TreeEntry(FOLDER_MODE, os.fsencode(name), tree))
            elif (known is not None and alike and name in known.files) or not ignored(
                rules, os.fsencode(below), folder=False
            ):
                state = self._file(descriptor, entry, known.files.get(name) if known else None)
                if state is not None:
                    own.files[name] = state
                    content.append(TreeEntry(state[0], os.fsencode(name), state[5]))
        own.tree = self._objects.put_tree(content) if content else None
        self.changed = self.changed or known is None or known.files != own.files or known.ignore != own.ignore
        return own.tree

    def _subfolder(
        self, parent: int, name: str, path: str, rules: Sequence[Rules], *, alike: bool, depth: int
    ) -> str | None:
        try:
            descriptor = os.open(name, _OPEN | os.O_DIRECTORY, dir_fd=parent)
        except OSError as error:
            if error.errno in _GONE:
                return None
            return self._unreadable(path)
        try:
            return self._folder(descriptor, path, rules, alike=alike, depth=depth)
        finally:
            os.close(descriptor)

    def _unreadable(self, path: str) -> str | None:
        """Keep the known files of a folder that cannot be read."""
        self.complete = False
        prefix = f"{path}/"
        for name, folder in self._known.folders.items():
            if name == path or name.startswith(prefix):
                self._folders[name] = folder
        known = self._known.folders.get(path)
        return known.tree if known else None

    def _file(self, parent: int, entry: os.DirEntry[str], known: FileState | None) -> FileState | None:
        """Record a file or a link; None for any other kind, and for one that is gone."""
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            return None
        mode = git_mode(status.st_mode)
        if mode is None:
            return None
        self.files += 1
        self._bytes += status.st_size
        if self.files > self._limits.files or self._bytes > self._limits.bytes:
            raise Skipped("too large")
        state = (mode, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
        if known is not None and state == known[:5]:
            return known
        if mode == LINK_MODE:
            return (*state, self._objects.put("blob", os.fsencode(os.readlink(entry.name, dir_fd=parent))))
        try:
            return self._read(parent, entry.name)
        except OSError as error:
            if error.errno in _GONE:
                return None
            if error.errno not in (errno.EACCES, errno.EPERM):
                raise
            self.complete = False
            return None if known is None else known

    def _read(self, parent: int, name: str) -> FileState | None:
        for _ in range(_READ_AGAIN):
            self._check()
            now = time.time_ns()
            descriptor = os.open(name, _OPEN, dir_fd=parent)
            try:
                status = os.fstat(descriptor)
                mode = git_mode(status.st_mode)
                if mode not in (FILE_MODE, PROGRAM_MODE):
                    return None
                if status.st_size > self._limits.bytes:
                    raise Skipped("too large")
                with contextlib.suppress(ChangedFile):
                    oid = self._objects.put_file(descriptor, status.st_size)
                    mtime = status.st_mtime_ns if _settled(status, now) else -1  # -1: to be read again
                    return (mode, status.st_size, mtime, status.st_ctime_ns, status.st_ino, oid)
            finally:
                os.close(descriptor)
        raise Skipped("changing")

    def _ignore_of(self, descriptor: int, known: Folder | None, entries: Sequence[os.DirEntry[str]]) -> str:
        if self._frozen and known is not None:
            return known.ignore
        return _text(descriptor, IGNORE_FILE) if any(entry.name == IGNORE_FILE for entry in entries) else ""


def git_mode(mode: int) -> int | None:
    """Return the mode that git has for a file or a link; None for other kinds."""
    if stat.S_ISREG(mode):
        return PROGRAM_MODE if mode & 0o100 else FILE_MODE
    return LINK_MODE if stat.S_ISLNK(mode) else None


def _settled(status: os.stat_result, now: int) -> bool:
    """Return whether a later change will show in a file's times.

    Their clock makes steps.
    """
    newest = max(status.st_mtime_ns, status.st_ctime_ns)
    coarse = status.st_ctime_ns % 1_000_000_000 == 0
    return newest < now - (_COARSE_NS if coarse else _SETTLED_NS)


def rules_along(descriptor: int, folders: Sequence[str]) -> Iterator[Rules]:
    """Yield the rules for an entry of the innermost folder, the root's first."""
    yield Rules.of(as_bytes(_exclude_of(descriptor)), b"")
    with contextlib.ExitStack() as opened:
        base = ""
        for folder in ("", *folders):
            if folder:
                descriptor = os.open(folder, _OPEN | os.O_DIRECTORY, dir_fd=descriptor)
                opened.callback(os.close, descriptor)
                base += f"{folder}/"
            yield Rules.of(as_bytes(_text(descriptor, IGNORE_FILE)), os.fsencode(base))


def _exclude_of(root: int) -> str:
    """Return the patterns of the repository's info/exclude.

    Empty when there is none in this folder.
    """
    with contextlib.suppress(OSError), contextlib.ExitStack() as opened:
        descriptor = root
        for name in (".git", "info"):
            descriptor = os.open(name, _OPEN | os.O_DIRECTORY, dir_fd=descriptor)
            opened.callback(os.close, descriptor)
        return _text(descriptor, "exclude")
    return ""


def _text(folder: int, name: str) -> str:
    """Read a small regular file as text that `as_bytes` turns back.

    Empty when there is no such file.
    """
    try:
        descriptor = os.open(name, _OPEN, dir_fd=folder)
    except OSError:
        return ""
    try:
        status = os.fstat(descriptor)
        readable = stat.S_ISREG(status.st_mode) and status.st_size <= _MAX_IGNORE_BYTES
        return as_text(os.read(descriptor, _MAX_IGNORE_BYTES)) if readable else ""
    finally:
        os.close(descriptor)
