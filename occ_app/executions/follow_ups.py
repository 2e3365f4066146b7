"""Changes of executions that wait, and all SQL on them.

Prompts can be edited; follow-ups can be paused and moved. A follow-up continues another execution. Each change is an
UPDATE that starts from `queued`, so it can lose the race against the claim; the caller then gets a Conflict.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import Any

from occ_app.database.database import Database
from occ_app.errors import Conflict, InvalidRequest, execution_not_found
from occ_app.executions import waiting
from occ_app.executions.queries import one
from occ_app.executions.records import Execution


def change(db: Database, execution_id: str, changes: Mapping[str, Any], visible_to: str | None = None) -> Execution:
    """Change an execution that waits, all of it or nothing, and return it.

    `changes` may have `prompt`; `paused`, a boolean; and `before`, the id of the follow-up to move it before, or None
    to move it to the end of its conversation. Raises NotFound, also for an execution of another owner than
    `visible_to`; Conflict once it has started; InvalidRequest for a pause or a move of another than a follow-up.
    """
    with db.write() as connection:
        execution = _visible(connection, execution_id, visible_to)
        if "prompt" in changes:
            _update(connection, execution, "prompt = :value", changes["prompt"])
        if "paused" in changes:
            _check_follow_up(execution, "paused")
            _update(connection, execution, "paused = iif(:value, coalesce(paused, 'person'), NULL)", changes["paused"])
        if "before" in changes:
            _check_follow_up(execution, "before")
            _move(connection, execution, changes["before"])
        after = one(connection, "x.number = ?", (execution.number,))
        assert after is not None  # noqa: S101 - read above, in this transaction
        return waiting.described(connection, [after])[0]


def resume(db: Database, conversation_id: str, visible_to: str | None = None) -> int:
    """Let the paused follow-ups of a conversation run; returns how many there were."""
    with db.write() as connection:
        return connection.execute(
            """
            UPDATE executions SET paused = NULL
            WHERE conversation = :conversation AND state = 'queued' AND paused IS NOT NULL
              AND (:visible_to IS NULL OR owner_id = :visible_to)
            """,
            {"conversation": conversation_id, "visible_to": visible_to},
        ).rowcount


def pause_after(connection: sqlite3.Connection, number: int) -> None:
    """Pause the follow-ups of an execution that ends without success.

    In the caller's transaction.
    """
    connection.execute(
        """
        UPDATE executions SET paused = 'failed'
        WHERE conversation = (SELECT conversation FROM executions WHERE number = :number)
          AND state = 'queued' AND continues IS NOT NULL AND fork = 0 AND paused IS NULL
        """,
        {"number": number},
    )


def _visible(connection: sqlite3.Connection, execution_id: str, visible_to: str | None) -> Execution:
    execution = one(connection, "x.execution_id = ?", (execution_id,))
    if execution is None or visible_to not in (None, execution.owner_id):
        raise execution_not_found(execution_id)
    return execution


def _update(connection: sqlite3.Connection, execution: Execution, assignment: str, value: object) -> None:
    """Make an assignment, a literal, to an execution that waits.

    Raises Conflict if it does not wait.
    """
    won = connection.execute(
        f"UPDATE executions SET {assignment} WHERE number = :number AND state = 'queued'",  # noqa: S608 - literals
        {"value": value, "number": execution.number},
    ).rowcount
    if not won:
        raise Conflict(
            "EXECUTION_STARTED",
            f"Execution {execution.execution_id} is {execution.state} and cannot be changed any more; send a new prompt"
            " that continues it.",
            {"executionId": execution.execution_id, "state": execution.state},
        )


def _move(connection: sqlite3.Connection, execution: Execution, before: str | None) -> None:
    """Move a follow-up among those of its conversation that wait.

    They have the same places in another order.
    """
    rows = connection.execute(
        """
        SELECT number, execution_id, coalesce(place, number) AS place FROM executions
        WHERE conversation = :conversation AND state = 'queued' AND continues IS NOT NULL AND fork = 0
          AND owner_id IS :owner_id
        ORDER BY coalesce(place, number)
        """,
        {"conversation": execution.conversation, "owner_id": execution.owner_id},
    ).fetchall()
    places = [row["place"] for row in rows]
    order = [row["number"] for row in rows if row["number"] != execution.number]
    target = next((row["number"] for row in rows if row["execution_id"] == before), None)
    if before is not None and target in (None, execution.number):
        message = "`before` is no other follow-up that waits in this conversation; GET /conversations/{id} lists them."
        raise InvalidRequest(message, {"before": ["Not a follow-up of this conversation that waits."]})
    order.insert(len(order) if target is None else order.index(target), execution.number)
    _update(connection, execution, "place = :value", execution.place)  # unchanged; raises for one that does not wait
    for number, place in zip(order, places, strict=True):
        connection.execute(
            "UPDATE executions SET place = :place WHERE number = :number AND state = 'queued'",
            {"place": place, "number": number},
        )


def _check_follow_up(execution: Execution, field: str) -> None:
    if execution.continues is None or execution.fork:
        message = f"Execution {execution.execution_id} begins its conversation; only follow-ups are paused and moved."
        raise InvalidRequest(message, {field: ["Only for an execution that continues another."]})
