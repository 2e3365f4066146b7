"""Checks of programs that executions need: Claude Code, sandbox, git.

The login of Claude Code is checked, too.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator

from occ_app.claude import program, sandbox
from occ_app.config.config import Config
from occ_app.doctor.findings import Finding, ok, wrong
from occ_app.errors import StartFailed

_INSTALL = "Install it as docs/install.md says, or set OCC_CLAUDE_BIN to its path."
_LOGIN = "Run `claude` and then /login once as this user, or set ANTHROPIC_API_KEY or CLAUDE_CODE_OAUTH_TOKEN."
_GIT_SECONDS = 10


def claude(config: Config) -> Iterator[Finding]:
    """Find the CLI, its version and its login; no model is asked."""
    found = program.probe(config)
    if found.path is None:
        yield wrong("claude", program.missing(config).rpartition(";")[0], _INSTALL)
        return
    if found.version is None:
        yield wrong("claude", f"{found.path} does not print its version", f"Run `{found.path} --version` yourself.")
        return
    yield ok("claude", f"Claude Code {found.version} at {found.path}")
    if program.logged_in(found.path, config):
        yield ok("login", "it has a way to a model, by its login or a variable")
    else:
        yield wrong("login", "Claude Code is not logged in for this user", _LOGIN)


def boxed(config: Config) -> Iterator[Finding]:
    """Try the configured sandbox."""
    if config.sandbox is None:
        yield ok("sandbox", "not used; `occ start --sandbox bwrap` turns it on")
        return
    try:
        sandbox.check(config)
    except StartFailed as error:
        yield wrong("sandbox", str(error), "Correct that, or unset OCC_SANDBOX; the next start fails with it.")
    else:
        yield ok("sandbox", f"{config.sandbox} works")


def git(config: Config) -> Iterator[Finding]:
    """Find git, which records the changes of executions."""
    path = shutil.which("git", path=config.cli_environment.get("PATH", os.defpath))
    if path is None:
        yield wrong("git", "There is no git on PATH, so changes of runs are not recorded", "Install git.")
        return
    try:
        done = subprocess.run(
            [path, "--version"],
            env=dict(config.cli_environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_GIT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        yield wrong("git", f"{path} does not answer", f"Run `{path} --version` yourself.")
        return
    shown = done.stdout.strip().removeprefix("git version ")
    if done.returncode == 0:
        yield ok("git", f"{shown} at {path}")
    else:
        yield wrong("git", f"{path} fails ({done.returncode})", f"Run `{path} --version` yourself.")
