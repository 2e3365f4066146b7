"""Files of an upload that an untrusted workspace does not get.

They would make Claude Code or git run something.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

_CLAUDE = "settings, commands and hooks of Claude Code run programs"
_CLAUDE_TEXTS = (["claude.md"], ["agents.md"])
_GIT = "git's configuration and hooks run programs"
# Files of a git directory that configure it, or that name another directory with its configuration.
_GIT_FILES = frozenset({"config", "config.worktree", "commondir", "gitdir", "alternates"})
_GIT_DATA = ("refs", "logs")  # below .git; a branch may be called config


def skip_reason(path: str, *, folder: bool = False) -> str | None:
    """Return why an entry is left out, as far as its path tells; None when it is not."""
    lowered = path.lower()
    if ".claude" not in lowered and ".mcp.json" not in lowered and ".git" not in lowered:
        return None
    parts = lowered.split("/")
    for index, part in enumerate(parts):
        rest = parts[index + 1 :]
        if part == ".claude" and rest and not (rest in _CLAUDE_TEXTS or (rest[0] == "rules" and len(rest) > 1)):
            return _CLAUDE
        if part == ".mcp.json":
            return "MCP servers are programs"
        if part == ".git" and not rest and not folder:
            return "a file in place of .git names another git directory, whose configuration runs programs"
        if part == ".git" and rest and rest[0] not in _GIT_DATA and _configures_git(rest):
            return _GIT
    return None


def skip_reasons(paths: Mapping[str, bool]) -> dict[str, str]:
    """Return the reason for each path that is left out.

    `paths` maps all paths of an upload to whether they are folders.
    """
    reasons = {}
    git_directories = _bare_repositories(paths)
    for path, folder in paths.items():
        reason = skip_reason(path, folder=folder)
        if reason is None and git_directories:
            parts = path.lower().split("/")
            for index in range(len(parts)):
                if "/".join(parts[:index]) in git_directories and _configures_git(parts[index : index + 2]):
                    reason = _GIT
        if reason is not None:
            reasons[path] = reason
    return reasons


def _configures_git(rest: list[str]) -> bool:
    """Return whether a file below a git directory is configuration or a hook.

    The file is given as the parts of its path.
    """
    return rest[-1] in _GIT_FILES or "hooks" in rest


def _bare_repositories(paths: Iterable[str]) -> set[str]:
    """Return the folders, in lower case, that git takes for git directories.

    Their names do not matter. Such a folder has HEAD beside objects and refs, or beside commondir.
    """
    folders: dict[str, set[str]] = {}
    for path in paths:
        parts = path.lower().split("/")
        for index, part in enumerate(parts):
            if part in ("head", "objects", "refs", "commondir"):
                folders.setdefault("/".join(parts[:index]), set()).add(part)
    return {
        folder
        for folder, names in folders.items()
        if "head" in names and ("commondir" in names or {"objects", "refs"} <= names)
    }
