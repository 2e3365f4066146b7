"""Preparation of a start: remains of an earlier daemon, the schema, the socket."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Callable, Iterator

from occ_app.claude import projects
from occ_app.config import homes
from occ_app.config.config import Config
from occ_app.database import database as db
from occ_app.database import schema
from occ_app.errors import AlreadyRunning, StartFailed
from occ_app.home import daemon, machine, state
from occ_app.home import quarantine as salvage


@contextlib.contextmanager
def lock(config: Config) -> Iterator[None]:
    """Be the only daemon of this home. Raises AlreadyRunning."""
    path = config.home / "lock" / "daemon.lock"
    with path.open("a") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            other = daemon.find(config)
            where = f" (pid {other.pid}, {other.url})" if other else ""
            raise AlreadyRunning(
                f"{config.program.name} is already running in {config.home}{where};"
                f" `{config.program.command} stop` ends it."
            ) from None
        yield


def clean(config: Config, seconds: float) -> list[str]:
    """End an earlier daemon's processes within `seconds` and remove its files.

    Returns warnings.
    """
    daemon.end_parts(config, seconds)
    warnings = salvage.put_unreadable_aside(config)
    state.check_private(config.state)
    state.check_private(config.machine, "a new machine")
    machine.begin_instance(config)
    if daemon.is_held(config):
        daemon.refuse_work(config)
    else:
        daemon.let_go(config)
    for folder in ("tail", "worker", "uploads", "links", "memory", "mcp"):
        for path in (config.run / folder).glob("*"):
            path.unlink(missing_ok=True)
    return warnings


def prepare_database(config: Config, meanwhile: Callable[[], None]) -> list[str]:
    """Migrate the database and reconcile the unfinished work of an earlier daemon.

    Runs before any process serves. `meanwhile` is called first. Returns warnings. Raises StartFailed.
    """
    warnings = list[str]()
    try:
        schema.ensure_schema(
            config.database, config.home / "lock" / "migrate", meanwhile, lambda: warnings.extend(_reconcile(config))
        )
    except StartFailed:
        raise
    except Exception as error:
        raise StartFailed(f"{config.database} cannot be used: {error}") from error
    return warnings


def _reconcile(config: Config) -> list[str]:
    from occ_app.workspaces import places, unfinished, upload_jobs

    warnings = list[str]()
    rows = db.Database(config.database)
    upload_jobs.abandon_all(rows)
    if config.program is homes.AGENT:  # a hub has no workspace folders
        unfinished.undo(rows, config.workspaces)
        warnings = places.reconcile(rows, config.workspaces, projects.cli_folders(config.cli_environment))
    rows.close()
    return warnings


def bind(config: Config) -> socket.socket:
    """Return the socket that the daemon serves on. Raises StartFailed."""
    host, port = config.bind_address, config.http_port
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except socket.gaierror:
        raise StartFailed(f"{host} is not an address of this machine; choose another --bind-address.") from None
    except OSError as error:
        what = "--port" if error.errno in (errno.EADDRINUSE, errno.EACCES) else "--bind-address"
        reason = os.strerror(error.errno or 0).lower()  # its own text says the address again
        place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        raise StartFailed(f"Cannot listen on {place} ({reason}); choose another {what}.") from None
