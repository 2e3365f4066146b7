"""Zips in and out: the unpacking of an upload that passed the checks, and the packing of a folder.

Nothing of an archive is believed: names are judged before anything is written, sizes are counted on the bytes that are
really written, and files are created, never opened through what was there before.
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
from occ_app.workspaces.archive_checks import Entry, checked, shown, skip_reason

_PIECE = 1 << 18
_SHORT = 1 << 16  # a file of up to so many bytes is read at once

# A local file header up to the lengths of its name and of its extra field; 4.3.7 of PKWARE's APPNOTE.TXT.
_LOCAL_HEADER = struct.Struct("<4s22xHH")


# What a file may answer that disappeared or was closed while its folder was read, or that is too deep.
_OUT_OF_REACH = (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP)


@dataclass(frozen=True)
class Limits:
    """Sizes in bytes, counted on what is written; `trusted`: what would run something is taken too."""

    unpacked_bytes: int
    files: int
    trusted: bool = False


@dataclass(frozen=True)
class Unpacked:
    """What an archive held, or would: regular files written and their bytes, and what was left out and why."""

    files: int
    bytes: int
    skipped: tuple[dict[str, str], ...]


def unpack(archive: Path, target: Path | None, limits: Limits) -> Unpacked:
    """Check `archive` in full and write it below `target`, a new folder; with no target only check it.

    Raises ArchiveError with a ZIP_ code; what was written by then is the caller's to remove.
    """
    try:
        with archive.open("rb") as file, zipfile.ZipFile(file) as zipped:
            return _write(file, zipped, checked(file, zipped, limits.files), target, limits)
    except ArchiveError:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, struct.error, ValueError, UnicodeError) as error:
        raise ArchiveError("ZIP_CORRUPT", f"The zip cannot be read ({error}); make it again and upload it.") from None
    except (NotImplementedError, RuntimeError) as error:
        raise ArchiveError("ZIP_UNSUPPORTED", f"The zip uses a feature OCC does not read ({error}).") from None


def _write(
    file: IO[bytes], zipped: zipfile.ZipFile, entries: list[Entry], target: Path | None, limits: Limits
) -> Unpacked:
    files = written = 0
    skipped = []
    made: set[str] = set()
    for entry in entries:
        reason = None if limits.trusted else skip_reason(entry.path)
        if reason is not None:
            skipped.append({"path": entry.path, "reason": reason})
        destination = None if target is None or reason is not None else f"{target}/{entry.path}"
        if destination is not None:
            folder = destination if entry.folder else destination.rpartition("/")[0]
            if folder not in made:
                Path(folder).mkdir(mode=0o700, parents=True, exist_ok=True)
                made.add(folder)
        if entry.folder:
            continue
        room = limits.unpacked_bytes - written
        written += _write_file(_pieces(file, zipped, entry), entry, destination, room)
        files += destination is not None or (target is None and reason is None)
    return Unpacked(files, written, tuple(skipped))


def _pieces(file: IO[bytes], zipped: zipfile.ZipFile, entry: Entry) -> Iterable[bytes]:
    """The content of a file, piece by piece; whoever takes the last has it with its checksum checked."""
    if entry.info.file_size <= _SHORT and entry.end - entry.info.header_offset <= _SHORT:
        return (_short(file.fileno(), entry),)
    return _long(zipped, entry.info)


def _short(descriptor: int, entry: Entry) -> bytes:
    """A short file's content: zipfile takes twice as long, for its objects and locks around each."""
    info = entry.info
    block = os.pread(descriptor, entry.end - info.header_offset, info.header_offset)
    signature, name_length, extra_length = _LOCAL_HEADER.unpack_from(block)
    begin = 30 + name_length + extra_length
    content = block[begin : begin + info.compress_size]
    name = block[30 : 30 + name_length].decode("utf-8" if info.flag_bits & 0x800 else "cp437")
    if signature != b"PK\x03\x04" or name != info.orig_filename or len(content) != info.compress_size:
        raise zipfile.BadZipFile(f"{shown(entry.path)} and the zip's directory do not agree")
    if info.compress_type == zipfile.ZIP_DEFLATED:
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        content = inflater.decompress(content, info.file_size + 1)
        if not inflater.eof:
            raise zipfile.BadZipFile(f"{shown(entry.path)} is cut, or longer than the zip says")
    if len(content) != info.file_size or zlib.crc32(content) != info.CRC:
        raise zipfile.BadZipFile(f"{shown(entry.path)} has a wrong checksum")
    return content


def _long(zipped: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[bytes]:
    with zipped.open(info) as source:
        while piece := source.read(_PIECE):
            yield piece


def _write_file(pieces: Iterable[bytes], entry: Entry, destination: str | None, room: int) -> int:
    """Write one file, or only count it; returns its bytes."""
    written = 0
    output: int | None = None
    if destination is not None:
        executable = entry.info.create_system == 3 and (entry.info.external_attr >> 16) & 0o111
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        output = os.open(destination, flags, 0o700 if executable else 0o600)
    try:
        for piece in pieces:
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
    if written != entry.info.file_size:
        raise ArchiveError("ZIP_CORRUPT", f"{shown(entry.path)} is not as long as the zip says.")
    return written


def _write_all(descriptor: int, piece: bytes) -> None:
    if not piece:
        return
    written = os.write(descriptor, piece)
    while written < len(piece):  # the disk was about to be full; now it says so, or there is room again
        written += os.write(descriptor, piece[written:])


def pack(folder: Path, output: IO[bytes], paths: Iterable[Path] | None = None) -> Iterator[int]:
    """Write a folder (or just `paths` below it) to a zip; yields the bytes of each file as it is done.

    Links are stored as links and never followed: what they point to is not the workspace's.
    """
    with zipfile.ZipFile(output, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as zipped:
        for path in below(folder) if paths is None else paths:
            yield _pack_one(zipped, path, _readable(path.relative_to(folder).as_posix()))


def _readable(name: str) -> str:
    """The name of a file as a zip can have it: in UTF-8, where Linux knows bytes."""
    return os.fsencode(name).decode(errors="replace")


def below(folder: Path) -> list[Path]:
    """All that is below a folder, in order, links not followed; what disappears meanwhile is no error."""
    return sorted(
        Path(parent, name) for parent, folders, files in os.walk(folder) for name in itertools.chain(folders, files)
    )


def _pack_one(zipped: zipfile.ZipFile, path: Path, name: str) -> int:
    """Add a file, a folder or a link, and nothing of another kind; returns the bytes of a file."""
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
