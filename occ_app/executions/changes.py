"""The changes that executions made: rows of snapshots, and all SQL on them.

There is a snapshot before and after each execution. It holds its workspace from its first snapshot until the second is
stored or given up, which may be after its final event: nothing else runs in the workspace meanwhile.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import Any

from occ_app.database.database import Database
from occ_app.executions.queries import from_row, select
from occ_app.executions.records import Execution
from occ_app.system.compact_json import to_json

PRUNED = "pruned"


def begin(db: Database, number: int, tree: str) -> bool:
    """Record the snapshot before a running execution, which now holds its workspace.

    False when it is over. The row is not yet on the disk: the prompt is sent after a `db.sync()`.
    """
    with db.write(durable=False) as connection:
        return bool(
            connection.execute(
                "UPDATE executions SET start_tree = :tree, holds_workspace = 1, changes_reason = 'pending'"
                " WHERE number = :number AND state = 'running'",
                {"number": number, "tree": tree},
            ).rowcount
        )


def skip(db: Database, number: int, reason: str) -> None:
    """Record why a running execution has no snapshot before it, and so no changes."""
    with db.write(durable=False) as connection:
        connection.execute(
            "UPDATE executions SET changes_reason = :reason WHERE number = :number AND start_tree IS NULL",
            {"number": number, "reason": reason},
        )


def store(db: Database, number: int, tree: str, changes: Mapping[str, Any]) -> bool:
    """Record the snapshot after an execution, and free its workspace.

    The sums of its changes are stored, too. False when that was done already.
    """
    with db.write() as connection:
        row = connection.execute(
            "UPDATE executions SET end_tree = :tree, changes = :changes, changes_reason = NULL, holds_workspace = NULL"
            " WHERE number = :number AND holds_workspace = 1 RETURNING workspace_generation",
            {"number": number, "tree": tree, "changes": to_json(changes)},
        ).fetchone()
        if row is not None:
            connection.execute(
                "UPDATE workspaces SET snapshot = :tree WHERE generation = :generation",
                {"tree": tree, "generation": row["workspace_generation"]},
            )
    return row is not None


def give_up(db: Database, number: int, reason: str) -> bool:
    """Record why an execution's changes are unknown, and free its workspace.

    False when that was done.
    """
    with db.write() as connection:
        row = connection.execute(
            "UPDATE executions SET changes_reason = :reason, holds_workspace = NULL"
            " WHERE number = :number AND holds_workspace = 1 RETURNING workspace_generation",
            {"number": number, "reason": reason},
        ).fetchone()
        if row is not None:
            connection.execute(
                "UPDATE workspaces SET snapshot = NULL WHERE generation = :generation",
                {"generation": row["workspace_generation"]},
            )
    return row is not None


def held(db: Database) -> bool:
    """Return whether an execution or a restore holds a workspace.

    An execution that is over may hold one, too.
    """
    with db.read() as connection:
        found = connection.execute("SELECT 1 FROM held_workspaces WHERE reason != 'parked' LIMIT 1").fetchone()
        return found is not None


def holding(db: Database) -> list[Execution]:
    """Return the executions that are over and hold their workspace, oldest first."""
    with db.read() as connection:
        rows = connection.execute(
            select("x.holds_workspace = 1 AND x.last_seq IS NOT NULL ORDER BY x.number")
        ).fetchall()
    return [from_row(row) for row in rows]


def newest(db: Database) -> int:
    """Return a number that grows with each snapshot that is stored or forgotten."""
    with db.read() as connection:
        row = connection.execute(
            "SELECT coalesce(max(number), 0) + count(*)"
            " + (SELECT coalesce(max(number), 0) FROM restores) AS mark FROM executions WHERE start_tree IS NOT NULL"
        ).fetchone()
    return int(row["mark"])


def kept_trees(db: Database) -> dict[int, set[str]]:
    """Return the trees that are needed, by the number of their workspace.

    Workspaces without one are included.
    """
    with db.read() as connection:
        rows = connection.execute(
            """
            SELECT generation, snapshot AS one, NULL AS other FROM workspaces
            UNION ALL
            SELECT workspace_generation, start_tree, end_tree FROM executions
                WHERE start_tree IS NOT NULL AND workspace_generation IN (SELECT generation FROM workspaces)
            UNION ALL
            SELECT workspace_generation, base, result FROM restores
                WHERE workspace_generation IN (SELECT generation FROM workspaces)
            UNION ALL
            SELECT workspace_generation, from_tree, to_tree FROM restores
                WHERE state = 'running' AND workspace_generation IN (SELECT generation FROM workspaces)
            """
        ).fetchall()
    kept: dict[int, set[str]] = {}
    for row in rows:
        kept.setdefault(row["generation"], set()).update({row["one"], row["other"]} - {None})
    return kept


def forget_oldest(db: Database, limit: int) -> int:
    """Forget the snapshots of the oldest executions; returns how many.

    Those of restores before them are forgotten, too. Their sums stay.
    """
    with db.write() as connection:
        rows = connection.execute(
            "UPDATE executions SET start_tree = NULL, end_tree = NULL WHERE number IN ("
            " SELECT number FROM executions WHERE start_tree IS NOT NULL AND holds_workspace IS NULL"
            " AND last_seq IS NOT NULL ORDER BY number LIMIT :limit) RETURNING finished_at",
            {"limit": limit},
        ).fetchall()
        moment = max((row["finished_at"] for row in rows), default="")
        forget_restores(connection, moment)
    return len(rows)


def forget_aged(db: Database, before: str) -> None:
    """Forget restores that were over before a moment, ISO."""
    with db.write(durable=False) as connection:
        forget_restores(connection, before)


def forget_restores(connection: sqlite3.Connection, before: str) -> None:
    connection.execute("DELETE FROM restores WHERE state != 'running' AND finished_at < :before", {"before": before})
