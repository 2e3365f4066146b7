"""The patterns of .gitignore files, read and matched as git does, for a machine without git.

Names and patterns are bytes, as they are for git. `Rules.of` follows `add_patterns_from_buffer` of git's dir.c, `_glob`
its wildmatch.c. A pattern that git cannot read matches nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_SPECIAL = b"*?[\\"
_NEVER = b"(?!)"
_CLASSES = {
    b"alnum": b"0-9A-Za-z",
    b"alpha": b"A-Za-z",
    b"blank": rb" \t",
    b"cntrl": rb"\x00-\x1f\x7f",
    b"digit": b"0-9",
    b"graph": b"!-~",
    b"lower": b"a-z",
    b"print": b" -~",
    b"punct": rb"!-/:-@\[-`{-~",
    b"space": rb" \t\n\r",
    b"upper": b"A-Z",
    b"xdigit": b"0-9A-Fa-f",
}


@dataclass(frozen=True)
class Pattern:
    """One line of an ignore file; `regex` matches a base name, or with `by_path` a path from the file's folder."""

    negated: bool
    folders_only: bool
    by_path: bool
    regex: re.Pattern[bytes]


@dataclass(frozen=True)
class Rules:
    """The patterns of one ignore file, which apply below the folder `base`: a path with `/` at its end, or empty."""

    base: bytes
    patterns: Sequence[Pattern]

    @classmethod
    def of(cls, content: bytes, base: bytes) -> Rules:
        """Read an ignore file: lines end with a line feed, which one carriage return may precede."""
        lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
        read = [_pattern(line.removesuffix(b"\r").partition(b"\0")[0]) for line in lines if not line.startswith(b"#")]
        return cls(base, [pattern for pattern in read if pattern is not None])

    def verdict(self, path: bytes, *, folder: bool) -> bool | None:
        """Return whether the last pattern that matches says to ignore a path; None when none matches."""
        name = path.rpartition(b"/")[2]
        below = path[len(self.base) :]
        for pattern in reversed(self.patterns):
            subject = below if pattern.by_path else name
            if (folder or not pattern.folders_only) and pattern.regex.fullmatch(subject):
                return not pattern.negated
        return None


def ignored(rules: Sequence[Rules], path: bytes, *, folder: bool) -> bool:
    """Return whether git ignores a path whose parent folders it does not ignore; the last rules win."""
    for each in reversed(rules):
        verdict = each.verdict(path, folder=folder)
        if verdict is not None:
            return verdict
    return False


def _pattern(line: bytes) -> Pattern | None:
    text = _without_trailing_spaces(line)
    negated = text.startswith(b"!")
    text = text[negated:]
    folders_only = text.endswith(b"/")
    text = text[: len(text) - folders_only]
    if not text:
        return None
    by_path = b"/" in text
    if not by_path:
        return Pattern(negated, folders_only, by_path, re.compile(_glob(text, paths=False), re.DOTALL))
    text = text.removeprefix(b"/")
    plain = next((index for index, byte in enumerate(text) if byte in _SPECIAL), len(text))
    # git compares the part before the first special byte apart, so that "a**/b" is "a" and then "**/b".
    regex = re.escape(text[:plain]) + _glob(text[plain:], paths=True)
    return Pattern(negated, folders_only, by_path, re.compile(regex, re.DOTALL))


def _without_trailing_spaces(line: bytes) -> bytes:
    """Cut the spaces at the end; one after a backslash stays."""
    end = index = 0
    while index < len(line):
        if line[index : index + 1] == b"\\":
            index += 2
            end = min(index, len(line))
            continue
        index += 1
        if line[index - 1 : index] != b" ":
            end = index
    return line[:end]


def _glob(text: bytes, *, paths: bool) -> bytes:
    """Return a regular expression for a glob of git; with `paths` only `**` matches a slash."""
    other = b"[^/]" if paths else b"."
    parts = list[bytes]()
    index = 0
    while index < len(text):
        byte = text[index : index + 1]
        index += 1
        if byte == b"*":
            begin = index - 1
            while text[index : index + 1] == b"*":
                index += 1
            rest = text[index:]
            at_edge = (begin == 0 or text[begin - 1 : begin] == b"/") and (not rest or rest.startswith((b"/", b"\\/")))
            if not paths or (index - begin > 1 and at_edge):
                if paths and rest.startswith(b"/"):
                    parts.append(b"(?:.*/)?")
                    index += 1
                else:
                    parts.append(b".*")
            else:
                parts.append(b"[^/]*")
        elif byte == b"?":
            parts.append(other)
        elif byte == b"[":
            pattern, index = _bracket(text, index, paths=paths)
            parts.append(pattern)
        elif byte == b"\\":
            escaped = text[index : index + 1]
            parts.append(re.escape(escaped) if escaped else _NEVER)
            index += 1
        else:
            parts.append(re.escape(byte))
    return b"".join(parts)


def _bracket(text: bytes, index: int, *, paths: bool) -> tuple[bytes, int]:
    """Return a regular expression for the set that begins after `[`, and the index after its `]`."""
    negated = text[index : index + 1] in (b"!", b"^")
    try:
        matched, end = _members(text, index + negated)
    except LookupError:
        return _NEVER, len(text)
    members = set(range(1, 256)) - matched if negated else matched
    members -= {0x2F} if paths else set()
    return (b"[%b]" % b"".join(b"\\x%02x" % value for value in sorted(members)) if members else _NEVER), end


def _members(text: bytes, index: int) -> tuple[set[int], int]:
    """Return the bytes that a set names, and the index after its `]`. Raises LookupError when git cannot read it."""
    matched = set[int]()
    previous = 0  # the byte before a "-"; 0 where no range can begin
    begin = index
    while index == begin or text[index] != 0x5D:  # "]", which is a member when it comes first
        byte = text[index]
        if byte == 0x2D and previous and text[index + 1] != 0x5D:  # a range
            index += 1 + (text[index + 1] == 0x5C)
            matched.update(range(previous, text[index] + 1))
            previous = 0
        elif text[index : index + 2] == b"[:" and _closes_class(text, index + 2):
            end = text.index(b"]", index + 2)
            named = _CLASSES[text[index + 2 : end - 1]]
            matched.update(value for value in range(256) if re.match(b"[%b]" % named, bytes([value])))
            index, previous = end, 0
        else:
            index += byte == 0x5C  # a backslash: the next byte, of any value
            previous = text[index]
            matched.add(previous)
        index += 1
    return matched, index + 1


def _closes_class(text: bytes, index: int) -> bool:
    """Return whether the name of a class that begins at `index` ends with `:]`; otherwise `[` is a plain member."""
    end = text.find(b"]", index)
    return end > index and text[end - 1 : end] == b":"
