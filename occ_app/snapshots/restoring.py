"""Restoring files of a workspace from one snapshot to another, all or none.

Unrecorded files are never touched. First everything is checked. Then the new files are written into one folder of the
workspace, and only then are files removed and put in place, each in one step. After a kill, another call does the
rest.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from occ_app.snapshots.changes import Change
from occ_app.snapshots.objects import FOLDER_MODE, LINK_MODE, PROGRAM_MODE, Objects, blob_id, blob_id_of
from occ_app.snapshots.scan import git_mode
from occ_app.system.kernel import sync_filesystem

_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)

# mode and id of a file or a link; None where there is none
Content = tuple[int, str] | None
_FOLDER: Content = (FOLDER_MODE, "")
_OTHER: Content = (0, "")


@dataclass(frozen=True)
class Step:
    """One path to bring from the content that it has now to the one it is to have."""

    path: bytes
    now: Content
    target: Content

    def reversed(self) -> Step:
        return Step(self.path, self.target, self.now)


@dataclass(frozen=True)
class Plan:
    """The steps to take, and the paths that do not match either snapshot."""

    steps: list[Step]
    conflicts: list[bytes]


def plan(objects: Objects, base: str, changes: Iterable[Change]) -> Plan:
    """Plan the changes of a workspace that has the files of the snapshot `base`.

    Raises MissingObject.
    """
    steps, conflicts = list[Step](), list[bytes]()
    for path, (before, after) in sorted(_sides(changes).items()):
        entry = objects.entry(base, path)
        folder = entry is not None and entry.folder
        now = None if entry is None or folder else (entry.mode, entry.oid)
        if now == after and not folder:
            continue
        if now != before:
            conflicts.append(path)
        if now != after:
            steps.append(Step(path, now, after))
    return Plan(steps, conflicts)


def obstacles(root: Path, steps: Sequence[Step]) -> list[bytes]:
    """Return the paths that cannot be brought to their target.

    An entry that the base does not have is in the way, or the file changed since the base was taken.
    """
    removed = {step.path for step in steps if step.now is not None and step.target is None}
    return [step.path for step in steps if not _is_clear(root, step, removed)]


def apply(root: Path, objects: Objects, steps: Iterable[Step], staging: str) -> None:
    """Take the steps whose file still is as the step expects it.

    `staging` names a folder of the workspace for new files. Raises OSError and MissingObject; another call does the
    rest.
    """
    steps = [step for step in steps if _content(root, step.path) in (step.now, _FOLDER)]
    folder = root / staging
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(mode=0o700)
        for number, step in enumerate(steps):
            if step.target is not None:
                _write(folder / str(number), objects, *step.target)
        sync_filesystem(root)
        for step in steps:
            if step.target is None:
                _remove(root, step.path)
        for number, step in enumerate(steps):
            if step.target is not None:
                _place(root, step.path, folder / str(number))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    sync_filesystem(root)


def _is_clear(root: Path, step: Step, removed: Collection[bytes]) -> bool:
    current = _content(root, step.path)
    if step.now is not None:
        return current == step.now
    if current == _FOLDER:  # it must hold nothing but files that other steps remove
        below = os.fsencode(root / os.fsdecode(step.path))
        files = (os.path.join(parent, name) for parent, _, names in os.walk(below) for name in names)
        return all(os.path.relpath(file, os.fsencode(root)) in removed for file in files)
    parents = [step.path[:index] for index, byte in enumerate(step.path) if byte == 0x2F]
    return current is None and all(parent in removed or _content(root, parent) in (None, _FOLDER) for parent in parents)


def _content(root: Path, path: bytes) -> Content:
    """Return the content of a workspace at a path; no link leads to it."""
    *folders, name = path.split(b"/")
    try:
        with _opened(root, folders) as parent:
            status = os.stat(name, dir_fd=parent, follow_symlinks=False)
            mode = git_mode(status.st_mode)
            if mode == LINK_MODE:
                return mode, blob_id_of(os.readlink(name, dir_fd=parent))
            if mode is None:
                return _FOLDER if stat.S_ISDIR(status.st_mode) else _OTHER
            descriptor = os.open(name, _FLAGS, dir_fd=parent)
            try:
                return mode, blob_id(descriptor, os.fstat(descriptor).st_size)
            finally:
                os.close(descriptor)
    except OSError as error:
        return None if error.errno in _ABSENT else _OTHER


def _write(target: Path, objects: Objects, mode: int, oid: str) -> None:
    """Write a file or a link of a snapshot, which is executable if its mode says so."""
    if mode == LINK_MODE:
        os.symlink(objects.blob(oid), os.fsencode(target))
        return
    _, content = objects.open(oid, "blob")
    with target.open("xb") as output:
        for piece in content:
            output.write(piece)
    target.chmod(0o700 if mode == PROGRAM_MODE else 0o600)


def _remove(root: Path, path: bytes) -> None:
    """Remove a file, and the folders that are empty then."""
    *folders, name = path.split(b"/")
    with contextlib.suppress(FileNotFoundError), _opened(root, folders) as parent:
        os.unlink(name, dir_fd=parent)
    while folders:
        *folders, name = folders
        try:
            with _opened(root, folders) as parent:
                os.rmdir(name, dir_fd=parent)
        except OSError:
            return


def _place(root: Path, path: bytes, source: Path) -> None:
    """Put a new file in its place.

    It gets the permissions of the former file or of its folder.
    """
    *folders, name = path.split(b"/")
    with _opened(root, folders, make=True) as parent:
        former = _status(parent, name)
        if former is not None and stat.S_ISDIR(former.st_mode):
            _remove_empty(root / os.fsdecode(path))
            former = None
        if not source.is_symlink():
            regular = former is not None and stat.S_ISREG(former.st_mode)
            mode = former.st_mode if regular and former is not None else os.fstat(parent).st_mode
            mode &= 0o666
            source.chmod(mode | (mode & 0o444) >> 2 if source.stat().st_mode & 0o100 else mode)
        os.rename(source, name, dst_dir_fd=parent)


def _remove_empty(folder: Path) -> None:
    for parent, _, _ in os.walk(folder, topdown=False):
        os.rmdir(parent)


def _status(parent: int, name: bytes) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return None


@contextlib.contextmanager
def _opened(root: Path, folders: Sequence[bytes], *, make: bool = False) -> Iterator[int]:
    """Open a folder of a workspace step by step, never through a link.

    `make` creates missing folders.
    """
    with contextlib.ExitStack() as opened:
        descriptor = os.open(root, _FLAGS | os.O_DIRECTORY)
        opened.callback(os.close, descriptor)
        for folder in folders:
            if make:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(folder, os.fstat(descriptor).st_mode & 0o777, dir_fd=descriptor)
            descriptor = os.open(folder, _FLAGS | os.O_DIRECTORY, dir_fd=descriptor)
            opened.callback(os.close, descriptor)
        yield descriptor


def _sides(changes: Iterable[Change]) -> Mapping[bytes, tuple[Content, Content]]:
    """Return the content before and after by path.

    A rename is a removal and an addition.
    """
    sides: dict[bytes, tuple[Content, Content]] = {}
    for change in changes:
        before, after = _content_of(change.old_mode, change.old_oid), _content_of(change.mode, change.oid)
        if change.old_path is None:
            sides[change.path] = before, after
        else:
            sides[change.old_path] = before, None
            sides[change.path] = None, after
    return sides


def _content_of(mode: str | None, oid: str | None) -> Content:
    return None if mode is None or oid is None else (int(mode, 8), oid)
