"""Writing the changes of an execution into a folder.

Each file is written, merged, left out or in conflict. A file is written only where the folder has it as it was before
the execution. One that was edited here meanwhile is merged in three ways; where that is impossible it is a conflict. A
path that the execution's base did not have is never overwritten or removed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from occ_app import errors
from occ_app.cli.gitignore import git_environment
from occ_app.cli.tree_files import OTHER
from occ_app.cli.tree_update import WORK, TreeUpdate
from occ_app.client.results import Entry
from occ_app.workspaces.archive_names import Name, checked_path
from occ_app.workspaces.skipped import skip_reasons

Content = Callable[[str, str], bytes]
"""Returns the content of a path at the start or the end of the execution."""

_FILE_MODES = {"100644", "100755"}


@dataclass(frozen=True)
class Operation:
    """The change of one path, from `base` to `result`.

    These are paths at the start and the end; None: no file. `local` is the path that the file has in the folder before
    a rename.
    """

    path: str
    base: str | None
    result: str | None
    base_mode: str | None
    mode: str | None
    local: str


@dataclass
class Plan:
    """The outcome for each path, with reasons.

    A path is written, removed, merged, unchanged, left out or in conflict. `results` are the run's versions of all but
    those left out: their SHA-256 and whether they are executable.
    """

    written: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    merged: list[str] = field(default_factory=list)
    same: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    conflicts: dict[str, str] = field(default_factory=dict)
    results: dict[str, tuple[str, bool] | None] = field(default_factory=dict)


class InConflict(Exception):
    """Raised with the reason why a path is not written; a Content may raise it, too."""


def plan(update: TreeUpdate, entries: Sequence[Entry], content: Content, *, trust: bool, force: bool) -> Plan:
    """Stage the changes of an execution in `update`; conflicts are not staged.

    With `force` a file that was edited here is replaced. With `trust` files that make Claude Code or git run programs
    are written, too. Raises NotWritten for paths that no execution can have changed.
    """
    planner = _Planner(update, content, Plan(), force=force)
    for operations in _operations(entries, planner.done, trust=trust):
        for operation in operations:
            try:
                planner.stage(operation)
            except InConflict as conflict:
                planner.done.conflicts[operation.path] = str(conflict)
                break  # a file that cannot be renamed stays where it is
    return planner.done


def _operations(entries: Sequence[Entry], done: Plan, *, trust: bool) -> Iterator[list[Operation]]:
    """Yield the operations for each entry; those to leave out are noted."""
    names = {path: False for entry in entries for path in (entry.path, entry.old_path) if path is not None}
    unusual = {path: reason for path in names if (reason := _unusual(path)) is not None}
    reasons = ({} if trust else skip_reasons(names)) | unusual
    for entry in entries:
        operations = []
        for operation in _split(entry):
            modes = {operation.base_mode, operation.mode} - {None}
            if operation.path in reasons:
                done.left_out[operation.path] = reasons[operation.path]
            elif not modes <= _FILE_MODES:
                done.left_out[operation.path] = "only files are written, and this is or was a link"
            else:
                operations.append(operation)
        yield operations


def _unusual(path: str) -> str | None:
    """Return why a path is left out.

    Raises NotWritten for one outside the folder, or in a git directory.
    """
    parts = path.split("/")
    if not all(parts) or {".", ".."} & set(parts) or ".git" in (part.rstrip(" .").lower() for part in parts):
        raise errors.NotWritten(f"The changes name {path[:200]!r}, which no run can change; nothing was written.")
    if "\ufffd" in path:
        return "its name is not UTF-8"
    if parts[0] == WORK:
        return "pulls use this name"
    try:
        plain = checked_path(Name(path), folder=False) == path
    except errors.ArchiveError:
        plain = False
    return None if plain else "uploads refuse such names"


def _split(entry: Entry) -> list[Operation]:
    """Return the operations for an entry.

    A rename writes one path and removes another.
    """
    path, old = entry.path, entry.old_path
    if entry.status == "renamed" and old is not None:
        write = Operation(path, old, path, entry.old_mode, entry.mode, old)
        return [write, Operation(old, old, None, entry.old_mode, None, old)]
    base = None if entry.status == "added" else path
    result = None if entry.status == "deleted" else path
    return [Operation(path, base, result, entry.old_mode, entry.mode, path)]


class _Planner:
    def __init__(self, update: TreeUpdate, content: Content, done: Plan, *, force: bool) -> None:
        self.done = done
        self._update = update
        self._content = content
        self._force = force
        self._moved = set[str]()  # old paths of renamed files, whose edits are in the new ones

    def stage(self, operation: Operation) -> None:
        """Stage an operation. Raises InConflict."""
        here, mode = self._update.look(operation.path)
        result = None if operation.result is None else self._content(operation.result, "end")
        executable = operation.mode == "100755"
        self.done.results[operation.path] = None if result is None else (digest(result), executable)
        if here == OTHER:
            raise InConflict("a link, a folder or an unreadable file has its place")
        if result is None:
            self._stage_removal(operation, here)
        else:
            self._stage_file(operation, here, mode, result)

    def _stage_file(self, operation: Operation, here: str | None, here_mode: int, result: bytes) -> None:
        path, update = operation.path, self._update
        mode = _mode(operation, here_mode if here is not None else None)
        if here == digest(result) and mode == here_mode:
            self.done.same.append(path)
            return
        self._check_writable(path)
        if here != digest(result):
            if here is not None and (operation.base is None or operation.local != path):
                raise InConflict("a file is here that the run did not have")
            if here is not None and not here_mode & stat.S_IWUSR and not self._force:
                raise InConflict("it is read-only here")
            result = self._merged(operation, result)
        update.write(path, here, result, mode)
        self.done.written.append(path)
        if operation.local != path:
            self._moved.add(operation.local)

    def _merged(self, operation: Operation, result: bytes) -> bytes:
        """Return the content to write.

        It is the run's, or one with the edits that were made here.
        """
        if operation.base is None:
            return result
        source, _ = self._update.look(operation.local)
        if self._force and source != OTHER:
            return result
        if source is None:
            raise InConflict("it was removed or renamed here")
        if source == OTHER:
            raise InConflict("a link, a folder or an unreadable file has its place")
        base = self._content(operation.base, "start")
        if source == digest(base):
            return result
        merged = merge(self._update.read(operation.local), base, result)
        if merged is None:
            raise InConflict("it was edited here, too")
        self.done.merged.append(operation.path)
        return merged

    def _stage_removal(self, operation: Operation, here: str | None) -> None:
        path = operation.path
        if here is None or operation.base is None:
            self.done.same.append(path)
            return
        self._check_writable(path)
        if path not in self._moved and not self._force and here != digest(self._content(operation.base, "start")):
            raise InConflict("it was edited here, and the run removed it")
        self._update.remove(path, here)
        self.done.removed.append(path)

    def _check_writable(self, path: str) -> None:
        obstacle = self._update.obstacle(path)
        if obstacle is not None:
            raise InConflict(obstacle)


def digest(content: bytes) -> str:
    """Return the SHA-256 of a file's content."""
    return hashlib.sha256(content).hexdigest()


def _mode(operation: Operation, here: int | None) -> int:
    """Return the mode of a file to write.

    It is that of the file here, executable if the run made it so.
    """
    executable = operation.mode == "100755"
    if here is None:
        return (0o777 if executable else 0o666) & ~_umask()
    if operation.base is not None and operation.mode == operation.base_mode:
        return here
    return here | (here & 0o444) >> 2 if executable else here & ~0o111


def _umask() -> int:
    found = os.umask(0o077)
    os.umask(found)
    return found


def merge(here: bytes, base: bytes, result: bytes) -> bytes | None:
    """Merge two edited versions of a text.

    None when both changed the same lines, or git is missing.
    """
    git = shutil.which("git")
    if git is None:
        return None
    environment = git_environment() | {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull}
    with tempfile.TemporaryDirectory(prefix="occ-merge-") as folder:
        for name, content in (("here", here), ("base", base), ("run", result)):
            Path(folder, name).write_bytes(content)
        done = subprocess.run(
            [git, "merge-file", "-p", "--diff3", "here", "base", "run"],
            cwd=folder,
            env=environment | {"GIT_CEILING_DIRECTORIES": str(Path(folder).parent)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
    return done.stdout if done.returncode == 0 else None
