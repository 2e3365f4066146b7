"""The memory of a project: the text of its memory files, collected by OCC.

With user settings alone the CLI reads no memory of a project, and with the project's settings it would run the hooks
of the project. So OCC reads the same files as the CLI, by the CLI's rules (docs/claude-cli.md), and passes them as
text. A file counts only when it is in the workspace after all links are resolved.
"""

from __future__ import annotations

import os
import re
import stat
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

_DEEPEST = 4  # from a file of the memory through so many imports, as the CLI does
_MAX_BYTES = 1 << 20
_MAX_FILES = 500
_MAX_FOLDERS = 2000  # looked through for files of subfolders, those near the root first

_IMPORT = re.compile(r"(?:^|\s)@((?:[^\s\\]|\\ )+)")
_COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.DOTALL)
_FENCE = re.compile(r"^\s{0,3}(?:(?:[-*+>]|\d+[.)])\s+)*\s*(`{3,}|~{3,})")
_HTML_BLOCK = re.compile(
    r"^ {0,3}</?(?:div|p|table|ul|ol|li|section|details|summary|h[1-6]|pre|center|script|style)\b", re.I
)
_LIST_ITEM = re.compile(r"^\s*(?:[-*+]|\d+[.)])\s")
_MARKERS = re.compile(r"^[\s>]+|\*+|</?[A-Za-z][^>]*>")
_CODE_SPAN = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)", re.DOTALL)
_LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")
_FRONT_MATTER = re.compile(r"\A---\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
# Kinds of files that are no text; the CLI imports by the ending, too.
_NO_TEXT = re.compile(
    r"\.(?:bin|exe|so|o|a|dll|class|jar|pyc|zip|gz|tar|7z|png|jpe?g|gif|webp|ico|bmp|pdf|docx?|xlsx?|pptx?"
    r"|mp3|mp4|mov|avi|wav|ttf|otf|woff2?|sqlite|db)",
    re.IGNORECASE,
)


@dataclass
class _Reading:
    root: Path
    seen: set[Path] = field(default_factory=set)
    parts: list[str] = field(default_factory=list)
    bytes: int = 0


def read(workspace: Path) -> str:
    """Return the memory of a workspace as one text, empty when there is none.

    At most 1 MiB of 500 files.
    """
    reading = _Reading(workspace.resolve())
    outcomes = [_add(reading, workspace / name, 0) for name in ("CLAUDE.md", ".claude/CLAUDE.md")]
    for rule in _rules(workspace / ".claude/rules"):
        _add(reading, rule, 0, rule=True)
    outcomes.append(_add(reading, workspace / "CLAUDE.local.md", 0))
    if not any(outcomes):
        for name in ("AGENTS.md", ".claude/AGENTS.md"):
            _add(reading, workspace / name, 0)
    below = _of_subfolders(reading.root)
    if below:
        reading.parts.append(
            "Some folders have their own instructions. Before you read or change files in such a folder or below it,"
            f" read its file: {', '.join(below)}"
        )
    return "\n\n".join(reading.parts)


def _of_subfolders(root: Path) -> list[str]:
    """Return the paths of memory files that the CLI reads later by itself.

    It reads one when it opens a file beside or below it. Their paths are named to the model: most runs touch few of
    the folders. Folders that are links, hidden ones and installed packages are left out.
    """
    found, queue, seen = list[str](), deque([root]), 0
    while queue and seen < _MAX_FOLDERS and len(found) < _MAX_FILES:
        folder, seen = queue.popleft(), seen + 1
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:
            continue
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                continue
            if entry.name == ".claude" and folder != root:
                places = [Path(entry.path, "CLAUDE.md"), *_rules(Path(entry.path, "rules"))]
            elif entry.name.startswith(".") or entry.name == "node_modules":
                continue
            else:
                queue.append(Path(entry.path))
                places = [Path(entry.path, name) for name in ("CLAUDE.md", "CLAUDE.local.md")]
            found += [path.relative_to(root).as_posix() for path in places if _lies_in(root, path)]
    return found[:_MAX_FILES]


def _lies_in(root: Path, path: Path) -> bool:
    try:
        real = path.resolve(strict=True)
        return real.is_relative_to(root) and real.is_file() and real.stat().st_size > 0
    except (OSError, RuntimeError):
        return False


def _rules(folder: Path) -> Iterator[Path]:
    """Yield the rules in a folder and below it, in order.

    Folders that are links are not entered.
    """
    if folder.is_symlink() or folder.parent.is_symlink():
        return
    for parent, folders, files in os.walk(folder):
        folders.sort()
        yield from (Path(parent, name) for name in sorted(files) if name.endswith(".md"))


def _add(reading: _Reading, path: Path, depth: int, *, rule: bool = False) -> bool:
    """Add a file, then the files it imports.

    Returns False for one that is missing, outside the workspace, empty or not text.
    """
    try:
        real = path.resolve(strict=True)
    except (OSError, RuntimeError, ValueError):  # missing, a loop of links, or a NUL
        return False
    if not real.is_relative_to(reading.root) or real in reading.seen or len(reading.seen) >= _MAX_FILES:
        return False
    reading.seen.add(real)
    text = _text(real, _MAX_BYTES - reading.bytes)
    if text is None or not text.strip():
        return False
    front = _FRONT_MATTER.match(text) if rule else None
    if front is not None:
        if _is_conditional(front.group(1)):
            where = path.relative_to(reading.root) if path.is_relative_to(reading.root) else path.name
            reading.parts.append(
                f"{where} holds rules for some files, which its first lines name: read it before you change them."
            )
            return False
        text = text[front.end() :]
    text = _COMMENT.sub("", text)
    reading.bytes += len(text.encode())
    reading.parts.append(f"Contents of {real} (project instructions):\n\n{text.strip()}")
    if depth < _DEEPEST:
        for name in imports(text):
            _add(reading, _place(real.parent, name), depth + 1)
    return True


def _place(folder: Path, name: str) -> Path:
    """Return the path that an import names.

    A path of the home is not the workspace's.
    """
    return Path(os.devnull) if name.startswith("~") else folder / name


def _text(path: Path, limit: int) -> str | None:
    """Return the text of a regular file of at most `limit` bytes, else None."""
    if _NO_TEXT.fullmatch(path.suffix):
        return None
    try:
        # Not followed: the path is resolved already. Not blocking: a FIFO would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        content = file.read(limit + 1)
    if len(content) > limit or b"\0" in content:
        return None
    return content.decode("utf-8-sig", errors="replace")


def _is_conditional(front_matter: str) -> bool:
    """Return whether a rule's front matter limits it to some paths.

    `**` alone is all of them.
    """
    match = re.search(r"^paths:(.*(?:\n[ \t]*-.*|\n[ \t]+.*)*)", front_matter, re.MULTILINE)
    if match is None:
        return False
    patterns = [part.strip(" \t\n\r\"'-[]") for part in re.split(r"[,\n]", match.group(1))]
    return any(pattern and pattern != "**" for pattern in patterns)


def imports(text: str) -> list[str]:
    """Return the paths that a Markdown text imports by `@path`, in order.

    One in a code block, a code span, a comment or an HTML block is none.
    """
    names = []
    for paragraph in _paragraphs(_COMMENT.sub("", text)):
        plain = _LINK.sub(r" \1 ", _CODE_SPAN.sub("`", paragraph))
        for line in plain.split("\n"):
            for match in _IMPORT.finditer(_MARKERS.sub(" ", line)):
                name = match.group(1).replace("\\ ", " ").partition("#")[0]
                if name:
                    names.append(name)
    return names


def _paragraphs(text: str) -> Iterator[str]:
    """Yield the prose of a Markdown text.

    Lines are joined unless a blank line or a block is between them.
    """
    prose: list[str] = []
    fence = ""
    html = in_list = False
    blank = True
    for line in text.splitlines():
        opening = _FENCE.match(line)
        if fence:
            if opening and opening.group(1).startswith(fence) and line.strip().strip(fence[0]) == "":
                fence = ""
            continue
        if not line.strip():
            yield "\n".join(prose)
            prose, html, blank = [], False, True
            continue
        if opening or html or (_HTML_BLOCK.match(line) and not prose):
            fence, html = (opening.group(1), False) if opening and not html else ("", True)
            yield "\n".join(prose)
            prose = []
            continue
        indented = line.startswith(("    ", "\t"))
        if not (indented and blank and not in_list):
            prose.append(line)
            in_list = bool(_LIST_ITEM.match(line)) or (in_list and line[:1] in " \t")
            blank = False
    yield "\n".join(prose)
