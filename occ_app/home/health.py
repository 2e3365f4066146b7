"""The body of `/health`."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from occ_app import __version__
from occ_app.claude import program
from occ_app.config.config import Config
from occ_app.database import rows
from occ_app.database.database import Database
from occ_app.executions import queries as executions
from occ_app.home import certificate, clock, daemon, machine
from occ_app.home.notes import REFUSED, UNREADABLE, note, noted
from occ_app.system.foreign_text import visible_line

FAILURES_TO_MENTION = 2
LARGE_LOG_BYTES = 64_000_000  # that no checkpoint moves: a reader holds them
MAX_PROBLEMS, MAX_PROBLEM = 20, 500  # sentences in a heartbeat, and characters of one
_MENTIONED_SECONDS = 86_400.0  # since a thing that a problem is about

# Where problems begin whose cause a check of `occ doctor` finds, too, and the check.
_NO_GIT = "There is no git on PATH"
_NOT_TAKEN = "The hub did not take"
_NOT_CALLED = "The hub cannot call this agent"
_NOT_REGISTERED = "Not registered with the hub"
CHECKS = {
    program.NOT_FOUND: "claude",
    _NO_GIT: "git",
    _NOT_TAKEN: "hub",
    _NOT_REGISTERED: "hub",
    _NOT_CALLED: "echo",
    certificate.EXPIRED: "tls",
}


def heartbeat(config: Config, db: Database) -> dict[str, Any]:
    """Return the heartbeat as `/health` shows it.

    A standalone agent has none, even if it once had one: null, 0, 0.
    """
    kept = noted(db, "heartbeat") if config.remote_url else {}
    return {
        "lastSuccessfulAt": kept.get("lastSuccessfulAt"),
        "consecutiveFailures": kept.get("consecutiveFailures", 0),
        "seqNum": kept.get("seqNum", 0),
    }


def unreached(db: Database) -> int:
    """Return the number of heartbeats in a row without a call back.

    The hub replied to them that it cannot call this agent.
    """
    count: int = noted(db, "heartbeat").get("unreached", 0)
    return count


def for_heartbeat(problems: Sequence[str]) -> list[str]:
    """Return the sentences of `problems` for a heartbeat.

    Each is one line of bounded length.
    """
    return [visible_line(sentence)[:MAX_PROBLEM] for sentence in problems[:MAX_PROBLEMS]]


def health(config: Config, db: Database) -> dict[str, Any]:
    """Return the body of `/health`: workers, queue, and `problems`.

    These are sentences for a person.
    """
    busy, waiting = executions.counts(db)
    beat = heartbeat(config, db)
    claude = noted(db, "claude")
    problems = []
    if claude and claude["path"] is None:
        problems.append(claude["problem"])
    if beat["consecutiveFailures"] >= FAILURES_TO_MENTION:
        problems.append(f"{_NOT_TAKEN} {beat['consecutiveFailures']} heartbeats in a row; see logs/control.log.")
    if config.remote_url and unreached(db) >= FAILURES_TO_MENTION:
        problems.append(
            f"{_NOT_CALLED}, so it places no work here: the link is not connected. Let WebSockets pass"
            " in any proxy between them, or start with --public-url; logs/control.log has the reason."
        )
    registration = noted(db, "registration")
    if config.remote_url and registration and not registration["registered"]:
        problems.append(f"{_NOT_REGISTERED}: {registration.get('problem', 'it was not tried yet')}")
    copy = noted(db, "copy")
    if config.remote_url and copy and copy["instance"] == machine.instance(config):
        problems.append(copy["problem"])
    problems += certificate.problems(config)
    if not daemon.takes_work(config):
        problems.append("It takes no new work: it is stopping or being drained; `occ stop` and `occ start` end that.")
    problems += [sentence for sentence in (daemon.replaced(config), clock.problem(db)) if sentence]
    problems += log_problems(db)
    problems += skipped_problems(db)
    git = shutil.which("git", path=config.cli_environment.get("PATH", os.defpath)) is not None
    if not git:
        problems.append(f"{_NO_GIT}, so the changes of executions are not recorded; install git.")
    return {
        "status": "degraded" if problems else "healthy",
        "version": __version__,
        "uptime": uptime(config.run / "daemon.json"),
        "heartbeat": beat,
        "workers": {"total": config.workers, "busy": busy},
        "queue": {"depth": waiting},
        "claude": {"version": claude.get("version"), "path": claude.get("path")},
        "skipped": skipped(db),
        "snapshots": {"git": git, "bytes": noted(db, "snapshots").get("bytes", 0), "limit": config.snapshot_disk_bytes},
        "problems": problems,
    }


def note_pending_log(db: Database, size: int) -> None:
    """Record how many bytes a checkpoint could not move into the database.

    They are in the write-ahead log.
    """
    if size > LARGE_LOG_BYTES or noted(db, "log").get("pending"):
        note(db, "log", {"pending": size if size > LARGE_LOG_BYTES else 0})


def note_snapshots(db: Database, size: int) -> None:
    """Note how many bytes the snapshots take."""
    note(db, "snapshots", {"bytes": size})


def log_problems(db: Database) -> list[str]:
    """Return a sentence while another program blocks checkpoints.

    The write-ahead log then cannot be moved into the database.
    """
    pending = noted(db, "log").get("pending", 0)
    if not pending:
        return []
    return [
        f"occ.db-wal holds {pending // 1_000_000} MB that cannot be moved into occ.db, because another program keeps a"
        " transaction open; end that program, or the disk fills up."
    ]


def skipped(db: Database) -> dict[str, int]:
    """Return how many events were not stored, and how many cannot be read.

    Events are not stored when they break their schema. `unreadableRows` counts the records with a value of a wrong
    kind that this process has read.
    """
    counts = {name: noted(db, key).get("count", 0) for name, key in _SKIPPED.items()}
    return {**counts, "unreadableRows": rows.unreadable()}


def skipped_problems(db: Database) -> list[str]:
    """Return a sentence for each count of skipped events that grew.

    It grew within the last day.
    """
    return [
        sentence.format(count=noted(db, key)["count"])
        for key, sentence in _SKIPPED_SENTENCES.items()
        if is_recent(noted(db, key).get("lastAt"))
    ]


def is_recent(moment: str | None) -> bool:
    """Return whether a moment, ISO 8601 in UTC, lies within the last day."""
    if moment is None:
        return False
    return (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds() < _MENTIONED_SECONDS


_SKIPPED = {"refusedEvents": REFUSED, "unreadableEvents": UNREADABLE}
_SKIPPED_SENTENCES = {
    REFUSED: "Machines sent {count} events that break their schema; logs/worker.log names the executions.",
    UNREADABLE: "{count} stored events cannot be read and are skipped; logs/control.log says when.",
}


def uptime(daemon: Path) -> float:
    """Seconds since the daemon started, on the clock that counts from boot."""
    try:
        start = json.loads(daemon.read_text())["start"]
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0
    return float(round(time.clock_gettime(time.CLOCK_BOOTTIME) - start / os.sysconf("SC_CLK_TCK"), 1))
