"""The snapshots of all workspaces of a home.

Each workspace has a git directory under its number.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from occ_app.config.config import Config
from occ_app.snapshots import git as programs
from occ_app.snapshots import index as indexes
from occ_app.snapshots.changes import Change, compare
from occ_app.snapshots.git import Git
from occ_app.snapshots.objects import Objects
from occ_app.snapshots.scan import Limits, Scan, Skipped
from occ_app.system.kernel import give_back_memory
from occ_app.system.process_identity import boot_id

NO_GIT, TOO_SLOW = "no git", "too slow"
_INDEX, _PREPARED = "occ-index.json", "occ-prepared-{}.json"
_LOCK_PAUSE_SECONDS = 0.02
_MANY_FILES = 20_000  # whose names and times take memory that is returned at once
_LEFT_OVER_SECONDS = 3600.0  # age of a temporary file that nobody writes any more


@dataclass(frozen=True)
class Taken:
    """A snapshot: the id of its tree.

    `complete` is False when something could not be read.
    """

    tree: str
    complete: bool


@dataclass(frozen=True)
class Snapshots:
    """The snapshots below `folder`.

    git is looked for on `search_path` at each use.
    """

    folder: Path
    search_path: str
    limits: Limits

    @property
    def available(self) -> bool:
        """Whether there is a git, without which no snapshot is taken."""
        return programs.find(self.search_path) is not None

    def take(
        self,
        generation: int,
        workspace: Path,
        seconds: float,
        *,
        of_run: bool = False,
        prepared: str | None = None,
        interrupt: Callable[[], None] = lambda: None,
    ) -> Taken:
        """Record the files of a workspace.

        With `of_run` the ignore files count as in the latest snapshot: that of the run's start. With `prepared`, a
        name, it is the latest one only once it is adopted. `interrupt` is called often, and may raise to give up.
        Raises Skipped with a reason, and OSError when it cannot be written.
        """
        if not self.available:
            raise Skipped(NO_GIT)
        directory, deadline = self.directory(generation), time.monotonic() + seconds

        def check() -> None:
            interrupt()
            if time.monotonic() > deadline:
                raise Skipped(TOO_SLOW)

        programs.make_directory(directory)
        with _locked(directory, check):
            known = indexes.load(directory / _INDEX, boot_id())
            objects = Objects(directory / "objects", trusted=known.tree is not None)
            scan = Scan(objects, known, self.limits, check, frozen=of_run and known.tree is not None)
            try:
                found = scan.run(workspace)
            except FileNotFoundError:
                raise Skipped("gone") from None
            if scan.changed or prepared:
                indexes.save(directory / (_PREPARED.format(prepared) if prepared else _INDEX), found, boot_id())
        assert found.tree is not None  # noqa: S101 - a scan sets it
        taken = Taken(found.tree, scan.complete)
        if scan.files > _MANY_FILES:
            del known, found, scan
            give_back_memory()
        return taken

    def prepare(self, generation: int, folder: Path, name: str, seconds: float = 20.0) -> str | None:
        """Record a folder that is to become the workspace of this number.

        Returns the tree, None when there is none.
        """
        with contextlib.suppress(Skipped, OSError):
            return self.take(generation, folder, seconds, prepared=name).tree
        return None

    def adopt(self, generation: int, name: str) -> None:
        """Make a prepared snapshot the latest, now that its folder is the workspace."""
        directory = self.directory(generation)
        with contextlib.suppress(OSError), _locked(directory, lambda: None):
            os.replace(directory / _PREPARED.format(name), directory / _INDEX)

    def current(self, generation: int, workspace: Path, seconds: float = 60.0) -> str | None:
        """Return the id of the tree that a workspace has now.

        None when there is no snapshot of it.
        """
        try:
            return self.take(generation, workspace, seconds).tree
        except (Skipped, OSError):
            return None

    def changes(self, generation: int, base: str, result: str) -> list[Change]:
        """Return the files that differ between two snapshots.

        Raises TooSlow, MissingObject, and Skipped without git.
        """
        return compare(self.git(generation), self.objects(generation), base, result)

    def git(self, generation: int) -> Git:
        """Return the git of a workspace. Raises Skipped when there is none."""
        path = programs.find(self.search_path)
        if path is None:
            raise Skipped(NO_GIT)
        return Git(path, self.directory(generation))

    def objects(self, generation: int) -> Objects:
        return Objects(self.directory(generation) / "objects")

    def directory(self, generation: int) -> Path:
        return self.folder / f"{generation}.git"

    def remove(self, generation: int) -> None:
        """Delete all snapshots of a workspace."""
        shutil.rmtree(self.directory(generation), ignore_errors=True)

    def generations(self) -> list[int]:
        """Return the numbers of the workspaces that have snapshots."""
        names = (path.name.removesuffix(".git") for path in self.folder.glob("*.git"))
        return sorted(int(name) for name in names if name.isdigit())

    def used_bytes(self) -> int:
        """Return the bytes that all snapshots take on the disk."""
        return sum(_size(path) for generation in self.generations() for _, path in self.objects(generation).all())

    def prune(self, generation: int, kept: Collection[str], seconds: float) -> None:
        """Delete the objects of all snapshots but the latest and `kept`.

        Raises Skipped when it takes longer than `seconds`.
        """
        directory, deadline = self.directory(generation), time.monotonic() + seconds

        def check() -> None:
            if time.monotonic() > deadline:
                raise Skipped(TOO_SLOW)

        with _locked(directory, check):
            objects = self.objects(generation)
            latest = indexes.load(directory / _INDEX, boot_id()).tree
            reachable = objects.reachable({*kept, *([] if latest is None else [latest])}, check)
            for oid, path in objects.all():
                check()
                if oid not in reachable:
                    path.unlink(missing_ok=True)
            for path in objects.temporary():
                with contextlib.suppress(FileNotFoundError):
                    if time.time() - path.stat().st_mtime > _LEFT_OVER_SECONDS:
                        path.unlink()


def snapshots_of(config: Config) -> Snapshots:
    """Return the snapshots of an agent."""
    limits = Limits(config.snapshot_max_files, config.snapshot_max_bytes)
    return Snapshots(config.snapshots, config.cli_environment.get("PATH", os.defpath), limits)


def _size(path: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_blocks * 512
    return 0


@contextlib.contextmanager
def _locked(directory: Path, check: Callable[[], None]) -> Iterator[None]:
    """Lock a git directory for this block.

    The kernel frees the lock of a killed process.
    """
    descriptor = os.open(directory / "occ.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                check()
                time.sleep(_LOCK_PAUSE_SECONDS)  # a lock cannot be waited for with a limit
        yield
    finally:
        os.close(descriptor)
