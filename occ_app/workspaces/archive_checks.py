"""The checks a zip must pass before anything of it is written.

They cover its names, kinds, collisions and bytes.
"""

from __future__ import annotations

import dataclasses
import os
import stat
import struct
import unicodedata
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from typing import IO

from occ_app.errors import ArchiveError
from occ_app.workspaces import archive_links
from occ_app.workspaces.archive_content import content
from occ_app.workspaces.archive_names import Name, checked_path, names, shown
from occ_app.workspaces.skipped import skip_reason, skip_reasons

_SEGMENT_MARKS = (b"PK\x07\x08", b"PK00")  # the second: of an archive that could have been split
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_UNIX = (3, 19)  # the systems whose entries have a Unix mode: Unix, and macOS as some of its programs name it
_DOS_FOLDER = 0x10


@dataclass(frozen=True)
class Entry:
    """One entry of a checked archive.

    `path` is relative, with `/`; `end` is where the next entry may begin. `link` is the path that a link holds. `skip`
    is why the entry is left out of a workspace, None when it is not.
    """

    info: zipfile.ZipInfo
    path: str
    folder: bool
    end: int
    link: str | None = None
    skip: str | None = None

    @property
    def executable(self) -> bool:
        return bool(_mode(self.info) & 0o111)


@dataclass(frozen=True)
class Checked:
    """The entries of an archive that passed.

    `stripped` names the single top folder that is left out of their paths.
    """

    entries: list[Entry]
    stripped: str | None


def checked(file: IO[bytes], zipped: zipfile.ZipFile, limit: int, *, trusted: bool, strip_root: bool) -> Checked:
    """Check an archive of at most `limit` entries.

    Raises ArchiveError with a ZIP_ code.
    """
    _check_container(file, zipped, limit)
    infos = zipped.infolist()
    ends = _ends(zipped)
    members = [_checked(file, info, name, end) for info, name, end in zip(infos, names(infos), ends, strict=True)]
    entries = [entry for entry in members if entry.path]  # without the archive's own root
    stripped = _single_root(entries) if strip_root else None
    if stripped is not None:
        entries = [
            dataclasses.replace(entry, path=entry.path[len(stripped) + 1 :])
            for entry in entries
            if entry.path != stripped
        ]
    _check_collisions(entries)
    return Checked(_without_skipped(entries, trusted=trusted), stripped)


def _check_container(file: IO[bytes], zipped: zipfile.ZipFile, limit: int) -> None:
    entries = zipped.infolist()
    if not entries:
        raise ArchiveError("ZIP_EMPTY", "The zip is empty; add the project's files to it.")
    if len(entries) > limit:
        raise ArchiveError(
            "ZIP_TOO_MANY_FILES",
            f"The zip has {len(entries)} entries and {limit} are allowed; leave some out, or raise OCC_MAX_FILES"
            " (on a hub OCC_HUB_MAX_FILES).",
        )
    # zipfile moves all offsets when bytes precede the archive; other readers do not, and see another archive.
    first = 4 if _is_one_segment(file, zipped) else 0
    if min(info.header_offset for info in entries) != first:
        raise ArchiveError("ZIP_PREFIX_DATA", "The zip has data before its first entry; make a plain zip.")
    file.seek(first)
    if file.read(4) != b"PK\x03\x04":
        raise ArchiveError("ZIP_PREFIX_DATA", "The zip does not begin with an entry; make a plain zip.")
    _check_end(file, zipped)


def _is_one_segment(file: IO[bytes], zipped: zipfile.ZipFile) -> bool:
    """Return whether a zip has the mark of split archives but is in one file.

    The mark is at its beginning, and counted in its offsets.
    """
    file.seek(0)
    if file.read(4) not in _SEGMENT_MARKS:
        return False
    file.seek(max(0, file.seek(0, os.SEEK_END) - 22 - len(zipped.comment)))
    record = file.read(22)
    return len(record) == 22 and struct.unpack("<I", record[16:20])[0] == zipped.start_dir


