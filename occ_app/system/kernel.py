"""What OCC asks of Linux beyond Python's library."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import signal
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2

OUT_OF_FILES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(parent: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel send `number` to this process when `parent` dies.

    `parent` is its parent; if that is dead already, this process exits at once. The setting survives exec. It refers
    to the parent's thread that forked, so fork from a main thread.
    """
    _libc.prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os._exit(1)


def become_subreaper() -> None:
    """From now on orphans below this process become its children."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)


def allow_many_files(limit: int = 65536) -> None:
    """Raise this process's limit on open files, at most to `limit`.

    The usual 1,024 are too few for a server.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def max_open_files() -> int:
    """Return the number of open files that connections may use.

    The rest is for the database, uploads and libraries.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 20 if soft == resource.RLIM_INFINITY else soft - max(64, soft // 4)


def sync_filesystem(path: Path) -> None:
    """Write everything below `path` to the disk.

    One call covers its whole file system. Raises OSError.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(path))
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Write creations, renames and removals in a folder to the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def exchange(one: Path, other: Path) -> None:
    """Swap two paths in one atomic step. Raises OSError."""
    if _libc.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(other))


def give_back_memory() -> None:
    """Return freed memory to the system.

    glibc keeps it for later, which for a daemon may be never.
    """
    trim = getattr(_libc, "malloc_trim", None)  # musl has none, and keeps less
    if trim is not None:
        trim(0)
