"""The history of a git work tree for an upload.

It is a new repository, made from a bundle. It has the branches, the tags and the current commit, and nothing else of
the user's repository: no configuration, hooks, remotes, stash, reflogs, nor links to object stores elsewhere.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import IO

import click

from occ_app.cli.gitignore import git_environment

_KEPT = ("HEAD", "index", "packed-refs", "objects", "refs")


def check(folder: Path) -> None:
    """Raise UsageError unless a folder is the top of a git work tree with a commit."""
    if shutil.which("git") is None:
        raise click.UsageError("--git needs git, which is not installed here.")
    top = _git(["-C", str(folder), "rev-parse", "--show-toplevel"])
    if top.returncode != 0 or Path(os.fsdecode(top.stdout.rstrip(b"\n"))).resolve() != folder.resolve():
        raise click.UsageError(f"--git sends a whole git work tree, and {folder} is not the top of one.")
    if _git(["-C", str(folder), "rev-parse", "-q", "--verify", "HEAD^{commit}"]).returncode != 0:
        raise click.UsageError(f"{folder} has no commit yet; leave out --git.")


def add(folder: Path, archive: IO[bytes], scratch: Path) -> None:
    """Add the history of a work tree to a zip, as `.git`.

    `scratch` is an empty folder. Raises UsageError.
    """
    bundle, clone = scratch / "bundle", scratch / "clone"
    _run(["-C", str(folder), "bundle", "create", "-q", str(bundle), "HEAD", "--branches", "--tags"])
    _run(["clone", "-q", "--bare", "--template=", str(bundle), str(clone)])
    _run(["--git-dir", str(clone), "read-tree", "HEAD"])  # otherwise every file would be shown as deleted
    with zipfile.ZipFile(archive, "a", zipfile.ZIP_STORED) as zipped:
        for name in _KEPT:
            root = clone / name
            paths = sorted(root.rglob("*")) if root.is_dir() else [root] if root.exists() else []
            for path in [root, *paths] if root.is_dir() else paths:
                if path.relative_to(clone).as_posix() != "objects/info/alternates":
                    zipped.write(path, f".git/{path.relative_to(clone).as_posix()}")


def _run(arguments: list[str]) -> None:
    done = _git(arguments)
    if done.returncode != 0:
        reason = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise click.UsageError(f"The history cannot be sent ({' '.join(reason)}); leave out --git.")


def _git(arguments: list[str]) -> subprocess.CompletedProcess[bytes]:
    """Run git without the configuration of the user and of the system."""
    isolated = {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull, "LC_ALL": "C"}
    return subprocess.run(
        ["git", "-c", "core.fsmonitor=false", "-c", f"core.hooksPath={os.devnull}", *arguments],
        env=git_environment() | isolated,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
