"""Zips in and out: the checks an upload must pass, the unpacking of one that did, and the packing of a folder.

Nothing of an archive is believed: names are judged before anything is written, sizes are counted on the bytes that are
really written, and files are created, never opened through what was there before.
"""

from __future__ import annotations

import os
import re
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from occ_app.errors import ArchiveError

_PIECE = 1 << 18
_LONGEST_NAME = 255
_LONGEST_PATH = 1024
_DEEPEST = 64
_DRIVE = re.compile(r"^[A-Za-z]:")
_CONTROL = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# Letters that look like a separator or a dot, or that hide what follows; a name made of them is meant to deceive.
_LOOKALIKES = frozenset(
    "\u2024\u2025\u2026\u2044\u2215\u29f8\u29f9\ufe52\ufe68\uff0e\uff0f\uff3c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200b\u200c\u200e\u200f\u2060\ufeff"
)
_LOOKALIKES_ALLOWED = frozenset("\u200c\u200d")  # joiners are part of emoji and of several scripts' spelling


@dataclass(frozen=True)
class Limits:
    """Sizes in bytes, counted on what is written; `trusted`: what would run something is taken too."""

    unpacked_bytes: int
    files: int
    trusted: bool = False


@dataclass(frozen=True)
class Entry:
    """One entry of a checked archive: `path` is relative, with `/`."""

    info: zipfile.ZipInfo
    path: str
    folder: bool


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
            _check_container(file, zipped, limits)
            entries = [_checked(info) for info in zipped.infolist()]
            _check_collisions(entries)
            _check_overlaps(zipped, entries)
            return _write(zipped, entries, target, limits)
    except ArchiveError:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, struct.error, ValueError, UnicodeError) as error:
        raise ArchiveError("ZIP_CORRUPT", f"The zip cannot be read ({error}); make it again and upload it.") from None
    except (NotImplementedError, RuntimeError) as error:
        raise ArchiveError("ZIP_UNSUPPORTED", f"The zip uses a feature OCC does not read ({error}).") from None


def skip_reason(path: str) -> str | None:
    """Why an entry is left out of an untrusted workspace: it would make Claude Code or git run something."""
    lowered = path.lower()
    if ".claude" not in lowered and ".mcp.json" not in lowered and ".git" not in lowered:
        return None
    parts = lowered.split("/")
    for index, part in enumerate(parts):
        rest = parts[index + 1 :]
        if part == ".claude" and rest and not (rest == ["claude.md"] or (rest[0] == "rules" and len(rest) > 1)):
            return "settings, commands and hooks of Claude Code run programs"
        if part == ".mcp.json":
            return "MCP servers are programs"
        if part == ".git" and rest and (rest == ["config"] or rest[0] == "hooks"):
            return "git's configuration and hooks run programs"
    return None


def _check_container(file: IO[bytes], zipped: zipfile.ZipFile, limits: Limits) -> None:
    entries = zipped.infolist()
    if not entries:
        raise ArchiveError("ZIP_EMPTY", "The zip holds nothing; add the project's files to it.")
    if len(entries) > limits.files:
        raise ArchiveError(
            "ZIP_TOO_MANY_FILES", f"The zip has {len(entries)} entries and {limits.files} are allowed; leave some out."
        )
    # zipfile moves all offsets when something stands before the archive; other readers do not, and see another archive.
    if min(info.header_offset for info in entries) != 0:
        raise ArchiveError("ZIP_PREFIX_DATA", "Something stands before the zip's first entry; make a plain zip.")
    file.seek(0)
    if file.read(4) != b"PK\x03\x04":
        raise ArchiveError("ZIP_PREFIX_DATA", "The zip does not begin with an entry; make a plain zip.")
    _check_end(file, zipped)


