"""The file system that the CLI sees under `--sandbox bwrap`.

It has the workspace, the CLI's state, and the system read-only. bubblewrap builds it out of mounts, without root where
the kernel allows user namespaces. The network stays available: the CLI needs it to reach the model.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from occ_app.claude import projects
from occ_app.config.config import Config
from occ_app.errors import StartFailed

_CHECK_SECONDS = 10
_BASE = (
    *("--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc"),
    *("--unshare-pid", "--unshare-ipc", "--unshare-uts", "--die-with-parent"),
    # Root without them could unmount all that hides the homes, or read the disk itself. A user namespace also keeps a
    # bwrap that is installed setuid from doing without one.
    *("--unshare-user", "--cap-drop", "ALL"),
    # The sandbox cannot type into a terminal. It is a process group apart: a signal to bwrap ends all of it.
    "--new-session",
)
# Folders where people and programs keep private files.
_HIDDEN = ("/home", "/root", "/tmp", "/var/tmp", "/run", "/mnt", "/media", "/srv")  # noqa: S108 - hidden, not used
# Hidden files that name resolution needs.
_RESOLVERS = ("/run/systemd/resolve", "/run/resolvconf", "/run/NetworkManager")
# The parts of the CLI's folder that configure it, and scripts beside them, which hooks may name. They are read-only;
# the rest is about other conversations and is hidden.
_CONFIGURES = (
    *("settings.json", "settings.local.json", "policy-limits.json", "remote-settings.json", "keybindings.json"),
    *("CLAUDE.md", "AGENTS.md", "agents", "commands", "hooks", "output-styles", "plugins", "rules", "skills", "themes"),
    "workflows",
)
_SCRIPTS = (".sh", ".py", ".js", ".mjs", ".cjs", ".ts")
# Folders of the CLI that all conversations share; under a sandbox each workspace has separate ones.
_SHARED = ("tasks", "todos", "file-history", "session-env", "plans", "uploads", "image-cache", "debug", "sessions")
_LOGIN, _SETTINGS = ".credentials.json", ".claude.json"
# Parts of `.claude.json` about other folders, or that would start programs when you run the CLI yourself.
_NOT_PASSED_ON = ("projects", "mcpServers", "githubRepoPaths")


def check(config: Config) -> None:
    """Make sure that the configured sandbox works here. Raises StartFailed."""
    if config.sandbox is None:
        return
    try:
        done = subprocess.run(
            [*_bwrap(config), *_BASE, "true"],
            env=dict(config.cli_environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_CHECK_SECONDS,
            check=False,
        )
    except FileNotFoundError:
        raise StartFailed("There is no `bwrap` on PATH; install bubblewrap, or start without --sandbox.") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StartFailed(f"bwrap cannot be run ({type(error).__name__}); start without --sandbox.") from None
    if done.returncode != 0:
        reason = done.stderr.decode(errors="replace").strip()[-200:]
        raise StartFailed(
            f"bwrap cannot make a sandbox here ({reason}); allow user namespaces, or start without --sandbox."
        )


def wrapped(argv: Sequence[str], workspace: Path, config: Config, readable: Sequence[Path] = ()) -> list[str]:
    """Return the argv that runs `argv` in the configured sandbox.

    It runs in the folder `workspace`, and can read the files `readable` wherever they are. `argv` itself without a
    sandbox.
    """
    if config.sandbox is None:
        return list(argv)
    mounts: dict[Path, tuple[str, ...]] = {path: ("--tmpfs", str(path)) for path in _hidden(config)}
    mounts |= {path: ("--ro-bind", str(path), str(path)) for path in (*_read(argv[0], config), *readable)}
    mounts |= {place: ("--bind", str(source), str(place)) for source, place in _state(workspace, config)}
    mounts[workspace] = ("--bind", str(workspace), str(workspace))
    # A parent is mounted before its children.
    ordered = [option for path in sorted(mounts, key=lambda path: len(path.parts)) for option in mounts[path]]
    environment = ("--setenv", "TMPDIR", "/tmp")  # noqa: S108 - the sandbox's own
    return [*_bwrap(config), *_BASE, *ordered, *environment, "--chdir", str(workspace), "--", *argv]


def _bwrap(config: Config) -> list[str]:
    return [shutil.which("bwrap", path=config.cli_environment.get("PATH", os.defpath)) or "bwrap"]


def _hidden(config: Config) -> Iterator[Path]:
    # Resolved, since a home that is a link is to be hidden where it lies.
    private = (config.cli_environment["HOME"], config.home, projects.claude_folder(config.cli_environment))
    paths = {Path(path).resolve() for path in (*_HIDDEN, *private)}
    return (path for path in paths if path.is_dir() and path != Path("/"))


def _read(program: str, config: Config) -> Iterator[Path]:
    """Yield the hidden files that the CLI needs.

    Those that it reads of its configuration folder are among them.
    """
    real = Path(program).resolve()
    yield from (Path(path) for path in _RESOLVERS if os.path.isdir(path))
    folder = Path(program).parent
    # A program that lies in the home itself must not open the home.
    yield Path(program) if any(hidden.is_relative_to(folder.resolve()) for hidden in _hidden(config)) else folder
    yield real
    if "node_modules" in real.parts:
        yield Path(*real.parts[: real.parts.index("node_modules") + 1])
    folder = projects.claude_folder(config.cli_environment)
    if folder.is_dir():
        yield from (path for path in folder.iterdir() if path.name in _CONFIGURES or path.suffix in _SCRIPTS)


def _state(workspace: Path, config: Config) -> Iterator[tuple[Path, Path]]:
    """Yield the files that the CLI keeps between executions, with their places.

    These are its sessions of this workspace with their files, its login, and a copy of its settings.
    """
    folder = projects.claude_folder(config.cli_environment)
    kept = projects.folders(folder, workspace)
    for sessions in kept:
        sessions.mkdir(mode=0o700, parents=True, exist_ok=True)
        yield sessions, sessions
    private = projects.private(folder, workspace)
    for name in _SHARED:
        (private / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        yield private / name, folder / name
    if (folder / _LOGIN).exists():
        yield folder / _LOGIN, folder / _LOGIN
    elsewhere = "CLAUDE_CONFIG_DIR" in config.cli_environment
    settings = folder / _SETTINGS if elsewhere else Path(config.cli_environment["HOME"], _SETTINGS)
    if settings.is_file():
        yield _copy(settings, private / _SETTINGS), settings


def _copy(settings: Path, copy: Path) -> Path:
    """Write the CLI's settings for a sandbox; returns the copy.

    It lacks the settings of other folders.
    """
    try:
        content = json.loads(settings.read_bytes())
        content = {name: value for name, value in content.items() if name not in _NOT_PASSED_ON}
    except (OSError, ValueError, AttributeError):
        content = {}  # it is damaged or cannot be read; the CLI begins as in a new home
    copy.touch(mode=0o600)
    copy.write_text(json.dumps(content))
    return copy
