"""The loose objects of a git directory, written without git.

No git process reads a workspace: it would apply the workspace's attributes, refuse nested repositories and wait for a
named pipe. An object is written under a temporary name and renamed, so it is whole or absent.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

_PIECE = 1 << 18
_LEVEL = 1
_SAMPLE, _SHRUNK = 1 << 15, 0.97
_TEMPORARY = "tmp_obj_"
FOLDER_MODE, LINK_MODE, FILE_MODE, PROGRAM_MODE = 0o040000, 0o120000, 0o100644, 0o100755
OID_PATTERN = r"[0-9a-f]{40}"

_numbers = itertools.count()


class MissingObject(Exception):
    """Raised for an object that is not stored, or that a power cut damaged."""


class ChangedFile(Exception):
    """Raised for a file whose size changes while it is read."""


@dataclass(frozen=True)
class TreeEntry:
    """One entry of a tree.

    `mode` is git's, `name` has no slash, `oid` is in hexadecimal.
    """

    mode: int
    name: bytes
    oid: str

    @property
    def folder(self) -> bool:
        return self.mode == FOLDER_MODE


class Objects:
    """The objects below `folder`.

    With `trusted` false an object that exists is written again: a power cut may have damaged it.
    """

    def __init__(self, folder: Path, *, trusted: bool = True) -> None:
        self._folder = str(folder)
        self._trusted = trusted
        self._written = set[str]()

    def put(self, kind: str, content: bytes) -> str:
        """Store an object; returns its id."""
        whole = b"%s %d\0%s" % (kind.encode(), len(content), content)
        oid = hashlib.sha1(whole, usedforsecurity=False).hexdigest()
        if not self._is_stored(oid):
            with self._new_file() as output:
                output.write(zlib.compress(whole, _LEVEL))
                self._keep(output, oid)
        return oid

    def put_file(self, descriptor: int, size: int) -> str:
        """Store the content of an open file as a blob.

        Raises ChangedFile when its size has changed.
        """
        if size <= _PIECE:
            content = b"".join(_pieces(descriptor, size + 1))
            if len(content) != size:
                raise ChangedFile
            return self.put("blob", content)
        head = b"blob %d\0" % size
        pieces = _pieces(descriptor, size + 1)
        first = next(pieces, b"")
        digest, packer, left = hashlib.sha1(head, usedforsecurity=False), zlib.compressobj(_level_for(first)), size
        with self._new_file() as output:
            output.write(packer.compress(head))
            for piece in itertools.chain([first], pieces):
                left -= len(piece)
                digest.update(piece)
                output.write(packer.compress(piece))
            output.write(packer.flush())
            if left != 0:
                raise ChangedFile
            self._keep(output, digest.hexdigest())
        return digest.hexdigest()

    def put_tree(self, entries: Iterable[TreeEntry]) -> str:
        """Store a tree; returns its id."""
        # git sorts a folder as if its name ended with a slash.
        ordered = sorted(entries, key=lambda entry: entry.name + b"/" if entry.folder else entry.name)
        return self.put("tree", b"".join(b"%o %s\0%s" % (e.mode, e.name, bytes.fromhex(e.oid)) for e in ordered))

    def tree(self, oid: str) -> list[TreeEntry]:
        """Read a tree. Raises MissingObject."""
        content, found, index = b"".join(self.open(oid, "tree")[1]), list[TreeEntry](), 0
        while index < len(content):
            space = content.index(b" ", index)
            zero = content.index(b"\0", space)
            mode, name = int(content[index:space], 8), content[space + 1 : zero]
            index = zero + 21
            found.append(TreeEntry(mode, name, content[zero + 1 : index].hex()))
        return found

    def entry(self, tree: str, path: bytes) -> TreeEntry | None:
        """Find a path in a tree; None when it is not there. Raises MissingObject."""
        *folders, name = path.split(b"/")
        for folder in folders:
            found = next((each for each in self.tree(tree) if each.name == folder and each.folder), None)
            if found is None:
                return None
            tree = found.oid
        return next((each for each in self.tree(tree) if each.name == name), None)

    def size(self, oid: str) -> int:
        """Return the bytes of a blob. Raises MissingObject."""
        size, content = self.open(oid, "blob")
        content.close()
        return size

    def blob(self, oid: str) -> bytes:
        """Read a blob. Raises MissingObject."""
        return b"".join(self.open(oid, "blob")[1])

    def open(self, oid: str, kind: str) -> tuple[int, Generator[bytes, None, None]]:
        """Return the size of an object and its content in pieces.

        Raises MissingObject, also while it is read.
        """
        content = self._inflated(oid)
        begin = next(content, b"")
        head = re.match(rb"([a-z]+) ([0-9]+)\0", begin)
        if head is None or head[1] != kind.encode():
            raise MissingObject(oid)
        size = int(head[2])
        return size, _content(oid, size, begin[head.end() :], content)

    def all(self) -> Iterator[tuple[str, Path]]:
        """Yield the id and the file of every object."""
        for folder in os.scandir(self._folder):
            if re.fullmatch(r"[0-9a-f]{2}", folder.name):
                for name in os.listdir(folder.path):
                    if re.fullmatch(r"[0-9a-f]{38}", name):
                        yield folder.name + name, Path(folder.path, name)

    def reachable(self, trees: Iterable[str], check: Callable[[], None]) -> set[str]:
        """Return the ids of these trees and of all objects in them.

        Objects that are not stored are skipped.
        """
        found, left = set[str](), list(trees)
        while left:
            check()
            tree = left.pop()
            if tree in found:
                continue
            found.add(tree)
            with contextlib.suppress(MissingObject):
                for entry in self.tree(tree):
                    if entry.folder:
                        left.append(entry.oid)
                    else:
                        found.add(entry.oid)
        return found

    def temporary(self) -> Iterator[Path]:
        """Yield the files that killed processes left half written."""
        return Path(self._folder).glob(f"{_TEMPORARY}*")

    def _place(self, oid: str) -> str:
        return f"{self._folder}/{oid[:2]}/{oid[2:]}"

    def _is_stored(self, oid: str) -> bool:
        return (self._trusted or oid in self._written) and os.path.exists(self._place(oid))

    @contextlib.contextmanager
    def _new_file(self) -> Iterator[IO[bytes]]:
        """Open a file that is removed at the end of the block.

        It stays if `_keep` put it in its place.
        """
        name = f"{self._folder}/{_TEMPORARY}{os.getpid()}_{next(_numbers)}"
        try:
            with open(name, "xb") as output:
                yield output
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)

    def _keep(self, output: IO[bytes], oid: str) -> None:
        output.flush()
        place = self._place(oid)
        try:
            os.rename(output.name, place)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(place), mode=0o700, exist_ok=True)
            os.rename(output.name, place)
        self._written.add(oid)

    def _inflated(self, oid: str) -> Generator[bytes, None, None]:
        """Yield an object with its head. Raises MissingObject."""
        try:
            with open(self._place(oid), "rb") as file:
                unpacker = zlib.decompressobj()
                while data := file.read(_PIECE):
                    while data:
                        piece = unpacker.decompress(data, _PIECE)
                        data = unpacker.unconsumed_tail
                        if piece:
                            yield piece
                yield unpacker.flush()
        except (OSError, zlib.error):
            raise MissingObject(oid) from None
        if not unpacker.eof:
            raise MissingObject(oid)


def _level_for(piece: bytes) -> int:
    """Return the compression level for a large file.

    None if the end of its first piece does not shrink, as with a picture or a zip. To compress such a file takes ten
    times as long as the rest of its snapshot.
    """
    sample = piece[-_SAMPLE:]
    return _LEVEL if len(zlib.compress(sample, _LEVEL)) < _SHRUNK * len(sample) else 0


def blob_id(descriptor: int, size: int) -> str:
    """Return the id that the content of an open file has as a blob of this size."""
    digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    for piece in _pieces(descriptor, size + 1):
        digest.update(piece)
    return digest.hexdigest()


def blob_id_of(content: bytes) -> str:
    """Return the id that bytes have as a blob."""
    return hashlib.sha1(b"blob %d\0%s" % (len(content), content), usedforsecurity=False).hexdigest()


def _pieces(descriptor: int, most: int) -> Iterator[bytes]:
    """Yield the content of an open file, at most so many bytes."""
    while most > 0 and (piece := os.read(descriptor, min(_PIECE, most))):
        most -= len(piece)
        yield piece


def _content(oid: str, size: int, begin: bytes, rest: Generator[bytes, None, None]) -> Generator[bytes, None, None]:
    """Yield the content of an object whose head has been read.

    Raises MissingObject when it has another size.
    """
    with contextlib.closing(rest):
        yield begin
        size -= len(begin)
        for piece in rest:
            size -= len(piece)
            yield piece
    if size != 0:
        raise MissingObject(oid)