def _check_end(file: IO[bytes], zipped: zipfile.ZipFile) -> None:
    """Refuse what another reader may take for another archive: bytes around the directory, or a second end of it."""
    end = file.seek(0, os.SEEK_END) - 22 - len(zipped.comment)
    file.seek(max(0, end))
    record = file.read(22)
    if record[:4] != b"PK\x05\x06" or b"PK\x05\x06" in zipped.comment:
        raise ArchiveError("ZIP_AMBIGUOUS", "Something stands after the zip's end; make a plain zip.")
    (size,) = struct.unpack("<I", record[12:16])
    # A zip64 archive has a record of 56 bytes and a locator of 20 between its directory and its end.
    if size != 0xFFFFFFFF and zipped.start_dir + size not in (end, end - 76):
        raise ArchiveError(
            "ZIP_AMBIGUOUS", "Something stands between the zip's directory and its end; make a plain zip."
        )


def _checked(info: zipfile.ZipInfo) -> Entry:
    # orig_filename is what the archive says; filename is what zipfile made of it: cut at a NUL, separators changed.
    name = _name(info)
    if info.flag_bits & 0x1 or info.flag_bits & 0x40 or info.flag_bits & 0x2000:
        raise ArchiveError("ZIP_ENCRYPTED", f"{_shown(name)} is encrypted; upload a zip without a password.")
    if info.compress_type not in _METHODS:
        raise ArchiveError("ZIP_UNSUPPORTED", f"{_shown(name)} is compressed in a way OCC does not read; use deflate.")
    if info.volume != 0:
        raise ArchiveError("ZIP_UNSUPPORTED", "The zip is split over several files; make it one file.")
    mode = info.external_attr >> 16 if info.create_system == 3 else 0
    kind = stat.S_IFMT(mode)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        what = "a link" if kind == stat.S_IFLNK else "a special file"
        raise ArchiveError("ZIP_LINK", f"{_shown(name)} is {what}; a workspace takes files and folders only.")
    folder = name.endswith("/")
    if folder != (kind == stat.S_IFDIR) and kind != 0:
        raise ArchiveError("ZIP_LINK", f"{_shown(name)} says it is a file and a folder at once.")
    return Entry(info, _checked_path(name, folder), folder)


def _name(info: zipfile.ZipInfo) -> str:
    """An entry's name: without the flag for UTF-8 Info-ZIP's field 0x7075 tells it, or its bytes if they are UTF-8."""
    name = info.orig_filename
    if info.flag_bits & 0x800 or name.isascii():
        return name
    try:
        stored = name.encode("cp437")
    except UnicodeEncodeError:
        return name
    extra = info.extra
    while len(extra) >= 4:
        kind, length = struct.unpack("<HH", extra[:4])
        field, extra = extra[4 : 4 + length], extra[4 + length :]
        if kind == 0x7075 and len(field) > 5 and field[0] == 1 and field[1:5] == struct.pack("<I", zlib.crc32(stored)):
            stored = field[5:]
    try:
        return stored.decode("utf-8")
    except UnicodeDecodeError:
        return name


def _checked_path(name: str, folder: bool) -> str:
    path = name[:-1] if folder else name
    if not path or path.startswith("/") or _DRIVE.match(path) or "\\" in path:
        raise _escape(name, "an absolute path, a drive or a backslash")
    if _CONTROL.search(path):
        raise _escape(name, "a control character")
    if not path.isascii() and any(c in _LOOKALIKES and c not in _LOOKALIKES_ALLOWED for c in path):
        raise _escape(name, "a character that looks like another or is invisible")
    parts = path.split("/")
    for part in parts:
        if part in ("", ".", "..") or part != part.rstrip(". ") or part != part.lstrip(" "):
            raise _escape(name, "a part that is empty, is dots, or begins or ends with a space or ends with a dot")
        if len(part) * 4 > _LONGEST_NAME and len(part.encode()) > _LONGEST_NAME:
            raise ArchiveError("ZIP_NAME_TOO_LONG", f"{_shown(name)} has a part of more than {_LONGEST_NAME} bytes.")
    if len(path.encode()) > _LONGEST_PATH or len(parts) > _DEEPEST:
        raise ArchiveError(
            "ZIP_NAME_TOO_LONG", f"{_shown(name)} is over {_LONGEST_PATH} bytes or {_DEEPEST} folders deep."
        )
    return path


def _escape(name: str, what: str) -> ArchiveError:
    return ArchiveError("ZIP_PATH", f"{_shown(name)} has {what}; use plain relative names.", {"path": _shown(name)})


