"""The names that an agent accepts in a zip, checked before the zip is made.

One bad name then refuses no upload.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from occ_app.errors import ArchiveError
from occ_app.workspaces.archive_names import Name, checked_path
from occ_app.workspaces.skipped import skip_reason


def zip_name(path: Path) -> str:
    """Return a relative path as it is named in a zip.

    Names are UTF-8 there, bytes on Linux.
    """
    return os.fsencode(path.as_posix()).decode(errors="replace")


def acceptable(folder: Path, paths: Iterable[Path], leave_out: Callable[[Path, str], object]) -> Iterator[Path]:
    """Yield the paths below `folder` whose names an agent accepts.

    `leave_out` is called with the others and the reason.
    """
    files, folders = set[str](), set[str]()
    refused = set[Path]()
    for path in paths:
        if refused.intersection(path.parents):
            continue
        name, is_folder = zip_name(path.relative_to(folder)), path.is_dir()
        key = _key(name)
        above = _above(key)
        if not _accepted(name):
            reason = "an agent refuses such names"
        elif key in files or (not is_folder and key in folders) or not files.isdisjoint(above):
            reason = "an agent takes the name for that of another file"
        else:
            (folders if is_folder else files).add(key)
            folders.update(above)
            yield path
            continue
        refused.add(path)
        leave_out(path, reason)


def _accepted(name: str) -> bool:
    try:
        checked_path(Name(name), folder=False)
    except ArchiveError:
        return False
    return True


def _key(name: str) -> str:
    """Return the key that two names share if an agent takes them for one."""
    key = unicodedata.normalize("NFC", name)
    return key if skip_reason(name) is None else key.lower()


def _above(key: str) -> list[str]:
    parts = key.split("/")
    return ["/".join(parts[:length]) for length in range(1, len(parts))]
