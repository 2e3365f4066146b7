"""The files of a workspace's latest snapshot.

With it the next snapshot reads only changed files. It belongs to one boot: after a power cut objects may be missing
that it names.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from occ_app.system.files import write_file

_VERSION = 1

# mode as git has it, size, mtime, ctime, inode, id of its blob; times in nanoseconds
FileState = tuple[int, int, int, int, int, str]


@dataclass
class Folder:
    """A folder of a snapshot.

    It has the content of its ignore file, its files by name, and the id of its tree or None.
    """

    ignore: str = ""
    tree: str | None = None
    files: dict[str, FileState] = field(default_factory=dict)


@dataclass(frozen=True)
class Index:
    """The folders of a snapshot by path, the root as "".

    `exclude` are the patterns of the repository's info/exclude. `tree` is the snapshot's id, None when there is none
    of this boot.
    """

    tree: str | None = None
    exclude: str = ""
    folders: dict[str, Folder] = field(default_factory=dict)


def load(path: Path, boot: str) -> Index:
    """Read an index.

    It is empty for another boot or version, or when it cannot be read.
    """
    try:
        content = json.loads(path.read_bytes())
        if (content["version"], content["boot"]) != (_VERSION, boot):
            return Index()
        folders = {
            name: Folder(ignore, tree, {file: tuple(state) for file, state in files.items()})
            for name, (ignore, tree, files) in content["folders"].items()
        }
        return Index(content["tree"], content["exclude"], folders)
    except (OSError, ValueError, KeyError, TypeError):
        return Index()


def save(path: Path, index: Index, boot: str) -> None:
    """Write an index in one step."""
    folders = {name: [each.ignore, each.tree, each.files] for name, each in index.folders.items()}
    content = {"version": _VERSION, "boot": boot, "tree": index.tree, "exclude": index.exclude, "folders": folders}
    write_file(path, json.dumps(content, separators=(",", ":")))  # ASCII: names need not be UTF-8


def as_text(name: bytes) -> str:
    """Return bytes of any kind as text that `as_bytes` turns back."""
    return name.decode("utf-8", "surrogateescape")


def as_bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")
