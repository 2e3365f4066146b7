"""Exchanging a new tree with the one in its place.

It also works on file systems that cannot exchange two names in one step.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from pathlib import Path

from occ_app.system import kernel

_UNABLE = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
ASIDE = ".aside-"


def swap(staging: Path, place: Path) -> None:
    """Exchange `.incoming-NUMBER-INODE`, the new tree, with the workspace.

    INODE is the new tree's. On a file system without RENAME_EXCHANGE (some network file systems, FUSE, ZFS) this takes
    three renames, and `finish_swap` undoes those that a kill cut short. Until then the job's row is the journal: it
    has not succeeded.
    """
    try:
        kernel.exchange(staging, place)
        return
    except OSError as error:
        if error.errno not in _UNABLE:
            raise
    aside = _aside(staging)
    os.rename(place, aside)
    try:
        os.rename(staging, place)
    except OSError:
        os.rename(aside, place)
        raise
    os.rename(aside, staging)


def finish_swap(aside: Path, place: Path) -> None:
    """Restore the old tree after a killed `swap`, and remove the new one.

    The old tree is in `aside` or beside it.
    """
    staging = aside.with_name(aside.name.replace(ASIDE, ".incoming-", 1))
    if aside.stat().st_ino == int(aside.name.rpartition("-")[2]):  # it is the new tree: an upload was being undone
        if not place.exists():
            os.rename(staging, place)
        shutil.rmtree(aside, ignore_errors=True)
        return
    with contextlib.suppress(FileNotFoundError):
        os.rename(place, staging)
    os.rename(aside, place)
    shutil.rmtree(staging, ignore_errors=True)


def _aside(staging: Path) -> Path:
    return staging.with_name(staging.name.replace(".incoming-", ASIDE, 1))