def _check_collisions(entries: Iterable[Entry]) -> None:
    seen: dict[str, bool] = {}
    for entry in entries:
        key = unicodedata.normalize("NFC", entry.path)
        if skip_reason(entry.path) is not None:
            key = key.lower()
        if key in seen and not (seen[key] and entry.folder):
            raise ArchiveError("ZIP_DUPLICATE", f"{_shown(entry.path)} is in the zip twice; make it again.")
        seen[key] = entry.folder
    for key in seen:
        parent = key.rpartition("/")[0]
        while parent:
            if seen.get(parent) is False:
                raise ArchiveError("ZIP_DUPLICATE", f"{_shown(parent)} is a file and a folder at once.")
            parent = parent.rpartition("/")[0]


def _check_overlaps(zipped: zipfile.ZipFile, entries: Iterable[Entry]) -> None:
    """Refuse entries that share bytes: one small block would be unpacked many times over."""
    # The body begins at the earliest after a fixed header of 30 bytes and the name; reading the local header tells.
    end_of_entries = zipped.start_dir
    ordered = sorted((entry.info for entry in entries), key=lambda info: info.header_offset)
    for info, following in zip(ordered, [*ordered[1:], None], strict=True):
        limit = end_of_entries if following is None else following.header_offset
        if info.header_offset + 30 + info.compress_size > limit:
            raise ArchiveError("ZIP_BOMB", f"{_shown(info.filename)} shares its bytes with another entry.")


def _write(zipped: zipfile.ZipFile, entries: list[Entry], target: Path | None, limits: Limits) -> Unpacked:
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
        written += _write_file(zipped, entry, destination, limits.unpacked_bytes - written)
        files += destination is not None or (target is None and reason is None)
    return Unpacked(files, written, tuple(skipped))


def _write_file(zipped: zipfile.ZipFile, entry: Entry, destination: str | None, room: int) -> int:
    """Write one file, reading it to its end so that its checksum is checked. Returns its bytes."""
    written = 0
    executable = entry.info.create_system == 3 and (entry.info.external_attr >> 16) & 0o111
    with zipped.open(entry.info) as source:
        output: int | None = None
        if destination is not None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            output = os.open(destination, flags, 0o700 if executable else 0o600)
        try:
            while piece := source.read(_PIECE):
                written += len(piece)
                if written > room:
                    raise ArchiveError("ZIP_BOMB", "The zip unpacks to more than OCC_MAX_UNPACKED_BYTES allows.")
                if output is not None:
                    _write_all(output, piece)
        finally:
            if output is not None:
                os.close(output)
    if written != entry.info.file_size:
        raise ArchiveError("ZIP_CORRUPT", f"{_shown(entry.path)} is not as long as the zip says.")
    return written


def _write_all(descriptor: int, piece: bytes) -> None:
    written = os.write(descriptor, piece)
    while written < len(piece):  # the disk was about to be full; now it says so, or there is room again
        written += os.write(descriptor, piece[written:])


def _shown(name: str) -> str:
    """A name as it may stand in a message: printable and short."""
    return name[:80].encode("unicode_escape", "backslashreplace").decode()


def pack(folder: Path, output: IO[bytes], paths: Iterable[Path] | None = None) -> Iterator[int]:
    """Write a folder (or just `paths` below it) to a zip; yields the bytes of each file as it is done.

    Links are stored as links and never followed: what they point to is not the workspace's.
    """
    with zipfile.ZipFile(output, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as zipped:
        for path in sorted(folder.rglob("*")) if paths is None else paths:
            name = path.relative_to(folder).as_posix()
            status = path.lstat()
            if stat.S_ISLNK(status.st_mode):
                link = zipfile.ZipInfo(name)
                link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
                zipped.writestr(link, os.readlink(path))
            elif stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):
                yield _pack_one(zipped, path, name)


def _pack_one(zipped: zipfile.ZipFile, path: Path, name: str) -> int:
    try:
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
    except (FileNotFoundError, PermissionError):
        return 0  # gone or closed while the folder was read; the rest is still worth having