def _check_end(file: IO[bytes], zipped: zipfile.ZipFile) -> None:
    """Refuse bytes around the directory, or a second end of it.

    Another reader may take such a file for another archive.
    """
    end = file.seek(0, os.SEEK_END) - 22 - len(zipped.comment)
    file.seek(max(0, end))
    record = file.read(22)
    if record[:4] != b"PK\x05\x06" or b"PK\x05\x06" in zipped.comment:
        raise ArchiveError("ZIP_AMBIGUOUS", "The zip has data after its end; make a plain zip.")
    (size,) = struct.unpack("<I", record[12:16])
    # A zip64 archive has a record of 56 bytes and a locator of 20 between its directory and its end.
    if size != 0xFFFFFFFF and zipped.start_dir + size not in (end, end - 76):
        raise ArchiveError("ZIP_AMBIGUOUS", "The zip has data between its directory and its end; make a plain zip.")


def _checked(file: IO[bytes], info: zipfile.ZipInfo, name: Name, end: int) -> Entry:
    # `name` is made of orig_filename, as the archive says it; zipfile cuts filename at a NUL and changes separators.
    if info.flag_bits & 0x1 or info.flag_bits & 0x40 or info.flag_bits & 0x2000:
        raise ArchiveError("ZIP_ENCRYPTED", f"{shown(name.text)} is encrypted; upload a zip without a password.")
    if info.compress_type not in _METHODS or info.flag_bits & 0x20:  # the flag: patched data
        raise ArchiveError(
            "ZIP_UNSUPPORTED", f"{shown(name.text)} uses a compression that OCC does not support; use deflate."
        )
    if info.volume != 0:
        raise ArchiveError("ZIP_UNSUPPORTED", "The zip is split into several files; make one file.")
    kind = stat.S_IFMT(_mode(info))
    if kind == stat.S_IFLNK:
        return _checked_link(file, info, name, end)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise archive_links.refused(name.text, "is a special file")
    folder = _is_folder(info, name.text, kind)
    return Entry(info, checked_path(name, folder=folder), folder, end)


def _checked_link(file: IO[bytes], info: zipfile.ZipInfo, name: Name, end: int) -> Entry:
    if name.text.endswith("/"):
        raise archive_links.refused(name.text, "is a link and a folder at once")
    target = archive_links.target_of(info, name.text, lambda: b"".join(content(file.fileno(), info, end)))
    return Entry(info, checked_path(name, folder=False), False, end, target)


def _mode(info: zipfile.ZipInfo) -> int:
    """Return the Unix mode of an entry, 0 for one that was made where there are none."""
    return info.external_attr >> 16 if info.create_system in _UNIX else 0


def _is_folder(info: zipfile.ZipInfo, name: str, kind: int) -> bool:
    """Return whether an entry is a folder.

    Its name ends with a slash, or its mode or its DOS attribute says so; programs disagree on which of the three they
    set. By mode or attribute alone, only an entry without content can be a folder.
    """
    slash = name.endswith("/")
    if info.file_size == 0:
        return slash or kind == stat.S_IFDIR or (kind == 0 and bool(info.external_attr & _DOS_FOLDER))
    if kind not in (0, stat.S_IFDIR if slash else stat.S_IFREG):
        raise archive_links.refused(name, "says it is a file and a folder at once")
    return slash


def _single_root(entries: Iterable[Entry]) -> str | None:
    """Return the one folder that holds all else of an archive.

    None when there is more at the top, or when the folder is empty.
    """
    roots = set()
    deeper = False
    for entry in entries:
        root, _, rest = entry.path.partition("/")
        if not rest and not entry.folder:
            return None
        roots.add(root)
        deeper = deeper or bool(rest)
    return roots.pop() if len(roots) == 1 and deeper else None


def _without_skipped(entries: list[Entry], *, trusted: bool) -> list[Entry]:
    """Return the entries, with the reason for each that is left out.

    Links that must not be stored are refused.
    """
    kinds: dict[str, bool | None] = {}
    for entry in entries:
        parent = entry.path.rpartition("/")[0]
        while parent and parent not in kinds:
            kinds[parent] = True
            parent = parent.rpartition("/")[0]
        kinds[entry.path] = None if entry.link is not None else entry.folder
    reasons = {} if trusted else skip_reasons({path: bool(kind) for path, kind in kinds.items()})
    result = []
    for entry in entries:
        reason = reasons.get(entry.path)
        if entry.link is not None:
            place = archive_links.resolved(entry.path, entry.link, kinds)
            if not place or kinds[place]:
                reason = reason or archive_links.FOLDER_LINK
            elif place in reasons:
                reason = reason or archive_links.SKIPPED_TARGET
        result.append(entry if reason is None else dataclasses.replace(entry, skip=reason))
    return result


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
