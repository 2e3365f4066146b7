"""Finding the Claude Code CLI: its path, its version, its login."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass

from occ_app.config.config import Config

NOT_FOUND = "Claude Code was not found"  # as the sentence for it begins
_PROBE_SECONDS = 10
_KNOWS_FILE_MENTIONS = (2, 1, 330)  # the first release measured that obeys CLAUDE_CODE_DISABLE_FILE_MENTIONS
_UNKNOWN = (3,)  # releases from here on may have another meaning for an undocumented flag


@dataclass(frozen=True)
class Cli:
    """The CLI that an agent uses.

    `path` is None when there is none, `version` None when it printed none.
    """

    path: str | None
    version: str | None


def find(config: Config) -> str | None:
    """Return the path of the CLI: OCC_CLAUDE_BIN, else `claude` on PATH.

    None when that is no program.
    """
    search = config.cli_environment.get("PATH", os.defpath)
    return shutil.which(os.path.expanduser(config.claude_bin or "claude"), path=search)


def probe(config: Config) -> Cli:
    """Find the CLI and run its --version, which takes about 0.1 s and touches nothing."""
    path = find(config)
    if path is None:
        return Cli(None, None)
    output = _answer([path, "--version"], config)
    match = re.search(r"\d{1,9}\.\d{1,9}\.\d{1,9}[A-Za-z0-9.+_-]{0,60}", output or "")
    return Cli(path, match.group(0) if match else None)


def file_identity(path: str) -> list[int]:
    """Return inode, size and change time of the program at `path`.

    Links are followed. Empty when there is none.
    """
    try:
        status = os.stat(path)
    except OSError:
        return []
    return [status.st_ino, status.st_size, status.st_mtime_ns]


def knows_file_mentions(version: str | None) -> bool:
    """Return whether this version can ignore `@file` and keep other attachments."""
    return _numbers(version) >= _KNOWS_FILE_MENTIONS


def confirms_inputs(version: str | None) -> bool:
    """Return whether this version confirms texts that are sent during a turn.

    It can also return them.
    """
    return knows_file_mentions(version)  # both came with 2.1.330


def defers_calls(version: str | None) -> bool:
    """Return whether this version can defer a tool call.

    It asks about the call again once its session is resumed.
    """
    return knows_file_mentions(version)  # both came with the same release, as far as releases were measured


def waits_for_claim(version: str | None) -> bool:
    """Return whether this version can start ahead of its execution.

    It does so with the undocumented flag --await-claim.
    """
    return _KNOWS_FILE_MENTIONS <= _numbers(version) < _UNKNOWN  # it came with the same release, as far as measured


def logged_in(path: str, config: Config) -> bool:
    """Return whether the CLI can reach a model, as far as it knows unasked."""
    return _answer([path, "auth", "status"], config) is not None


def missing(config: Config) -> str:
    """Return the sentence for a missing CLI."""
    wanted = (
        f"OCC_CLAUDE_BIN={config.claude_bin} is not a program" if config.claude_bin else "there is no `claude` on PATH"
    )
    return f"{NOT_FOUND}: {wanted}; install it or set OCC_CLAUDE_BIN to its path."


def _numbers(version: str | None) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version or "")[:3])


def _answer(argv: list[str], config: Config) -> str | None:
    """Return the output of a short call of the CLI; None when it failed.

    It is killed after a few seconds.
    """
    try:
        done = subprocess.run(
            argv,
            env=dict(config.cli_environment)
            | {"DISABLE_AUTOUPDATER": "1", "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1"},
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PROBE_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None
