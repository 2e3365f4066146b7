"""The installation of OCC, the command that upgrades it, and a copy of its files.

The copy is for going back.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from occ_app.errors import ConfigError, StartFailed

DISTRIBUTION = "online-claude-code"
_INSTALL_SECONDS = 900.0
_PIPX_RECORD = "pipx_metadata.json"
_NAMES = {"pipx": "with pipx", "uv": "with uv tool", "venv": "in a virtual environment"}


@dataclass(frozen=True)
class Installation:
    """An environment with OCC in it.

    `kind` is pipx, uv or venv, `packages` the folder that pip writes to.
    """

    kind: str
    packages: Path
    source: str
    record: bytes | None = None  # the content of pipx's file about it

    @property
    def description(self) -> str:
        return f"{_NAMES[self.kind]} ({sys.prefix})"

    @property
    def copy(self) -> Path:
        """The place for a copy of the packages, on the same file system."""
        return self.packages.with_name(".occ-before-upgrade")

    def command(self, source: str) -> list[str]:
        """Return the command that installs `source`, a requirement, a file or a folder."""
        pipx = shutil.which("pipx") if self.kind == "pipx" and Path(sys.prefix).name == DISTRIBUTION else None
        if pipx is not None:  # it updates its record, too; pip, in an environment of pipx's, would not
            return [pipx, "upgrade", DISTRIBUTION] if source == DISTRIBUTION else [pipx, "install", "--force", source]
        if importlib.util.find_spec("pip") is not None:
            pip = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
            return [*pip, "--upgrade", source]
        return ["uv", "pip", "install", "--python", sys.executable, "--upgrade", source]

    @property
    def variables(self) -> dict[str, str]:
        """The variables that name the folders of this installation to pipx."""
        if self.kind != "pipx":
            return {}
        found = {"PIPX_HOME": str(Path(sys.prefix).parents[1])}
        program = shutil.which("occ")
        if program is not None and Path(program).resolve() == Path(sys.prefix).resolve() / "bin" / "occ":
            found["PIPX_BIN_DIR"] = str(Path(program).parent)
        return found

    def keep(self) -> None:
        """Copy the packages. Raises StartFailed."""
        shutil.rmtree(self.copy, ignore_errors=True)
        try:
            shutil.copytree(self.packages, self.copy, symlinks=True)
        except (OSError, shutil.Error) as error:
            shutil.rmtree(self.copy, ignore_errors=True)
            raise StartFailed(f"The files of OCC cannot be copied to {self.copy} ({error}); nothing changed.") from None

    def restore(self) -> None:
        """Put the copied packages back. The copy stays: this process runs from it."""
        failed = self.packages.with_name(".occ-failed-upgrade")
        shutil.rmtree(failed, ignore_errors=True)
        os.rename(self.packages, failed)
        if self.record is not None:
            (Path(sys.prefix) / _PIPX_RECORD).write_bytes(self.record)
        try:
            shutil.copytree(self.copy, self.packages, symlinks=True)
        except (OSError, shutil.Error):  # the disk is full
            shutil.rmtree(self.packages, ignore_errors=True)
            os.rename(self.copy, self.packages)
        shutil.rmtree(failed, ignore_errors=True)

    def forget(self) -> None:
        """Remove the copy."""
        shutil.rmtree(self.copy, ignore_errors=True)


def found() -> Installation:
    """Return this installation.

    Raises ConfigError, with the way to do it by hand, for one that is not OCC's alone.
    """
    packages = Path(sysconfig.get_path("purelib"))
    try:
        origin = json.loads(importlib.metadata.distribution(DISTRIBUTION).read_text("direct_url.json") or "{}")
    except importlib.metadata.PackageNotFoundError:
        origin = {"dir_info": {"editable": True}}
    if origin.get("dir_info", {}).get("editable"):
        raise ConfigError(
            "OCC runs from a checkout. By hand: `occ stop --drain`, `occ backup FILE`, `git pull`, `occ start`."
        )
    if sys.prefix == sys.base_prefix:
        raise ConfigError(
            f"OCC is installed for all programs of {sys.executable}. By hand: `occ stop --drain`, `occ backup FILE`,"
            " upgrade it as it was installed, `occ start`."
        )
    prefix, kind, record = Path(sys.prefix), "venv", None
    if (prefix / _PIPX_RECORD).exists():
        kind, record = "pipx", (prefix / _PIPX_RECORD).read_bytes()
    elif (prefix / "uv-receipt.toml").exists():
        kind = "uv"
    return Installation(kind, packages, _source(origin), record)


def _source(origin: dict[str, object]) -> str:
    """Return the folder it was installed from, or its name in the package index."""
    url = urlsplit(str(origin.get("url", "")))
    return unquote(url.path) if url.scheme == "file" and "dir_info" in origin else DISTRIBUTION


def absolute(source: str) -> str:
    """Return the absolute path of a source that is a file or a folder.

    Any other source is returned unchanged.
    """
    return str(Path(source).absolute()) if Path(source).exists() else source


def run(argv: list[str], environment: dict[str, str]) -> None:
    """Run the installing command.

    Raises StartFailed with the last lines that it prints.
    """
    try:
        done = subprocess.run(
            argv,
            env=environment,
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_INSTALL_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StartFailed(f"`{argv[0]}` cannot be run ({type(error).__name__}).") from None
    if done.returncode != 0:
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines()[-3:]
        raise StartFailed(f"The installation failed: {' '.join(lines)}")
