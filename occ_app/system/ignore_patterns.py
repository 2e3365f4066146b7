"""The patterns of .gitignore files, read and matched as git does, without git.

Names and patterns are bytes, as they are for git. `Rules.of` follows `add_patterns_from_buffer` of git's dir.c, `_glob`
its wildmatch.c, as git's manual has them: `a**/b` is `a*/b`. Releases before 2.52 read `a` and then `**/b`.
A pattern that git cannot read matches nothing. No pattern takes more time than its length times that of the name: one
with many stars is matched by an automaton, where a regular expression would try all ways.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

_SPECIAL = b"*?[\\"
_MAX_STARS = 2  # of a regular expression
_ANY = frozenset(range(256))
_NO_SLASH = _ANY - {0x2F}
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
class _Step:
    """One step of a glob: a byte of `accepted`, or with `repeated` any number of them.

    `folders` is the step `**/`: nothing, or anything that ends with a slash.
    """

    accepted: frozenset[int]
    repeated: bool = False
    folders: bool = False


@dataclass(frozen=True)
class Pattern:
    """One line of an ignore file.

    It matches a base name, or with `by_path` a path from the file's folder.
    """

    negated: bool
    folders_only: bool
    by_path: bool
    text: bytes

    def matches(self, subject: bytes) -> bool:
        if self._plain is not None:
            return subject == self._plain
        if self._suffix is not None:
            return subject.endswith(self._suffix)
        if sum(step.repeated or step.folders for step in self._steps) > _MAX_STARS:
            return self._automaton.matches(subject)
        return self._regex.fullmatch(subject) is not None

    @cached_property
    def _plain(self) -> bytes | None:
        return None if any(byte in _SPECIAL for byte in self.text) else self.text

    @cached_property
    def _suffix(self) -> bytes | None:
        """The rest of a pattern for base names that begins with its only star."""
        rest = self.text[1:]
        simple = not self.by_path and self.text.startswith(b"*") and not any(byte in _SPECIAL for byte in rest)
        return rest if simple else None

    @cached_property
    def _steps(self) -> list[_Step]:
        return _glob(self.text, paths=self.by_path)

    @cached_property
    def _regex(self) -> re.Pattern[bytes]:
        return re.compile(b"".join(map(_expression, self._steps)), re.DOTALL)

    @cached_property
    def _automaton(self) -> _Automaton:
        return _Automaton(self._steps)


def _expression(step: _Step) -> bytes:
    """Return the regular expression of a step."""
    if step.folders:
        return b"(?:.*/)?"
    if not step.accepted:
        return b"(?!)"
    members = b"[%b]" % b"".join(b"\\x%02x" % value for value in sorted(step.accepted))
    simple = {_ANY: b".", _NO_SLASH: b"[^/]"}.get(step.accepted, members)
    return simple + (b"*" if step.repeated else b"")


class _Automaton:
    """The states of a glob that are active at the same time.

    Bit n of a number says that node n may come next.
    """

    def __init__(self, steps: Sequence[_Step]) -> None:
        self._stay, self._leave = [0] * 256, [0] * 256
        self._skips = list[tuple[int, int]]()  # a node that needs no byte, and the nodes that may come in its place
        node = 0
        for step in steps:
            if step.folders:
                self._skips.append((1 << node, 1 << (node + 1) | 1 << (node + 3)))
                self._add(node + 1, _Step(_ANY, repeated=True))
                self._add(node + 2, _Step(frozenset(b"/")))
                node += 3
            else:
                self._add(node, step)
                node += 1
        self._end = 1 << node

    def _add(self, node: int, step: _Step) -> None:
        bytes_of = self._stay if step.repeated else self._leave
        for byte in step.accepted:
            bytes_of[byte] |= 1 << node
        if step.repeated:
            self._skips.append((1 << node, 1 << (node + 1)))

    def matches(self, subject: bytes) -> bool:
        nodes = self._skipped(1)
        for byte in subject:
            nodes = self._skipped(nodes & self._stay[byte] | (nodes & self._leave[byte]) << 1)
            if not nodes:
                return False
        return bool(nodes & self._end)

    def _skipped(self, nodes: int) -> int:
        for node, following in self._skips:  # in order, so that one skip leads to the next
            if nodes & node:
                nodes |= following
        return nodes


@dataclass(frozen=True)
class Rules:
    """The patterns of one ignore file.

    They apply below the folder `base`: a path with `/` at its end, or empty.
    """

    base: bytes
    patterns: Sequence[Pattern]

    @classmethod
    def of(cls, content: bytes, base: bytes) -> Rules:
        """Read an ignore file.

        Lines end with a line feed; one carriage return may precede it.
        """
        lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
        read = [_pattern(line.removesuffix(b"\r").partition(b"\0")[0]) for line in lines if not line.startswith(b"#")]
        return cls(base, [pattern for pattern in read if pattern is not None])

    def verdict(self, path: bytes, *, folder: bool) -> bool | None:
        """Return whether the last matching pattern ignores a path.

        None when no pattern matches.
        """
        name = path.rpartition(b"/")[2]
        below = path[len(self.base) :]
        for pattern in reversed(self.patterns):
            subject = below if pattern.by_path else name
            if (folder or not pattern.folders_only) and pattern.matches(subject):
                return not pattern.negated
        return None


def ignored(rules: Sequence[Rules], path: bytes, *, folder: bool) -> bool:
    """Return whether git ignores a path whose parent folders are not ignored.

    The last rules win.
    """
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
    return Pattern(negated, folders_only, by_path, text.removeprefix(b"/") if by_path else text)


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


def _glob(text: bytes, *, paths: bool) -> list[_Step]:
    """Return the steps of a glob of git; with `paths` only `**` matches a slash."""
    other = _NO_SLASH if paths else _ANY
    steps = list[_Step]()
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
                    steps.append(_Step(_ANY, folders=True))
                    index += 1
                else:
                    steps.append(_Step(_ANY, repeated=True))
            else:
                steps.append(_Step(_NO_SLASH, repeated=True))
        elif byte == b"?":
            steps.append(_Step(other))
        elif byte == b"[":
            accepted, index = _bracket(text, index, paths=paths)
            steps.append(_Step(accepted))
        elif byte == b"\\":
            steps.append(_Step(frozenset(text[index : index + 1])))
            index += 1
        else:
            steps.append(_Step(frozenset(byte)))
    return steps


def _bracket(text: bytes, index: int, *, paths: bool) -> tuple[frozenset[int], int]:
    """Return the bytes of the set after `[`, or none, and the index after its `]`."""
    negated = text[index : index + 1] in (b"!", b"^")
    try:
        matched, end = _members(text, index + negated)
    except LookupError:
        return frozenset(), len(text)
    members = set(range(1, 256)) - matched if negated else matched
    return frozenset(members - {0x2F} if paths else members), end


def _members(text: bytes, index: int) -> tuple[set[int], int]:
    """Return the bytes that a set names, and the index after its `]`.

    Raises LookupError when git cannot read it.
    """
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
    """Return whether the class name that begins at `index` ends with `:]`.

    Otherwise `[` is a plain member.
    """
    end = text.find(b"]", index)
    return end > index and text[end - 1 : end] == b":"
