"""Changing many files of a folder in one step, safe against kills and power cuts.

New files are staged in `.occ-pull` inside the folder, then a journal is stored there, then each file is put in place.
`recover` finishes the steps of a journal that it finds, or undoes them when a file was edited meanwhile. Every folder
on the way to a file is opened without following links, and the folder cannot be left.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from occ_app import errors
from occ_app.cli import tree_exchange, tree_files
from occ_app.cli.gitignore import PULL_FOLDER
from occ_app.cli.tree_files import Changed
from occ_app.system import kernel

WORK = PULL_FOLDER
_JOURNAL = "journal"


@dataclass(frozen=True)
class Step:
    """One file to write or remove. `before` and `after` are SHA-256, None for no file.

    `inode` is that of the staged file, by which a step that was done differs from one that was not.
    """

    path: str
    before: str | None
    after: str | None
    inode: int | None


class TreeUpdate:
    """A change of a folder, as a context manager.

    `write` and `remove` stage it, `commit` carries it out.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(self._root, fcntl.LOCK_EX)
            self.recovered = _recover(self._root)
            with contextlib.suppress(FileExistsError):
                os.mkdir(WORK, 0o700, dir_fd=self._root)
            self._work = os.open(WORK, tree_files.FOLDER, dir_fd=self._root)
            tree_files.store(self._work, ".gitignore", b"*\n", 0o600)
        except BaseException:
            os.close(self._root)
            raise
        self._steps = list[Step]()

    def __enter__(self) -> TreeUpdate:
        return self

    def __exit__(self, *_: object) -> None:
        if not tree_files.exists(self._work, _JOURNAL):  # otherwise the next call finishes or undoes it
            _remove_work(self._root)
        os.close(self._work)
        os.close(self._root)

    def look(self, path: str) -> tuple[str | None, int]:
        """Return the SHA-256 and the mode of the file at a path.

        None where there is none, OTHER for another kind.
        """
        return tree_files.look(self._root, path)

    def read(self, path: str) -> bytes:
        """Return the content of a file. Raises Changed when it is none."""
        with tree_files.parent(self._root, path) as (folder, name), tree_files.opened(folder, name) as descriptor:
            return b"".join(tree_files.pieces(descriptor))

    def obstacle(self, path: str) -> str | None:
        """Return why a file cannot be put at a path; None if it can.

        A link or a file is on the way, or a permission is missing.
        """
        folder, name = self._root, ""
        with contextlib.ExitStack() as opened:
            for name in path.split("/")[:-1]:
                try:
                    folder = os.open(name, tree_files.FOLDER, dir_fd=folder)
                except FileNotFoundError:
                    break
                except OSError:
                    return "a link or a file takes the place of its folder"
                opened.callback(os.close, folder)
            if os.fstat(folder).st_dev != os.fstat(self._root).st_dev:
                return "its folder is on another file system"
            if not os.access(".", os.W_OK | os.X_OK, dir_fd=folder):
                return "its folder is read-only"
        return None

    def write(self, path: str, before: str | None, content: bytes, mode: int) -> None:
        """Stage a file that replaces the one whose SHA-256 is `before`, or that is new."""
        number = str(len(self._steps))
        tree_files.store(self._work, number, content, mode)
        inode = os.stat(number, dir_fd=self._work, follow_symlinks=False).st_ino
        self._steps.append(Step(path, before, hashlib.sha256(content).hexdigest(), inode))

    def remove(self, path: str, before: str) -> None:
        """Stage the removal of the file whose SHA-256 is `before`."""
        self._steps.append(Step(path, before, None, None))

    def commit(self) -> None:
        """Carry out all staged changes, or none.

        Raises NotWritten when a file was edited meanwhile.
        """
        if not self._steps:
            return
        kernel.sync_filesystem(self.folder)
        journal = json.dumps([dataclasses.asdict(step) for step in self._steps]).encode()
        tree_files.store(self._work, ".journal", journal, 0o600)
        os.rename(".journal", _JOURNAL, src_dir_fd=self._work, dst_dir_fd=self._work)
        os.fsync(self._work)
        try:
            _do(self._root, self._work, self._steps)
        except (Changed, OSError) as error:
            _undo(self._root, self._work, self._steps)
            os.unlink(_JOURNAL, dir_fd=self._work)
            raise errors.NotWritten(f"{self.folder}: {_reason(error)}; nothing was written.") from None
        _finish(self._root, self._work, self._steps)


def recover(folder: Path) -> str | None:
    """Finish or undo an update of a folder that was cut short.

    Returns a sentence when there was one. Raises NotWritten when a person's edits forbid both.
    """
    if not os.path.lexists(folder / WORK):
        return None
    root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(root, fcntl.LOCK_EX)
        return _recover(root)
    finally:
        os.close(root)


