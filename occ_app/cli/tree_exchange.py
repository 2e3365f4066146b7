"""One step of an update of a folder: replacing a file by a staged one."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from occ_app.cli import tree_files
from occ_app.cli.tree_files import Changed
from occ_app.system import kernel

_UNABLE = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


def place(work: int, staged: str, folder: int, name: str, path: str) -> None:
    """Move a staged file to a name that is free. Raises Changed when it is not."""
    try:
        os.link(staged, name, src_dir_fd=work, dst_dir_fd=folder, follow_symlinks=False)
    except FileExistsError:
        raise Changed(path) from None
    except PermissionError:  # a file system without hard links
        if tree_files.exists(folder, name):
            raise Changed(path) from None
        os.rename(staged, name, src_dir_fd=work, dst_dir_fd=folder)
        return
    os.unlink(staged, dir_fd=work)


def exchange(work: int, staged: str, folder: int, name: str) -> None:
    """Exchange a staged file with the one of this name.

    Takes three steps with a file system that cannot exchange.
    """
    try:
        kernel.exchange(Path(f"/proc/self/fd/{work}/{staged}"), Path(f"/proc/self/fd/{folder}/{name}"))
    except OSError as error:
        if error.errno not in _UNABLE:
            raise
    else:
        return
    # In three steps, of which the next update of the folder finishes or undoes those that a kill cut short.
    aside = f"aside-{staged}"
    os.rename(name, aside, src_dir_fd=folder, dst_dir_fd=work)
    os.rename(staged, name, src_dir_fd=work, dst_dir_fd=folder)
    os.rename(aside, staged, src_dir_fd=work, dst_dir_fd=work)
