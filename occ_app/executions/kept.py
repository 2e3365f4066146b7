"""Kept processes of the CLI, and all SQL on them.

A process is kept for the next turn of its conversation; a workspace has at most one. Its row is the right to use the
process: the worker that claims an execution of the workspace removes the row first, and uses the process or ends it.
"""

from __future__ import annotations

import sqlite3
import time
from dataclasses import dataclass

from occ_app.database.database import Database
from occ_app.executions.queries import SESSION
from occ_app.system.process_identity import ProcessIdentity


@dataclass(frozen=True)
class KeptProcess:
    """A process that waits for the next turn of a session.

    `generation` is its workspace's, `owner` its worker. A `revoked` one is not used: its worker ends it soon.
    """

    generation: int
    session_id: str
    mark: str
    process: ProcessIdentity
    owner: ProcessIdentity
    revoked: bool = False


def add(db: Database, kept: KeptProcess, most: int) -> None:
    """Add a process, and revoke the oldest above `most`.

    Their workers end them.
    """
    with db.write(durable=False) as connection:
        living = list[KeptProcess]()
        for other in _all(connection):
            if other.generation == kept.generation or not other.owner.alive():
                _remove(connection, other.generation)
            elif not other.revoked:
                living.append(other)
        for other in living[: max(0, len(living) + 1 - most)]:
            connection.execute(
                "UPDATE kept_processes SET revoked = 1 WHERE generation = :generation",
                {"generation": other.generation},
            )
        connection.execute(
            """
            INSERT INTO kept_processes (generation, session_id, mark, boot_id, pid, start, owner_pid, owner_start,
                kept_at)
            VALUES (:generation, :session_id, :mark, :boot_id, :pid, :start, :owner_pid, :owner_start, :now)
            """,
            {
                "generation": kept.generation,
                "session_id": kept.session_id,
                "mark": kept.mark,
                "boot_id": kept.process.boot_id,
                "pid": kept.process.pid,
                "start": kept.process.start,
                "owner_pid": kept.owner.pid,
                "owner_start": kept.owner.start,
                "now": time.monotonic(),
            },
        )


def remove(db: Database, generation: int) -> KeptProcess | None:
    """Remove and return the row of a workspace's process; None when there is none.

    Only one caller gets it.
    """
    with db.read() as connection:  # most have none, and need no transaction
        if (
            connection.execute(
                "SELECT 1 FROM kept_processes WHERE generation = :generation", {"generation": generation}
            ).fetchone()
            is None
        ):
            return None
    with db.write(durable=False) as connection:
        return _remove(connection, generation)


def withdraw(db: Database, generation: int, mark: str) -> None:
    """Revoke the process with this mark, which is about to exit."""
    with db.write(durable=False) as connection:
        connection.execute(
            "UPDATE kept_processes SET revoked = 1 WHERE generation = :generation AND mark = :mark",
            {"generation": generation, "mark": mark},
        )


def forget(db: Database, generation: int, mark: str) -> None:
    """Remove the row of the process with this mark, which has ended."""
    with db.write(durable=False) as connection:
        connection.execute(
            "DELETE FROM kept_processes WHERE generation = :generation AND mark = :mark",
            {"generation": generation, "mark": mark},
        )


def is_valid(db: Database, generation: int, mark: str) -> bool:
    """Return whether the process with this mark may still be used.

    It may unless it was revoked or its workspace was removed.
    """
    with db.read() as connection:
        row = connection.execute(
            """
            SELECT 1 FROM kept_processes k JOIN workspaces w ON w.generation = k.generation
            WHERE k.generation = :generation AND k.mark = :mark AND k.revoked = 0
            """,
            {"generation": generation, "mark": mark},
        ).fetchone()
    return row is not None


def living(db: Database) -> int:
    """Return how many processes are kept by all workers."""
    with db.read() as connection:
        return sum(not kept.revoked and kept.owner.alive() for kept in _all(connection))


def is_awaited(db: Database, worker: ProcessIdentity) -> bool:
    """Return whether another idle worker has the process for a queued execution."""
    with db.read() as connection:
        rows = connection.execute(
            f"""
            SELECT k.* FROM kept_processes k CROSS JOIN executions x ON x.workspace_generation = k.generation
            WHERE k.revoked = 0 AND k.owner_pid != :pid AND x.state = 'queued' AND x.paused IS NULL
              AND x.fork = 0 AND x.rewind_to IS NULL AND {SESSION} = k.session_id
              AND NOT EXISTS (SELECT 1 FROM held_workspaces h WHERE h.workspace_generation = k.generation)
              AND NOT EXISTS (SELECT 1 FROM executions r WHERE r.state = 'running'
                AND r.owner_pid = k.owner_pid AND r.owner_start = k.owner_start)
            """,  # noqa: S608 - a literal
            {"pid": worker.pid},
        ).fetchall()
    return any(_from_row(row).owner.alive() for row in rows)


def _all(connection: sqlite3.Connection) -> list[KeptProcess]:
    rows = connection.execute("SELECT * FROM kept_processes ORDER BY kept_at").fetchall()
    return [_from_row(row) for row in rows]


def _remove(connection: sqlite3.Connection, generation: int) -> KeptProcess | None:
    row = connection.execute(
        "DELETE FROM kept_processes WHERE generation = :generation RETURNING *", {"generation": generation}
    ).fetchone()
    return None if row is None else _from_row(row)


def _from_row(row: sqlite3.Row) -> KeptProcess:
    process = ProcessIdentity(row["boot_id"], row["pid"], row["start"])
    owner = ProcessIdentity(row["boot_id"], row["owner_pid"], row["owner_start"])
    return KeptProcess(row["generation"], row["session_id"], row["mark"], process, owner, bool(row["revoked"]))