def _recover(root: int) -> str | None:
    try:
        work = os.open(WORK, tree_files.FOLDER, dir_fd=root)
    except FileNotFoundError:
        return None
    except OSError:
        raise errors.NotWritten(f"{WORK} is in the way: OCC did not create it; move it away.") from None
    try:
        try:
            with tree_files.opened(work, _JOURNAL) as descriptor:
                steps = [Step(**entry) for entry in json.loads(b"".join(tree_files.pieces(descriptor)))]
        except Changed:
            steps = []
        if steps:
            try:
                _do(root, work, steps)
                _finish(root, work, steps)
                sentence = "An earlier pull into this folder was cut short; it is finished now."
            except (Changed, OSError):
                _undo(root, work, steps)
                os.unlink(_JOURNAL, dir_fd=work)
                sentence = "An earlier pull into this folder was cut short; it is undone, since files changed since."
    finally:
        os.close(work)
    _remove_work(root)
    return sentence if steps else None


def _do(root: int, work: int, steps: list[Step]) -> None:
    """Carry out the steps that are not done.

    Raises Changed and OSError; some steps may be done then.
    """
    for number, step in enumerate(steps):
        if not _is_done(root, work, number, step):
            _do_one(root, work, number, step)


def _do_one(root: int, work: int, number: int, step: Step) -> None:
    new, old = str(number), f"old-{number}"
    with tree_files.parent(root, step.path, create=step.after is not None) as (folder, name):
        if step.after is None:
            if tree_files.digest(folder, name) != step.before:
                raise Changed(step.path)
            os.rename(name, old, src_dir_fd=folder, dst_dir_fd=work)
            if tree_files.digest(work, old) != step.before:
                os.rename(old, name, src_dir_fd=work, dst_dir_fd=folder)
                raise Changed(step.path)
        elif step.before is None:
            tree_exchange.place(work, new, folder, name, step.path)
        else:
            if tree_files.digest(folder, name) != step.before:
                raise Changed(step.path)
            tree_exchange.exchange(work, new, folder, name)
            if tree_files.digest(work, new) != step.before:
                tree_exchange.exchange(work, new, folder, name)
                raise Changed(step.path)


def _is_done(root: int, work: int, number: int, step: Step) -> bool:
    new = str(number)
    if step.after is None:
        return tree_files.exists(work, f"old-{number}")
    if step.before is not None:
        _settle(root, work, new, step.path)
        return os.stat(new, dir_fd=work, follow_symlinks=False).st_ino != step.inode
    if not tree_files.exists(work, new):
        return True
    with contextlib.suppress(Changed, FileNotFoundError), tree_files.parent(root, step.path) as (folder, name):
        if tree_files.exists(folder, name) and os.stat(name, dir_fd=folder, follow_symlinks=False).st_ino == step.inode:
            os.unlink(new, dir_fd=work)  # linked, and not yet removed from the staging folder
            return True
    return False


def _undo(root: int, work: int, steps: list[Step]) -> None:
    """Undo the steps that are done.

    Raises NotWritten for files that were edited since.
    """
    edited = []
    for number, step in enumerate(steps):
        if not _is_done(root, work, number, step):
            continue
        try:
            with tree_files.parent(root, step.path, create=step.after is None) as (folder, name):
                if step.after is None:
                    tree_exchange.place(work, f"old-{number}", folder, name, step.path)
                elif tree_files.digest(folder, name) != step.after:
                    edited.append(step.path)
                elif step.before is None:
                    os.rename(name, str(number), src_dir_fd=folder, dst_dir_fd=work)
                else:
                    tree_exchange.exchange(work, str(number), folder, name)
        except Changed:
            edited.append(step.path)
    if edited:
        raise errors.NotWritten(
            f"A pull into this folder was cut short and can be neither finished nor undone, since these files were"
            f" edited meanwhile: {', '.join(edited)}. Their former versions are in {WORK}; move it away."
        )


def _finish(root: int, work: int, steps: list[Step]) -> None:
    kernel.sync_filesystem(Path(f"/proc/self/fd/{root}"))
    os.unlink(_JOURNAL, dir_fd=work)
    os.fsync(work)
    for step in steps:
        parts = step.path.split("/")[:-1]
        while step.after is None and parts:  # as git does, folders go with their last file
            with (
                contextlib.suppress(Changed, FileNotFoundError),
                tree_files.parent(root, "/".join(parts)) as (folder, name),
            ):
                try:
                    os.rmdir(name, dir_fd=folder)
                except OSError:
                    break
            parts.pop()


def _settle(root: int, work: int, staged: str, path: str) -> None:
    """Finish or undo an exchange in three steps that was cut short."""
    aside = f"aside-{staged}"
    if not tree_files.exists(work, aside):
        return
    if tree_files.exists(work, staged):
        with tree_files.parent(root, path, create=True) as (folder, name):
            tree_exchange.place(work, aside, folder, name, path)
    else:
        os.rename(aside, staged, src_dir_fd=work, dst_dir_fd=work)


def _remove_work(root: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(WORK, dir_fd=root)


def _reason(error: Changed | OSError) -> str:
    if isinstance(error, Changed):
        return f"{error} changed while it was read"
    return (error.strerror or str(error)).lower()
