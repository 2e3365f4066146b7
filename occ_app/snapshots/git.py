"""The git program on a directory of snapshots; only this module starts it.

It is bounded and ended here, too. git sees objects alone. It has no work tree, an environment of a few fixed
variables, and settings on its command line, which override any file: no configuration, hook, filter or program of a
user or a workspace is read.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from occ_app.snapshots.objects import MissingObject

_PIECE = 1 << 16
_BINARY_FROM = "16m"  # a larger file is not compared line by line
_SETTINGS = {
    "core.attributesFile": "/dev/null",
    "core.bare": "true",
    "core.bigFileThreshold": _BINARY_FROM,
    "core.excludesFile": "/dev/null",
    "core.fsmonitor": "false",
    "core.hooksPath": "/dev/null",
    "core.pager": "cat",
    "core.quotePath": "false",
    "diff.external": "",
    "gc.auto": "0",
}
_SKELETON = {
    "HEAD": "ref: refs/heads/none\n",
    "config": "[core]\n\trepositoryformatversion = 0\n\tbare = true\n",
    "info/attributes": "* -text !eol -ident !working-tree-encoding -filter !diff -merge\n",
}


class TooSlow(Exception):
    """Raised when git needs longer than it may."""


@dataclass(frozen=True)
class Git:
    """The program `path` on one directory."""

    path: str
    directory: Path

    def output(self, arguments: Sequence[str | bytes], seconds: float) -> bytes:
        """Run it and return its output. Raises TooSlow, MissingObject when it fails."""
        return b"".join(self.stream(arguments, seconds))

    def stream(self, arguments: Sequence[str | bytes], seconds: float) -> Iterator[bytes]:
        """Run git and yield its output in pieces.

        It ends with the iteration. The time that the reader takes counts. Raises TooSlow, MissingObject.
        """
        if not self.directory.is_dir():  # its workspace was deleted
            raise MissingObject(str(self.directory))
        settings = [word for name, value in _SETTINGS.items() for word in ("-c", f"{name}={value}")]
        process = subprocess.Popen(
            [self.path, "--no-pager", *settings, *arguments],
            cwd=self.directory,
            env=_environment(self.directory),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            yield from _read(process, time.monotonic() + seconds)
            if process.wait(seconds) != 0:
                raise MissingObject(str(self.directory))
        except subprocess.TimeoutExpired:
            raise TooSlow from None
        finally:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


def find(path: str) -> str | None:
    """Return the git on this PATH, None when there is none."""
    return shutil.which("git", path=path)


def make_directory(directory: Path) -> None:
    """Make a git directory, unless it is there."""
    for folder in ("objects", "refs", "info"):
        (directory / folder).mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, content in _SKELETON.items():
        with contextlib.suppress(FileExistsError), (directory / name).open("x") as file:
            file.write(content)


def _read(process: subprocess.Popen[bytes], deadline: float) -> Iterator[bytes]:
    assert process.stdout is not None  # noqa: S101 - it is a pipe
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise TooSlow
            piece = os.read(process.stdout.fileno(), _PIECE)
            if not piece:
                return
            yield piece
            if time.monotonic() > deadline:
                raise TooSlow


def _environment(directory: Path) -> dict[str, str]:
    return {
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_DIR": str(directory),
        "GIT_NO_REPLACE_OBJECTS": "1",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_TERMINAL_PROMPT": "0",
        "HOME": str(directory),
        "LC_ALL": "C",
        "PATH": os.defpath,
    }
