"""Names in a zip: their encoding, their separators, and the rules for a name.

A zip says of a name at most that it is UTF-8. All other names are bytes, whose encoding is decided for the archive as
a whole: one in which every name reads as ordinary text, else that of the format, code page 437.
"""

from __future__ import annotations

import re
import struct
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from occ_app.errors import ArchiveError

_LONGEST_NAME = 255
_LONGEST_PATH = 1024
_DEEPEST = 64
_DRIVE = re.compile(r"^[A-Za-z]:")
_CONTROL = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
# Letters that look like a separator or a dot, or that hide the following ones; a name made of them is meant to deceive.
_LOOKALIKES = frozenset(
    "\u2024\u2025\u2026\u2044\u2215\u29f8\u29f9\ufe52\ufe68\uff0e\uff0f\uff3c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200b\u200c\u200e\u200f\u2060\ufeff"
)
_LOOKALIKES_ALLOWED = frozenset("\u200c\u200d")  # joiners are part of emoji and of several scripts' spelling

_UTF8 = 0x800
_FAT, _NTFS, _VFAT = 0, 10, 14
_EAST_ASIAN = ("cp932", "gbk", "big5", "cp950")
_LIKELY = 0.75  # so much of the text must be common in an encoding, and so much more than in the next one:
_MARGIN = 0.2


@dataclass(frozen=True)
class Name:
    """The name of an entry as text.

    `guessed`: it was read in code page 437 because no other encoding fits.
    """

    text: str
    guessed: bool = False


def names(infos: Sequence[zipfile.ZipInfo]) -> list[Name]:
    """Return the names of all entries of an archive, with `/` between their parts."""
    stored = [_legacy_bytes(info) for info in infos]
    encoding = _encoding([name for name in stored if name is not None])
    decoded = [
        Name(_text(info)) if name is None else Name(name.decode(encoding or "cp437"), encoding is None)
        for info, name in zip(infos, stored, strict=True)
    ]
    if _made_by_windows(infos, decoded):
        decoded = [Name(name.text.replace("\\", "/"), name.guessed) for name in decoded]
    return decoded


def checked_path(name: Name, *, folder: bool) -> str:
    """Return a name as a relative path, empty for the archive's own root.

    Raises ArchiveError with a ZIP_ code.
    """
    text = name.text
    while text.startswith("./"):
        text = text[2:]
    path = text.removesuffix("/") if folder else text
    if not path and name.text.startswith("./"):
        return ""
    _check_characters(name, path)
    parts = path.split("/")
    for part in parts:
        if part in ("", ".", "..") or part != part.rstrip(". ") or part != part.lstrip(" "):
            raise _escape(name, "a part that is empty, is dots, or begins or ends with a space or ends with a dot")
        if len(part) * 4 > _LONGEST_NAME and len(part.encode()) > _LONGEST_NAME:
            raise ArchiveError("ZIP_NAME_TOO_LONG", f"{shown(path)} has a part of more than {_LONGEST_NAME} bytes.")
    if len(path.encode()) > _LONGEST_PATH or len(parts) > _DEEPEST:
        raise ArchiveError(
            "ZIP_NAME_TOO_LONG", f"{shown(path)} is over {_LONGEST_PATH} bytes or {_DEEPEST} folders deep."
        )
    return path


def shown(name: str) -> str:
    """Return a name for a message: printable and short."""
    return name[:80].encode("unicode_escape", "backslashreplace").decode()


def _check_characters(name: Name, path: str) -> None:
    if not path or path.startswith("/") or _DRIVE.match(path) or "\\" in path:
        raise _escape(name, "an absolute path, a drive or a backslash")
    if _CONTROL.search(path):
        raise _escape(name, "a control character")
    if not path.isascii() and any(c in _LOOKALIKES and c not in _LOOKALIKES_ALLOWED for c in path):
        raise _escape(name, "a character that looks like another or is invisible")


def _escape(name: Name, fault: str) -> ArchiveError:
    remedy = "use plain relative names"
    if name.guessed:
        remedy = "the encoding of its names is not known; make the zip with names in UTF-8"
    return ArchiveError("ZIP_PATH", f"{shown(name.text)} has {fault}; {remedy}.", {"path": shown(name.text)})


