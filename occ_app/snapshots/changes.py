"""The difference of two snapshots: its entries, its sums, and its patch."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from occ_app.snapshots.git import Git, TooSlow
from occ_app.snapshots.objects import Objects

MAX_ENTRIES = 10_000  # of a reply
MAX_PATCHED_BYTES = 32_000_000  # size of a file, before or after, that a patch contains
SUMMARY_SECONDS = 20.0
PATCH_SECONDS = 300.0

_STATUS = {"A": "added", "M": "modified", "T": "modified", "D": "deleted", "R": "renamed"}
_NOTHING = "0" * 40
_COMPARE = ("diff-tree", "-r", "-z", "--raw", "--numstat", "--no-abbrev", "--no-ext-diff", "--no-textconv")
_PATCH = (
    *("diff-tree", "-r", "-p", "--binary", "--full-index", "--no-color", "--no-ext-diff", "--no-textconv"),
    *("--src-prefix=a/", "--dst-prefix=b/"),
)
_RENAMES = ("-M", "-l400")


@dataclass(frozen=True)
class Change:
    """One file that differs.

    `size` is in bytes; of a deleted file, the size before. Modes are git's, in octal. `additions` and `deletions`
    count lines, 0 for a `binary` file.
    """

    path: bytes
    old_path: bytes | None
    status: str
    additions: int
    deletions: int
    binary: bool
    size: int
    mode: str | None
    old_mode: str | None
    oid: str | None
    old_oid: str | None
    patched: bool


@dataclass(frozen=True)
class Summary:
    """The sums of a difference.

    `truncated`: a list or a patch of it is incomplete. `exact` is False when others may have changed files meanwhile.
    """

    files: int
    additions: int
    deletions: int
    truncated: bool
    exact: bool = True

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def compare(git: Git, objects: Objects, base: str, result: str, seconds: float = SUMMARY_SECONDS) -> list[Change]:
    """Return the files that differ, by path. Raises TooSlow and MissingObject."""
    if base == result:
        return []
    try:
        content = git.output([*_COMPARE, *_RENAMES, base, result], seconds)
    except TooSlow:  # the comparison of every added file with every deleted one is the slow part
        content = git.output([*_COMPARE, "--no-renames", base, result], seconds)
    fields = iter(content.removesuffix(b"\0").split(b"\0"))
    raw = list[tuple[list[str], bytes, bytes | None]]()
    for field in fields:
        if not field.startswith(b":"):
            return [_change(objects, *each, lines) for each, lines in zip(raw, _lines(field, fields), strict=True)]
        words = field.decode("ascii").removeprefix(":").split(" ")
        first = next(fields)
        renamed = words[4].startswith("R")
        raw.append((words, next(fields) if renamed else first, first if renamed else None))
    return []


def summary(changes: Sequence[Change], *, complete: bool, exact: bool) -> Summary:
    """Sum up a difference; `complete` is False when a snapshot of it leaves files out."""
    whole = complete and len(changes) <= MAX_ENTRIES and all(change.patched for change in changes)
    additions, deletions = sum(each.additions for each in changes), sum(each.deletions for each in changes)
    return Summary(len(changes), additions, deletions, not whole, exact)


def patch(git: Git, base: str, result: str, changes: Sequence[Change], only: Change | None = None) -> Iterator[bytes]:
    """Yield the patch from one tree to the other, or of one of its changes.

    Files that are too large are left out.
    """
    # A pathspec of exclusions alone means all other files.
    shown = [] if only is None else [b":(top,literal)" + name for name in _names(only)]
    hidden = [b":(top,literal,exclude)" + name for each in changes if not each.patched for name in _names(each)]
    return git.stream([*_PATCH, *_RENAMES, base, result, "--", *shown, *hidden], PATCH_SECONDS)


def _names(change: Change) -> list[bytes]:
    return [change.path] if change.old_path is None else [change.path, change.old_path]


def _lines(first: bytes, rest: Iterator[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Yield the added and deleted lines of each file as git prints them.

    They are numbers, or a dash for a binary file.
    """
    for field in itertools.chain([first], rest):
        added, deleted, path = field.split(b"\t", 2)
        if not path:  # a rename: both names follow
            next(rest), next(rest)
        yield added, deleted


def _change(
    objects: Objects, words: Sequence[str], path: bytes, old_path: bytes | None, lines: tuple[bytes, bytes]
) -> Change:
    old_mode, mode = (None if word == "000000" else word for word in words[:2])
    old_oid, oid = (None if word == _NOTHING else word for word in words[2:4])
    sizes = {each: objects.size(each) for each in (old_oid, oid) if each is not None}
    binary = lines[0] == b"-"
    return Change(
        path=path,
        old_path=old_path,
        status=_STATUS[words[4][0]],
        additions=0 if binary else int(lines[0]),
        deletions=0 if binary else int(lines[1]),
        binary=binary,
        size=sizes[oid or old_oid or ""],
        mode=mode,
        old_mode=old_mode,
        oid=oid,
        old_oid=old_oid,
        patched=oid == old_oid or max(sizes.values()) <= MAX_PATCHED_BYTES,
    )
