"""Rules on tool calls that people set, and all SQL on them.

A rule belongs to the row of its workspace, so that a later workspace of the same id has none of them, and to an owner.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass

from occ_app.config.permission_rules import Rule
from occ_app.database.database import Database
from occ_app.errors import Conflict, execution_not_found, rule_not_found, workspace_not_found
from occ_app.system.timestamps import iso_now

SCOPES = ("execution", "conversation", "workspace", "project", "agent")
MOST = 500  # rules of one workspace, and of the agent

_SELECT = """
    SELECT r.*, w.workspace_id, x.execution_id
    FROM rules r LEFT JOIN workspaces w ON w.generation = r.workspace_generation
        LEFT JOIN executions x ON x.number = r.execution
"""
_VISIBLE = "(:visible_to IS NULL OR r.owner_id = :visible_to)"


@dataclass(frozen=True)
class Place:
    """The executions that a rule is for.

    They are those of an owner in a workspace, those of a conversation of it, or a single one. Without a workspace the
    rule is for all executions of the agent.
    """

    scope: str
    workspace_generation: int | None = None
    conversation: str | None = None
    execution: int | None = None
    owner_id: str | None = None


@dataclass(frozen=True)
class StoredRule:
    """A row of `rules` with the ids of its workspace and execution."""

    rule_id: str
    place: Place
    rule: Rule
    workspace_id: str | None
    execution_id: str | None
    actor: str
    created_at: str


def add(connection: sqlite3.Connection, place: Place, rule: Rule, actor: str) -> str:
    """Store a rule unless the same exists, and return its id.

    Raises Conflict when there are MOST of them.
    """
    values = {
        **{"scope": place.scope, "generation": place.workspace_generation, "conversation": place.conversation},
        **{"execution": place.execution, "owner_id": place.owner_id, "decision": rule.decision, "tool": rule.tool},
        **{"pattern": rule.pattern, "actor": actor, "now": iso_now(), "rule_id": f"rule-{secrets.token_hex(6)}"},
    }
    same = connection.execute(
        """
        SELECT rule_id FROM rules
        WHERE workspace_generation IS :generation AND scope = :scope AND conversation IS :conversation
            AND execution IS :execution AND owner_id IS :owner_id AND decision = :decision AND tool = :tool
            AND pattern IS :pattern
        """,
        values,
    ).fetchone()
    if same is not None:
        return str(same["rule_id"])
    count = connection.execute(
        "SELECT count(*) FROM rules WHERE workspace_generation IS :generation AND execution IS :execution",
        {"generation": place.workspace_generation, "execution": place.execution},
    ).fetchone()[0]
    if count >= MOST:
        raise Conflict("TOO_MANY_RULES", f"There are {MOST} rules already; remove some with `occ rules remove`.")
    connection.execute(
        """
        INSERT INTO rules (rule_id, scope, workspace_generation, conversation, execution, owner_id, decision, tool,
            pattern, actor, created_at)
        VALUES (:rule_id, :scope, :generation, :conversation, :execution, :owner_id, :decision, :tool, :pattern, :actor,
            :now)
        """,
        values,
    )
    return str(values["rule_id"])


def insert(connection: sqlite3.Connection, execution: int, requested: Iterable[Rule], actor: str) -> None:
    """Store the rules of a request for its execution, in the caller's transaction."""
    for rule in dict.fromkeys(requested):
        connection.execute(
            """
            INSERT INTO rules (rule_id, scope, workspace_generation, execution, owner_id, decision, tool, pattern,
                actor, created_at)
            SELECT :rule_id, 'execution', workspace_generation, number, owner_id, :decision, :tool, :pattern,
                :actor, :now
            FROM executions WHERE number = :execution
            """,
            {
                **{"rule_id": f"rule-{secrets.token_hex(6)}", "decision": rule.decision, "tool": rule.tool},
                **{"pattern": rule.pattern, "actor": actor, "now": iso_now(), "execution": execution},
            },
        )


def requested(db: Database, execution: int, decision: str) -> list[str]:
    """Return the texts of the rules for one execution alone, as requests have them."""
    with db.read() as connection:
        return [rule.text for rule in narrowing(connection, execution) if rule.decision == decision]


def narrowing(connection: sqlite3.Connection, execution: int) -> list[Rule]:
    """Return the rules for one execution alone that deny calls or ask about them.

    Reads in the caller's transaction.
    """
    rows = connection.execute(
        """
        SELECT decision, tool, pattern FROM rules
        WHERE scope = 'execution' AND execution = :execution AND decision IN ('deny', 'ask') ORDER BY rowid
        """,
        {"execution": execution},
    ).fetchall()
    return [Rule(row["decision"], row["tool"], row["pattern"]) for row in rows]


def forget(connection: sqlite3.Connection, execution: int) -> None:
    """Remove the rules for an execution that ends in the caller's transaction."""
    connection.execute("DELETE FROM rules WHERE execution = :execution", {"execution": execution})


