"""Marks of processes that were started before their execution was known.

Each process of the CLI carries a mark in its environment. For one that is started for an execution the mark is that
execution's id; a spare has another mark, which is mapped to its execution here before it receives the prompt.
"""

from __future__ import annotations

import sqlite3

from occ_app.database.database import Database


def note(db: Database, mark: str, execution: int) -> None:
    """Map a mark to an execution, by its number.

    It is on the disk with the caller's next `db.sync()`.
    """
    with db.write(durable=False) as connection:
        connection.execute(
            "INSERT INTO process_marks (mark, execution) VALUES (:mark, :execution)",
            {"mark": mark, "execution": execution},
        )


def of(db: Database, execution: int) -> list[str]:
    """Return the marks of an unfinished execution beside its id."""
    with db.read() as connection:
        rows = connection.execute(
            "SELECT mark FROM process_marks WHERE execution = :execution", {"execution": execution}
        ).fetchall()
    return [row["mark"] for row in rows]


def forget(connection: sqlite3.Connection, execution: int) -> None:
    """Remove the marks of an execution that is over."""
    connection.execute("DELETE FROM process_marks WHERE execution = :execution", {"execution": execution})
