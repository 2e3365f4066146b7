"""The checks a zip must pass before anything of it is written: its names, its kinds, its collisions, its bytes."""

from __future__ import annotations

import os
import re
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import IO

from occ_app.errors import ArchiveError

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
class Entry:
    """One entry of a checked archive: `path` is relative, with `/`; `end` is where the next one may begin."""

    info: zipfile.ZipInfo
    path: str
    folder: bool
    end: int


def checked(file: IO[bytes], zipped: zipfile.ZipFile, most: int) -> list[Entry]:
    """All entries of an archive of at most that many. Raises ArchiveError with a ZIP_ code."""
    _check_container(file, zipped, most)
    ends = _ends(zipped)
    entries = [_checked(info, end) for info, end in zip(zipped.infolist(), ends, strict=True)]
    _check_collisions(entries)
    return entries


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


def _check_container(file: IO[bytes], zipped: zipfile.ZipFile, most: int) -> None:
    entries = zipped.infolist()
    if not entries:
        raise ArchiveError("ZIP_EMPTY", "The zip holds nothing; add the project's files to it.")
    if len(entries) > most:
        raise ArchiveError(
            "ZIP_TOO_MANY_FILES",
            f"The zip has {len(entries)} entries and {most} are allowed; leave some out, or raise OCC_MAX_FILES"
            " (on a hub OCC_HUB_MAX_FILES).",
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


def _checked(info: zipfile.ZipInfo, end: int) -> Entry:
    # orig_filename is what the archive says; filename is what zipfile made of it: cut at a NUL, separators changed.
    name = _name(info)
    if info.flag_bits & 0x1 or info.flag_bits & 0x40 or info.flag_bits & 0x2000:
        raise ArchiveError("ZIP_ENCRYPTED", f"{shown(name)} is encrypted; upload a zip without a password.")
    if info.compress_type not in _METHODS or info.flag_bits & 0x20:  # the flag: patched data
        raise ArchiveError("ZIP_UNSUPPORTED", f"{shown(name)} is compressed in a way OCC does not read; use deflate.")
    if info.volume != 0:
        raise ArchiveError("ZIP_UNSUPPORTED", "The zip is split over several files; make it one file.")
    mode = info.external_attr >> 16 if info.create_system == 3 else 0
    kind = stat.S_IFMT(mode)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        what = "a link" if kind == stat.S_IFLNK else "a special file"
        raise ArchiveError("ZIP_LINK", f"{shown(name)} is {what}; a workspace takes files and folders only.")
    folder = name.endswith("/")
    if folder != (kind == stat.S_IFDIR) and kind != 0:
        raise ArchiveError("ZIP_LINK", f"{shown(name)} says it is a file and a folder at once.")
    return Entry(info, _checked_path(name, folder), folder, end)


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
            raise ArchiveError("ZIP_NAME_TOO_LONG", f"{shown(name)} has a part of more than {_LONGEST_NAME} bytes.")
    if len(path.encode()) > _LONGEST_PATH or len(parts) > _DEEPEST:
        raise ArchiveError(
            "ZIP_NAME_TOO_LONG", f"{shown(name)} is over {_LONGEST_PATH} bytes or {_DEEPEST} folders deep."
        )
    return path


def _escape(name: str, what: str) -> ArchiveError:
    return ArchiveError("ZIP_PATH", f"{shown(name)} has {what}; use plain relative names.", {"path": shown(name)})


def _check_collisions(entries: Iterable[Entry]) -> None:
    seen: dict[str, bool] = {}
    for entry in entries:
        key = unicodedata.normalize("NFC", entry.path)
        if skip_reason(entry.path) is not None:
            key = key.lower()
        if key in seen and not (seen[key] and entry.folder):
            raise ArchiveError("ZIP_DUPLICATE", f"{shown(entry.path)} is in the zip twice; make it again.")
        seen[key] = entry.folder
    for key in seen:
        parent = key.rpartition("/")[0]
        while parent:
            if seen.get(parent) is False:
                raise ArchiveError("ZIP_DUPLICATE", f"{shown(parent)} is a file and a folder at once.")
            parent = parent.rpartition("/")[0]


def _ends(zipped: zipfile.ZipFile) -> list[int]:
    """Where the bytes of each entry end, in the order of the directory.

    Refuses entries that share bytes: one small block would be unpacked many times over.
    """
    infos = zipped.infolist()
    ends = [0] * len(infos)
    end = zipped.start_dir
    for index in sorted(range(len(infos)), key=lambda index: infos[index].header_offset, reverse=True):
        info = infos[index]
        # The body begins at the earliest after a fixed header of 30 bytes; reading the local header tells.
        if info.header_offset + 30 + info.compress_size > end:
            raise ArchiveError("ZIP_BOMB", f"{shown(info.filename)} shares its bytes with another entry.")
        ends[index], end = end, info.header_offset
    return ends


def shown(name: str) -> str:
    """A name as it may stand in a message: printable and short."""
    return name[:80].encode("unicode_escape", "backslashreplace").decode()
