"""The files of a folder that go into an upload.

In a git work tree these are the files that git lists, elsewhere all that no .gitignore names. Links, special files,
OCC's own homes and names that an agent refuses are left out.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from occ_app.system.ignore_patterns import Rules, ignored

# Variables by which the caller of a hook says which repository git works on; here the folder says it.
_REPOSITORY_VARIABLES = (
    *("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY"),
    *("GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_IMPLICIT_WORK_TREE"),
    *("GIT_LITERAL_PATHSPECS", "GIT_GLOB_PATHSPECS", "GIT_NOGLOB_PATHSPECS", "GIT_ICASE_PATHSPECS"),
)

PULL_FOLDER = ".occ-pull"
"""The staging folder of `occ pull`, which is never sent."""

LeaveOut = Callable[[Path, str], object]
"""Called with a path that is left out, and the reason."""


def files_to_send(folder: Path, never: Collection[Path] = (), leave_out: LeaveOut = lambda *_: None) -> Iterator[Path]:
    """Yield the files below `folder`, in order; without git its empty folders, too.

    `leave_out` is called with each link, special file and folder of `never` that git would have sent.
    """
    excluded = {path.resolve() for path in never}
    listed = _listed_by_git(folder)
    paths = _walk(folder) if listed is None else sorted(listed)
    hidden: Path | None = None
    for path in paths:
        if PULL_FOLDER in path.relative_to(folder).parts:
            continue
        if hidden is not None and path.is_relative_to(hidden):
            continue
        reason = _obstacle(path)
        home = next((each for each in (path, *path.parents) if each in excluded), None)
        if home is not None:
            hidden, path, reason = home, home, "it is OCC's own folder, with its token"  # noqa: PLW2901 - the folder is named, once
        if reason is None:
            yield path
        else:
            leave_out(path, reason)


def _obstacle(path: Path) -> str | None:
    """Return why a path cannot be sent; None when it can."""
    try:
        mode = path.lstat().st_mode
    except OSError:
        return "it is gone"
    if stat.S_ISLNK(mode):
        return "links are not followed"
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        return "only files and folders are sent"
    readable = os.access(path, os.R_OK | os.X_OK if stat.S_ISDIR(mode) else os.R_OK)
    return None if readable else "it cannot be read"


def names_as_ignored(folder: Path, path: Path) -> bool:
    """Whether git ignores a path below a folder, there or not; False without git."""
    git = shutil.which("git")
    if git is None:
        return False
    command = [git, "-C", str(folder), "check-ignore", "-q", "--", str(path)]
    done = subprocess.run(command, env=git_environment(), stdin=subprocess.DEVNULL, capture_output=True, check=False)
    return done.returncode == 0


# -- with git


def git_environment() -> dict[str, str]:
    """Return the variables to run git on a repository named by its arguments."""
    return {name: value for name, value in os.environ.items() if name not in _REPOSITORY_VARIABLES}


def _listed_by_git(folder: Path) -> list[Path] | None:
    """Return the files and links that git lists below a folder of a work tree.

    Submodules are entered. None without git.
    """
    git = shutil.which("git")
    if git is None:
        return None
    environment = git_environment()
    # Nothing of the repository is run: its fsmonitor would be.
    command = [git, "-C", str(folder), "-c", "core.fsmonitor=false", "ls-files", "-coz", "--exclude-standard"]
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode != 0:
        return None
    # A path in conflict is listed once for each side, hence the set.
    return [entry for name in set(done.stdout.split(b"\0")) - {b""} for entry in _entered(folder, os.fsdecode(name))]


def _entered(folder: Path, name: str) -> Iterator[Path]:
    """Yield a path that git listed if it exists.

    Of a repository inside the work tree, yield its files.
    """
    path = folder / name
    if _missing(folder, path):
        return
    if path.is_symlink() or not path.is_dir():
        yield path
    elif _is_repository(path):
        listed = _listed_by_git(path)
        yield from _walk(path) if listed is None else listed


def _missing(folder: Path, path: Path) -> bool:
    """Return whether a listed path does not exist.

    A path behind a link that replaced a folder counts as missing.
    """
    parents = path.relative_to(folder).parents
    return not os.path.lexists(path) or any((folder / parent).is_symlink() for parent in parents if parent.name)


# -- without git


def _walk(folder: Path) -> Iterator[Path]:
    """Yield the files, links and empty folders that git would list, in order."""
    root = next((each for each in (folder, *folder.parents) if _is_repository(each)), None)
    rules = [Rules.of(_content(path), b"") for path in _shared_ignore_files(root)] if root is not None else []
    base = root or folder
    for parent in [each for each in reversed(folder.parents) if each.is_relative_to(base)]:
        rules.append(_rules_of(parent, base))
        below = next(each for each in (folder, *folder.parents) if each.parent == parent)
        if ignored(rules, _bytes(below, base), folder=True):
            return
    yield from _walk_below(folder, base, rules)


def _walk_below(folder: Path, base: Path, rules: list[Rules]) -> Iterator[Path]:
    rules = [*rules, _rules_of(folder, base)]
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return  # its own entry says that it cannot be read
    for entry in entries:
        path = folder / entry.name
        is_folder = entry.is_dir(follow_symlinks=False)
        if entry.name == ".git" or ignored(rules, _bytes(path, base), folder=is_folder):
            continue
        if is_folder and _is_repository(path):
            yield from _walk(path)
            continue
        yield path
        if is_folder:
            yield from _walk_below(path, base, rules)


def _bytes(path: Path, base: Path) -> bytes:
    return os.fsencode(path.relative_to(base))


def _rules_of(folder: Path, base: Path) -> Rules:
    """Return the rules of a folder's .gitignore.

    git does not read one through a link.
    """
    below = os.fsencode(folder.relative_to(base)) + b"/" if folder != base else b""
    path = folder / ".gitignore"
    return Rules.of(b"" if path.is_symlink() else _content(path), below)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes() if path.is_file() else b""
    except OSError:
        return b""


def _is_repository(folder: Path) -> bool:
    """Return whether git takes a folder as the top of a work tree."""
    mark = folder / ".git"
    return _content(mark).startswith(b"gitdir:") or (
        (mark / "HEAD").is_file() and (mark / "objects").is_dir() and (mark / "refs").is_dir()
    )


def _shared_ignore_files(root: Path) -> list[Path]:
    """Return the user's ignore file and the repository's.

    The one that overrides is last.
    """
    mark = root / ".git"
    if mark.is_file():
        mark = root / _content(mark).decode(errors="replace").removeprefix("gitdir:").strip()
        common = _content(mark / "commondir").decode(errors="replace").strip()
        mark = mark / common if common else mark
    return [*_excludes_file(mark / "config"), mark / "info" / "exclude"]


def _excludes_file(repository: Path) -> list[Path]:
    """Return the ignore file that git's settings name.

    The repository's settings come first, else the user's usual file.
    """
    try:
        home = Path.home()
    except RuntimeError:  # a user without one
        return []
    git = shutil.which("git")
    named = _excludes_file_read(home, repository) if git is None else _excludes_file_told(git, repository)
    if named is None:
        return [Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config") / "git" / "ignore"]
    return [Path(named)] if named else []


def _excludes_file_told(git: str, repository: Path) -> str | None:
    """Return git's own reading of core.excludesFile; None when it is unset.

    For a repository that git does not list.
    """
    scopes = [["--file", str(repository)]] if repository.is_file() else []
    for scope in (*scopes, []):  # the second: of the system, the user, and the environment
        command = [git, "-C", "/", "config", *scope, "--includes", "--type=path", "--get", "core.excludesFile"]
        done = subprocess.run(
            command, env=git_environment(), stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
        if done.returncode == 0:
            return os.fsdecode(done.stdout.rstrip(b"\n"))
    return None


def _excludes_file_read(home: Path, repository: Path) -> str | None:
    """Read core.excludesFile without git.

    Only the files that git reads first are read, and nothing that they include.
    """
    user = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config") / "git" / "config"
    places = [user, Path(os.environ.get("GIT_CONFIG_GLOBAL") or home / ".gitconfig"), repository]
    if not os.environ.get("GIT_CONFIG_NOSYSTEM"):
        places.insert(0, Path(os.environ.get("GIT_CONFIG_SYSTEM") or "/etc/gitconfig"))
    found: str | None = None
    for path in places:
        section = re.findall(rb"^\s*\[\s*core\s*\]([^\[]*)", _content(path), re.IGNORECASE | re.MULTILINE)
        named = re.findall(
            rb"^\s*excludesfile\s*=[ \t]*(?:\"([^\"\n]*)\"|([^\"#;\n]*))",
            b"\n".join(section),
            re.IGNORECASE | re.MULTILINE,
        )
        if named:
            found = os.path.expanduser(os.fsdecode((named[-1][0] or named[-1][1]).strip()))
    return found
