"""Checks of a home: disk, permissions, database, certificate, and stale files."""

from __future__ import annotations

import os
import sqlite3
import stat
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

from occ_app.config.config import Config
from occ_app.database.schema import SCHEMA_VERSION
from occ_app.doctor.findings import Finding, note, ok, wrong
from occ_app.home import certificate, daemon
from occ_app.home.certificate_dates import expires_at, first_certificate

_LEAST_BYTES = 1_000_000_000
_LEAST_INODES = 10_000
_CHECK_SECONDS = 20.0  # of a database; a large one takes longer
_OPCODES = 100_000  # between two looks at the clock
_RENEW_DAYS = 21
_PRIVATE = ("", "state.json", "machine.json", "config.toml", "tls.pem", "occ.db", "workspaces", "zips", "logs")


def disk(config: Config) -> Iterator[Finding]:
    """Look for room and inodes on the file system of the home."""
    status = os.statvfs(_existing(config.home))
    free, share = status.f_bavail * status.f_frsize, status.f_bavail / max(1, status.f_blocks)
    shown = f"{free / 1e9:.1f} GB free ({share:.0%}) for {config.home}"
    enough = free >= _LEAST_BYTES
    yield (
        ok("disk", shown)
        if enough
        else wrong(
            "disk", shown, "Free some space, or lower OCC_RETENTION_DAYS; `occ jobs prune` removes old output now."
        )
    )
    if status.f_files == 0:
        yield ok("inodes", "this file system has no limit on them")
        return
    shown = f"{status.f_favail} of {status.f_files} free"
    enough = status.f_favail >= min(_LEAST_INODES, status.f_files // 10)
    yield (
        ok("inodes", shown)
        if enough
        else wrong("inodes", shown, f"Remove small files below {config.home} or on its file system.")
    )


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.exists())


def permissions(config: Config) -> Iterator[Finding]:
    """Look for files of the home that others can read or that belong to another user."""
    faults = list[Finding]()
    for path in (config.home / name for name in _PRIVATE):
        try:
            status = path.lstat()
        except FileNotFoundError:
            continue
        if status.st_uid != os.geteuid():
            faults.append(
                wrong("permissions", f"{path} belongs to user {status.st_uid}", f"sudo chown {os.geteuid()} {path}")
            )
        elif not stat.S_ISLNK(status.st_mode) and status.st_mode & 0o077 and _matters(config, path):
            faults.append(wrong("permissions", f"{path} can be read by other users", f"chmod go= {path}"))
    yield from faults or [ok("permissions", f"{config.home} is closed to other users")]


def _matters(config: Config, path: Path) -> bool:
    """Return whether other users can reach the file.

    A closed home hides all files, but secrets must be closed themselves.
    """
    if path.name in ("state.json", "machine.json", "tls.pem"):
        return True
    home = config.home.stat().st_mode & 0o077
    return bool(home) and (path == config.home or path.name == "config.toml")


def database(config: Config) -> Iterator[Finding]:
    """Check occ.db as SQLite does, within some seconds."""
    path = config.database
    if not path.exists():
        yield note("database", f"There is no {path} yet", f"`{config.program.command} start` makes it.")
        return
    restore = "Stop it, move occ.db away with its -wal and -shm, and restore a backup, or start without one."
    deadline = time.monotonic() + _CHECK_SECONDS
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5)) as connection:
            version: int = connection.execute("PRAGMA user_version").fetchone()[0]
            connection.set_progress_handler(lambda: time.monotonic() > deadline, _OPCODES)
            answer = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
    except sqlite3.OperationalError as error:
        if "interrupted" not in str(error):
            yield wrong("database", f"{path} cannot be read ({error})", restore)
            return
        answer = ""
    except sqlite3.DatabaseError as error:
        yield wrong("database", f"{path} is damaged ({error})", restore)
        return
    yield _version(config, version)
    size = f"{path.stat().st_size / 1e6:.1f} MB"
    if answer == "":
        yield note("database", f"No fault found in {path} ({size}) within {_CHECK_SECONDS:.0f} s")
    elif answer == "ok":
        yield ok("database", f"{path} ({size}) is intact")
    else:
        yield wrong("database", f"{path} is damaged ({answer})", restore)


def _version(config: Config, version: int) -> Finding:
    if version == SCHEMA_VERSION:
        return ok("schema", f"{version}, as this OCC writes it")
    if version > SCHEMA_VERSION:
        return wrong(
            "schema", f"{version} of a newer OCC; this one knows {SCHEMA_VERSION}", "Install the newer OCC again."
        )
    command = config.program.command
    return note("schema", f"{version}; this OCC has {SCHEMA_VERSION}", f"`{command} start` migrates it.")


def tls(config: Config) -> Iterator[Finding]:
    """Check the certificate that is served."""
    chain = certificate.chain_of(config)
    if chain is None:
        yield ok("tls", f"not used; it listens on {config.bind_address}")
        return
    if not chain.exists() and config.tls:
        yield note("tls", "The certificate is made at the next start")
        return
    try:
        end = expires_at(first_certificate(chain.read_text()))
    except (OSError, ValueError) as error:
        yield wrong("tls", f"{chain} cannot be used ({error})", "Put a PEM certificate there.")
        return
    shown = f"{chain} is valid until {end:%Y-%m-%d}"
    if end < datetime.now(UTC) + timedelta(days=_RENEW_DAYS):
        yield wrong("tls", shown, "Renew it; the new one is served without a restart.")
    else:
        yield ok("tls", shown)


def stale(config: Config) -> Iterator[Finding]:
    """Look for processes and files that a daemon left behind."""
    running = daemon.find(config)
    command = config.program.command
    left = [] if running else daemon.parts_alive(config)
    if left:
        pids = ", ".join(str(part.pid) for part in left)
        yield wrong("stale", f"Processes of a killed daemon are alive: {pids}", f"`{command} start` ends them.")
    elif running is None and (config.run / "daemon.json").exists():
        yield note("stale", "The last daemon was killed", f"`{command} start` clears up.")
    aside = sorted(path.name for path in config.home.glob("*.unreadable-*"))
    if aside:
        action = f"Delete them in {config.home} once you do not need them."
        yield note("stale", f"Put aside because they could not be read: {', '.join(aside)}", action)
    temporary = [] if running else sorted(config.workspaces.glob(".[!.]*"))
    if temporary:
        shown = f"{len(temporary)} unfinished uploads or removals in {config.workspaces}"
        yield note("stale", shown, f"`{command} start` clears up.")
    if not left and not aside and not temporary and (running or not (config.run / "daemon.json").exists()):
        yield ok("stale", "nothing left behind")
