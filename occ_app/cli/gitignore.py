"""Which files of a folder go into an upload: all but .git, OCC's own homes, and what .gitignore files leave out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from pathspec import GitIgnoreSpec


def files_to_send(
    folder: Path, never: Collection[Path] = (), link: Callable[[Path], object] = lambda _: None
) -> Iterator[Path]:
    """The files and empty folders below `folder`, in order, links, special files and the folders `never` left out.

    `link` is called with each link that is left out.
    """
    yield from _walk(folder, [], {path.resolve() for path in never}, link)


def _walk(
    folder: Path, rules: list[tuple[Path, GitIgnoreSpec]], never: Collection[Path], link: Callable[[Path], object]
) -> Iterator[Path]:
    ignore = folder / ".gitignore"
    if ignore.is_file():
        lines = ignore.read_text(encoding="utf-8", errors="replace").splitlines()
        rules = [*rules, (folder, GitIgnoreSpec.from_lines(lines))]
    for path in sorted(folder.iterdir()):
        if path.name == ".git" or path in never or _ignored(path, rules):
            continue
        if path.is_symlink():
            link(path)
        elif path.is_dir():
            yield path
            yield from _walk(path, rules, never, link)
        elif path.is_file():
            yield path


def _ignored(path: Path, rules: list[tuple[Path, GitIgnoreSpec]]) -> bool:
    """Whether git would ignore it: the deepest .gitignore that says anything decides."""
    for base, spec in reversed(rules):
        name = path.relative_to(base).as_posix() + ("/" if path.is_dir() else "")
        verdict = spec.check_file(name).include
        if verdict is not None:
            return verdict
    return False
