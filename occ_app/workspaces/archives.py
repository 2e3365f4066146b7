"""Zips in and out: unpacking a checked upload, and packing a folder.

Nothing in an archive is trusted: names are judged before anything is written, sizes are counted on the bytes that are
written, and files are created, never opened through existing ones.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from occ_app.errors import ArchiveError
from occ_app.workspaces.archive_checks import Checked, Entry, checked
from occ_app.workspaces.archive_content import content

_PIECE = 1 << 18

# Errors of a file that disappeared or was closed while its folder was read, or that is too deep.
_OUT_OF_REACH = (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP)


@dataclass(frozen=True)
class Limits:
    """Sizes in bytes, counted on the output.

    `trusted`: configuration that runs programs is accepted.
    """

    unpacked_bytes: int
    files: int
    trusted: bool = False


@dataclass(frozen=True)
class Unpacked:
    """The result for one archive, written or only checked.

    It has the regular files, their bytes, and the entries left out with the reasons. `stripped` names the single top
    folder that was left out of all paths.
    """

    files: int
    bytes: int
    skipped: tuple[dict[str, str], ...]
    stripped: str | None = None


def unpack(archive: Path, target: Path | None, limits: Limits, *, strip_root: bool = False) -> Unpacked:
    """Check `archive` in full and write it below `target`, a new folder.

    Without a target, only check it. With `strip_root` a single top folder that holds all else is left out of every
    path. Raises ArchiveError with a ZIP_ code; the caller removes the files written until then.
    """
    try:
        with archive.open("rb") as file, zipfile.ZipFile(file) as zipped:
            content = checked(file, zipped, limits.files, trusted=limits.trusted, strip_root=strip_root)
            return _write(file.fileno(), content, target, limits)
    except ArchiveError:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, struct.error, ValueError, UnicodeError) as error:
        raise ArchiveError("ZIP_CORRUPT", f"The zip cannot be read ({error}); make it again and upload it.") from None
    except (NotImplementedError, RuntimeError) as error:
        raise ArchiveError("ZIP_UNSUPPORTED", f"The zip uses a feature that OCC does not support ({error}).") from None


def _write(descriptor: int, content: Checked, target: Path | None, limits: Limits) -> Unpacked:
    files = written = 0
    folders: set[str] = set()
    links: list[tuple[str, str]] = []
    for entry in content.entries:
        destination = None if target is None or entry.skip is not None else f"{target}/{entry.path}"
        if destination is not None:
            folder = destination if entry.folder else destination.rpartition("/")[0]
            if folder not in folders:
                Path(folder).mkdir(mode=0o700, parents=True, exist_ok=True)
                folders.add(folder)
        if entry.link is not None and destination is not None:
            links.append((entry.link, destination))
        if entry.folder or entry.link is not None:
            continue
        written += _write_file(descriptor, entry, destination, limits.unpacked_bytes - written)
        files += entry.skip is None
    for link, destination in links:  # after all files, so that none is written through one
        os.symlink(link, destination)
    skipped = tuple({"path": entry.path, "reason": entry.skip} for entry in content.entries if entry.skip is not None)
    return Unpacked(files, written, skipped, content.stripped)


def _write_file(descriptor: int, entry: Entry, destination: str | None, room: int) -> int:
    """Write one file, or only count it; returns its bytes."""
    written = 0
    output: int | None = None
    if destination is not None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        output = os.open(destination, flags, 0o700 if entry.executable else 0o600)
    try:
        for piece in content(descriptor, entry.info, entry.end):
            written += len(piece)
            if written > room:
                raise ArchiveError(
                    "ZIP_BOMB",
                    "The zip unpacks to more than OCC_MAX_UNPACKED_BYTES (on a hub OCC_HUB_MAX_UNPACKED_BYTES) allows.",
                )
            if output is not None:
                _write_all(output, piece)
    finally:
        if output is not None:
            os.close(output)
    return written


def _write_all(descriptor: int, piece: bytes) -> None:
    if not piece:
        return
    written = os.write(descriptor, piece)
    while written < len(piece):  # the disk was about to be full; now it says so, or there is room again
        written += os.write(descriptor, piece[written:])


def pack(folder: Path, output: IO[bytes], paths: Iterable[Path] | None = None) -> Iterator[int]:
    """Write a folder, or `paths` below it, to a zip.

    Yields the bytes of each file once it is written. Links are stored as links and never followed: their targets are
    not the workspace's.
    """
    with zipfile.ZipFile(output, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as zipped:
        for path in below(folder) if paths is None else paths:
            yield _pack_one(zipped, path, _readable(path.relative_to(folder).as_posix()))


def _readable(name: str) -> str:
    """Return the name of a file in UTF-8 for a zip; on Linux it is bytes."""
    return os.fsencode(name).decode(errors="replace")


def below(folder: Path) -> list[Path]:
    """Return all paths below a folder, in order.

    Links are not followed; a path that disappears meanwhile is no error.
    """
    return sorted(
        Path(parent, name) for parent, folders, files in os.walk(folder) for name in itertools.chain(folders, files)
    )


def _pack_one(zipped: zipfile.ZipFile, path: Path, name: str) -> int:
    """Add a file, a folder or a link, and nothing of another kind.

    Returns the bytes of a file.
    """
    try:
        kind = stat.S_IFMT(path.lstat().st_mode)
        if kind == stat.S_IFLNK:
            link = zipfile.ZipInfo(name)
            link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
            zipped.writestr(link, os.fsencode(os.readlink(path)))
        if kind not in (stat.S_IFREG, stat.S_IFDIR):
            return 0
        # Times before 1980 do not fit into a zip.
        info = zipfile.ZipInfo.from_file(path, name, strict_timestamps=False)
        if info.is_dir():
            zipped.writestr(info, b"")
            return 0
        info.compress_type = zipfile.ZIP_DEFLATED
        with path.open("rb") as source, zipped.open(info, "w", force_zip64=info.file_size > 1 << 31) as sink:
            while piece := source.read(_PIECE):
                sink.write(piece)
        return info.file_size
    except OSError as error:
        if error.errno not in _OUT_OF_REACH:
            raise
        return 0  # the rest is still worth having
