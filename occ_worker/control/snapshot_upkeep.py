"""Keeping an agent's snapshots within their limits.

Objects that no row needs any more are deleted.
"""

from __future__ import annotations

import contextlib
import logging
import time

from occ_app.config.config import Config
from occ_app.database.database import Database
from occ_app.executions import changes as rows
from occ_app.home import health
from occ_app.snapshots.scan import Skipped
from occ_app.snapshots.store import Snapshots
from occ_app.workspaces import workspace as workspaces

log = logging.getLogger("occ.control")

_SECONDS = 20.0  # for one workspace
_AT_ONCE = 20  # executions whose snapshots are deleted in one step
_YOUNG_SECONDS = 3600.0  # snapshots without a workspace may belong to an upload in progress


class SnapshotUpkeep:
    """The upkeep of the snapshots of one agent."""

    def __init__(self, config: Config, db: Database, snapshots: Snapshots) -> None:
        self._config = config
        self._db = db
        self._snapshots = snapshots
        self._mark: int | None = None

    def keep(self) -> None:
        """Delete unneeded snapshots, and the oldest while all exceed the size limit.

        Does nothing while there are no new ones.
        """
        mark = rows.newest(self._db)
        orphans = self._remove_orphans({workspace.generation for workspace in workspaces.listing(self._db)})
        if mark == self._mark and not orphans:
            return
        grown = self._mark is not None and mark > self._mark
        self._mark = mark
        used = self._snapshots.used_bytes()
        if not grown or used > self._config.snapshot_disk_bytes:
            used = self._prune()
        while used > self._config.snapshot_disk_bytes and rows.forget_oldest(self._db, _AT_ONCE):
            used = self._prune()
        self._mark = rows.newest(self._db)
        health.note_snapshots(self._db, used)

    def _remove_orphans(self, kept: set[int]) -> int:
        """Delete the snapshots of removed workspaces; return how many workspaces."""
        removed = 0
        for generation in self._snapshots.generations():
            with contextlib.suppress(FileNotFoundError):
                age = time.time() - self._snapshots.directory(generation).stat().st_mtime
                if generation not in kept and age > _YOUNG_SECONDS:
                    self._snapshots.remove(generation)
                    removed += 1
        return removed

    def _prune(self) -> int:
        """Delete the objects that no row needs, and return the remaining bytes."""
        kept = rows.kept_trees(self._db)
        for generation in self._snapshots.generations():
            try:
                if generation in kept:
                    self._snapshots.prune(generation, kept[generation], _SECONDS)
            except (Skipped, OSError) as error:
                log.warning("the snapshots of workspace number %d are not pruned: %s", generation, error)
        return self._snapshots.used_bytes()