def place_of(connection: sqlite3.Connection, execution: int, scope: str) -> Place:
    """Return the place of a rule that an execution's approval sets.

    It is its `conversation` or its `workspace`; a workspace that is a project has the scope `project`.
    """
    row = connection.execute(
        """
        SELECT x.workspace_generation, x.conversation, x.owner_id, w.source
        FROM executions x LEFT JOIN workspaces w ON w.generation = x.workspace_generation WHERE x.number = :execution
        """,
        {"execution": execution},
    ).fetchone()
    if scope == "conversation":
        return Place(scope, row["workspace_generation"], conversation=row["conversation"], owner_id=row["owner_id"])
    scope = "project" if row["source"] == "folder" else "workspace"
    return Place(scope, row["workspace_generation"], owner_id=row["owner_id"])


def of_workspace(connection: sqlite3.Connection, workspace_id: str, visible_to: str | None = None) -> Place:
    """Return the place of a rule for a workspace or project.

    Raises NotFound, also for one of another owner.
    """
    row = connection.execute(
        """
        SELECT generation, owner_id, source FROM workspaces
        WHERE workspace_id = :workspace_id AND (:visible_to IS NULL OR owner_id = :visible_to)
        """,
        {"workspace_id": workspace_id, "visible_to": visible_to},
    ).fetchone()
    if row is None:
        raise workspace_not_found(workspace_id)
    scope = "project" if row["source"] == "folder" else "workspace"
    return Place(scope, row["generation"], owner_id=row["owner_id"])


def of_execution(
    connection: sqlite3.Connection, execution_id: str, *, conversation: bool, visible_to: str | None = None
) -> Place:
    """Return the place of a rule for an execution or its conversation.

    Raises NotFound as `of_workspace` does.
    """
    row = connection.execute(
        """
        SELECT number, workspace_generation, conversation, owner_id FROM executions
        WHERE execution_id = :execution_id AND (:visible_to IS NULL OR owner_id = :visible_to)
        """,
        {"execution_id": execution_id, "visible_to": visible_to},
    ).fetchone()
    if row is None:
        raise execution_not_found(execution_id)
    if conversation:
        return Place("conversation", row["workspace_generation"], row["conversation"], owner_id=row["owner_id"])
    return Place("execution", row["workspace_generation"], execution=row["number"], owner_id=row["owner_id"])


def for_execution(db: Database, execution: int) -> list[Rule]:
    """Return the rules that people set for an execution."""
    with db.read() as connection:
        return of(connection, execution)


def of(connection: sqlite3.Connection, execution: int) -> list[Rule]:
    """Return the rules that people set for an execution, in the caller's transaction."""
    rows = connection.execute(
        """
        SELECT r.decision, r.tool, r.pattern FROM executions x JOIN rules r ON r.scope = 'agent'
            OR (r.workspace_generation = x.workspace_generation AND r.owner_id IS x.owner_id
                AND (r.scope IN ('workspace', 'project')
                    OR (r.scope = 'conversation' AND r.conversation = x.conversation)
                    OR (r.scope = 'execution' AND r.execution = x.number)))
        WHERE x.number = :execution ORDER BY r.rowid
        """,
        {"execution": execution},
    ).fetchall()
    return [Rule(row["decision"], row["tool"], row["pattern"]) for row in rows]


def listing(db: Database, visible_to: str | None = None) -> list[StoredRule]:
    """Rules of the owner `visible_to`, or of all, oldest first."""
    with db.read() as connection:
        rows = connection.execute(f"{_SELECT} WHERE {_VISIBLE} ORDER BY r.rowid", {"visible_to": visible_to}).fetchall()
    return [_stored(row) for row in rows]


def get(db: Database, rule_id: str) -> StoredRule:
    """One rule. Raises NotFound."""
    with db.read() as connection:
        row = connection.execute(f"{_SELECT} WHERE r.rule_id = :rule_id", {"rule_id": rule_id}).fetchone()
    if row is None:
        raise rule_not_found(rule_id)
    return _stored(row)


def remove(db: Database, rule_id: str, visible_to: str | None = None) -> None:
    """Remove a rule. Raises NotFound, also for one of another owner than `visible_to`."""
    with db.write() as connection:
        removed = connection.execute(
            f"DELETE FROM rules AS r WHERE r.rule_id = :rule_id AND {_VISIBLE}",  # noqa: S608 - a literal
            {"rule_id": rule_id, "visible_to": visible_to},
        ).rowcount
    if not removed:
        raise rule_not_found(rule_id)


def _stored(row: sqlite3.Row) -> StoredRule:
    place = Place(row["scope"], row["workspace_generation"], row["conversation"], row["execution"], row["owner_id"])
    rule = Rule(row["decision"], row["tool"], row["pattern"])
    return StoredRule(
        row["rule_id"], place, rule, row["workspace_id"], row["execution_id"], row["actor"], row["created_at"]
    )
