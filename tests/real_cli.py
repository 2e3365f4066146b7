"""Finds the pinned release of the real Claude Code CLI, and installs it the first time it is asked for.

Tests marked `real_cli` run against exactly this version, so that a new release never changes what they say.
It lives in a cache of its own, apart from whatever `claude` the machine has. As a program it prints the path:

    python -m tests.real_cli
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# The releases that OCC supports, oldest first. `make test` runs the newest, `make test-all` all of them; a release of
# OCC adds the newest one here, and docs/claude-cli.md says what was found on each.
SUPPORTED = ("2.1.197", "2.1.330", "2.1.332")
VERSION = SUPPORTED[-1]
DEFERS = "2.1.330"  # the first that does
NPM_PACKAGE = "@anthropic-ai/claude-code"
NPM_BINARY = Path("node_modules/.bin/claude")
# The wheels that carry the same releases.
PIP_PACKAGES = {"2.1.330": "claude-agent-sdk==0.2.187", "2.1.332": "claude-agent-sdk==0.2.189"}
PIP_BINARY = Path("claude_agent_sdk/_bundled/claude")

SYSTEM_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
INSTALL_SECONDS = 600
PROBE_SECONDS = 30


class CliUnavailable(Exception):
    """The pinned CLI is not in the cache and could not be installed; the message says why."""


def tested() -> tuple[str, ...]:
    """The releases that this run of the tests tries: the newest, or all with TEST_ALL set."""
    return SUPPORTED if os.environ.get("TEST_ALL") else (VERSION,)


def deferring() -> tuple[str, ...]:
    """Those of them that can start ahead and defer a call."""
    return tuple(version for version in tested() if SUPPORTED.index(version) >= SUPPORTED.index(DEFERS))


def default_cache() -> Path:
    """Where the CLI is kept between test runs."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "occ-tests"


def install(cache: Path, version: str = VERSION) -> Path:
    """The path of a release of the CLI below `cache`, installed now if it is not there yet.

    Safe to call from several processes at once: the first installs and the others wait for it.
    Raises CliUnavailable when neither npm nor pip can provide it.
    """
    cache = cache.resolve()
    home = cache / f"claude-{version}"
    with _exclusive(cache):
        found = _installed(home, version)
        if found is not None:
            return found
        _install_into(home, version)
        found = _installed(home, version)
        if found is None:
            raise CliUnavailable(f"what was installed in {home} does not answer --version with {version}")
        return found


def require(version: str) -> Path:
    """Install a release for a test, which is skipped, loudly, where it cannot be installed."""
    import pytest  # benchmarks use the rest of this module

    try:
        return install(default_cache(), version)
    except CliUnavailable as reason:
        pytest.skip(f"CLAUDE {version} IS NOT TESTED: {reason}")


@contextmanager
def _exclusive(cache: Path) -> Iterator[None]:
    """Holds the cache's lock; the kernel frees it even when this process is killed."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        lock = (cache / "install.lock").open("w")
    except OSError as error:
        raise CliUnavailable(f"the cache {cache} cannot be used: {error}") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _installed(home: Path, version: str) -> Path | None:
    """The CLI inside `home` that answers as this version, or None."""
    for binary in (home / NPM_BINARY, home / PIP_BINARY):
        if os.access(binary, os.X_OK) and _version_of(binary) == version:
            return binary
    return None


def _version_of(binary: Path) -> str:
    """What `binary --version` names, or an empty text when it does not run."""
    with tempfile.TemporaryDirectory(prefix="occ-probe-") as scratch:
        clean = {"PATH": os.defpath, "HOME": scratch, "DISABLE_AUTOUPDATER": "1"}
        try:
            answer = subprocess.run(
                [binary, "--version"],
                env=clean,
                cwd=scratch,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=PROBE_SECONDS,
                check=True,
            )
        except (OSError, subprocess.SubprocessError):
            return ""
    return answer.stdout.partition(" ")[0].strip()


def _install_into(home: Path, version: str) -> None:
    """Fills `home` by the first way that works."""
    reasons = []
    partial = home.with_name(home.name + ".partial")
    for way in _ways(partial, version):
        reason = _attempt(way, partial, home)
        if reason is None:
            return
        reasons.append(reason)
    raise CliUnavailable("; ".join(reasons))


def _ways(target: Path, version: str) -> list[list[str]]:
    """The commands that install the CLI into `target`, best first."""
    ways = []
    npm = shutil.which("npm")
    if npm:
        plain = [npm, "install", "--prefix", str(target), "--no-audit", "--no-fund", "--fetch-retries=1"]
        plain.append(f"{NPM_PACKAGE}@{version}")
        ways.append(plain)
        # Node carries certificates of its own, so npm may refuse a connection that the system trusts.
        if SYSTEM_CERTIFICATES.exists():
            ways.append([*plain, "--cafile", str(SYSTEM_CERTIFICATES)])
    if version in PIP_PACKAGES:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        ways.append([*pip, "--no-deps", "--only-binary", ":all:", "--target", str(target), PIP_PACKAGES[version]])
    return ways


def _attempt(way: list[str], partial: Path, home: Path) -> str | None:
    """Installs by one way; returns why it failed, or None.

    The work happens in the sibling `partial`, renamed at the end, so that `home` never holds half an install.
    """
    shutil.rmtree(partial, ignore_errors=True)
    name = Path(way[0]).name if way[0] != sys.executable else "pip"
    try:
        partial.mkdir(parents=True)
        done = subprocess.run(
            way,
            cwd=partial,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=INSTALL_SECONDS,
            check=False,
        )
        if done.returncode == 0:
            shutil.rmtree(home, ignore_errors=True)
            partial.rename(home)
            return None
        return f"{name} ended with {done.returncode}: {done.stderr.strip()[-400:]}"
    except (OSError, subprocess.SubprocessError) as error:
        return f"{name} did not run: {error}"
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def main() -> int:
    """Prints the path of the CLI, or the reason why there is none."""
    try:
        print(install(default_cache()))
    except CliUnavailable as error:
        print(f"no real CLI: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
