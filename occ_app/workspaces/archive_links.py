"""Symbolic links in a zip: which of them may be stored.

A link is stored when it names a regular file of the same archive by a relative path that passes through no other link:
`CLAUDE.md` that links to `AGENTS.md`, for example. One to a folder of the archive is left out and named. Every other
link refuses the archive.
"""

from __future__ import annotations

import posixpath
import zipfile
from collections.abc import Callable, Mapping

from occ_app.errors import ArchiveError
from occ_app.workspaces.archive_names import shown

_LONGEST_TARGET = 1024
FOLDER_LINK = "links to folders are not stored; links to files of the same zip are"
SKIPPED_TARGET = "the file that it links to is left out"


def target_of(info: zipfile.ZipInfo, name: str, content: Callable[[], bytes]) -> str:
    """Return the path that a link holds. Raises ArchiveError when it is none."""
    if info.file_size > _LONGEST_TARGET:
        raise refused(name, "is a link to a path that is too long")
    try:
        target = content().decode()
    except UnicodeDecodeError:
        raise refused(name, "is a link whose target is not UTF-8") from None
    if not target or "\0" in target or "\\" in target:
        raise refused(name, "is a link to no plain path")
    return target


def resolved(path: str, target: str, kinds: Mapping[str, bool | None]) -> str:
    """Return the path in the archive that the link `path` leads to.

    `kinds` maps every path of the archive, folders that are only implied included, to: it is a folder; None for a link.
    Raises ArchiveError when it leaves the archive, passes through a link or names nothing in the archive.
    """
    if target.startswith("/"):
        raise refused(path, "is a link out of the zip")
    place = posixpath.dirname(path)
    parts = target.split("/")
    for index, part in enumerate(parts):
        if part == "..":
            if not place:
                raise refused(path, "is a link out of the zip")
            place = posixpath.dirname(place)
        elif part not in ("", "."):
            place = posixpath.join(place, part)
        last = index == len(parts) - 1
        kind = kinds.get(place) if place else True
        if place and place not in kinds:
            raise refused(path, "is a link to nothing in the zip")
        if kind is None:
            raise refused(path, "is a link that leads to a link")
        if not kind and not last:
            raise refused(path, "is a link through a file")
    return place


def refused(name: str, fault: str) -> ArchiveError:
    remedy = "a workspace takes files, folders, and links to files of the same zip"
    return ArchiveError("ZIP_LINK", f"{shown(name)} {fault}; {remedy}.", {"path": shown(name)})