def _text(info: zipfile.ZipInfo) -> str:
    """Return a name whose entry gives its encoding.

    It is ASCII, UTF-8 or Info-ZIP's field 0x7075.
    """
    name = info.orig_filename
    if info.flag_bits & _UTF8 or name.isascii():
        return name
    stored = name.encode("cp437")
    return (_unicode_field(info, stored) or stored).decode("utf-8")


def _legacy_bytes(info: zipfile.ZipInfo) -> bytes | None:
    """Return the bytes of a name in an unknown encoding.

    None for one whose encoding is known.
    """
    name = info.orig_filename
    if info.flag_bits & _UTF8 or name.isascii():
        return None
    stored = name.encode("cp437")
    try:
        (_unicode_field(info, stored) or stored).decode("utf-8")
    except UnicodeDecodeError:
        return stored
    return None


def _unicode_field(info: zipfile.ZipInfo, stored: bytes) -> bytes | None:
    """Return the name in UTF-8 from Info-ZIP's field 0x7075.

    None when the field does not belong to this name.
    """
    extra = info.extra
    content = None
    while len(extra) >= 4:
        kind, length = struct.unpack("<HH", extra[:4])
        field, extra = extra[4 : 4 + length], extra[4 + length :]
        if kind == 0x7075 and len(field) > 5 and field[0] == 1 and field[1:5] == struct.pack("<I", zlib.crc32(stored)):
            content = field[5:]
    return content


def _made_by_windows(infos: Iterable[zipfile.ZipInfo], decoded: Sequence[Name]) -> bool:
    """Return whether backslashes separate folders.

    They do in an archive of FAT or NTFS in which no name has a slash.
    """
    if not any("\\" in name.text for name in decoded) or any("/" in name.text for name in decoded):
        return False
    if any(name.guessed and re.search(r"[^\x00-\x7f]\\", name.text) for name in decoded):
        return False  # the backslash may be the second half of a letter
    return all(info.create_system in (_FAT, _NTFS, _VFAT) for info in infos)


def _encoding(stored: Sequence[bytes]) -> str | None:
    """Return the East Asian encoding in which all names read as ordinary text.

    None when there is none or more than one.
    """
    if not stored:
        return None
    scores: dict[str, float] = {}
    for encoding in _EAST_ASIAN:
        try:
            texts = [name.decode(encoding) for name in stored]
        except UnicodeDecodeError:
            continue
        family = "big5" if encoding == "cp950" else encoding
        score = _score(texts, encoding)
        if score > scores.get(family, -1):
            scores[family] = score
    ranked = sorted(scores, key=lambda family: -scores[family])
    if not ranked or scores[ranked[0]] < _LIKELY:
        return None
    if len(ranked) > 1 and scores[ranked[0]] - scores[ranked[1]] < _MARGIN:
        return None
    return "cp950" if ranked[0] == "big5" else ranked[0]


def _score(texts: Iterable[str], encoding: str) -> float:
    """Return the share of non-ASCII letters that are common and part of a word.

    0 to 1, in an encoding. A single such letter between ASCII letters is far more often the ü or é of code page 437.
    """
    common = total = 0
    for text in texts:
        for word in re.findall(r"[^\x00-\x7f]+", text):
            total += len(word)
            if len(word) > 1 or len(text.partition(".")[0]) == 1:
                common += sum(_is_common(letter, encoding) for letter in word)
    return common / total if total else 0


def _is_common(letter: str, encoding: str) -> bool:
    """Return whether a letter is in the part of an encoding used by ordinary text."""
    stored = letter.encode(encoding)
    if len(stored) != 2:
        return False  # half-width letters of Japanese, into which most bytes fall by accident
    lead, trail = stored
    if encoding == "cp932":
        # Kana, the first level of kanji, and the punctuation that names use.
        return "\u3041" <= letter <= "\u30ff" or 0x88 <= lead <= 0x97 or letter in _PUNCTUATION
    if encoding == "gbk":
        return (0xB0 <= lead <= 0xD7 and trail >= 0xA1) or letter in _PUNCTUATION
    return 0xA4 <= lead <= 0xC6 or letter in _PUNCTUATION


_PUNCTUATION = frozenset("、。・ー「」『』（）【】〜～々〆ヶ，：；！？《》“”—\u3000")  # noqa: RUF001 - East Asian punctuation
