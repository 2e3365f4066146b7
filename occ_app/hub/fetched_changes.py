"""Changes of executions, fetched from their machines and stored on the hub.

They are fetched when an execution ends, so that they can be read while its machine is off. Everything that a machine
sends is checked: numbers, texts and sizes.
"""

from __future__ import annotations

import io
import json
import logging
import re
import zlib
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from marshmallow import EXCLUDE, Schema, ValidationError, fields, validate

from occ_app.client.agent_client import AgentClient
from occ_app.database.database import Database
from occ_app.errors import Refused
from occ_app.executions.queries import from_row, select
from occ_app.executions.records import LARGEST_NUMBER, Execution
from occ_app.snapshots.objects import OID_PATTERN
from occ_app.system.compact_json import to_json
from occ_app.system.foreign_text import storable
from occ_app.web.fields import TrueOrFalse, WholeNumber, schema_of
from occ_app.workspaces import workspace as workspaces

log = logging.getLogger("occ.changes")

_CALL_SECONDS = 30.0
_MAX_PATH = 4096
_REASON = re.compile("[a-z][a-z ]{0,39}")
_MODE = r"^[0-7]{6}$"


class _Reply(Schema):
    class Meta:
        unknown = EXCLUDE


def _count() -> WholeNumber:
    return WholeNumber(required=True, validate=validate.Range(0, LARGEST_NUMBER))


class _Sums(_Reply):
    files = _count()
    additions = _count()
    deletions = _count()
    truncated = TrueOrFalse(required=True)
    exact = TrueOrFalse(required=True)


class _Entry(_Reply):
    path = fields.String(required=True, validate=validate.Length(1, _MAX_PATH))
    old_path = fields.String(data_key="oldPath", required=True, allow_none=True, validate=validate.Length(1, _MAX_PATH))
    status = fields.String(required=True, validate=validate.OneOf(["added", "modified", "deleted", "renamed"]))
    additions = _count()
    deletions = _count()
    binary = TrueOrFalse(required=True)
    size = _count()
    mode = fields.String(required=True, allow_none=True, validate=validate.Regexp(_MODE))
    old_mode = fields.String(data_key="oldMode", required=True, allow_none=True, validate=validate.Regexp(_MODE))


class _Changes(_Sums):
    entries = fields.List(fields.Nested(_Entry), required=True, validate=validate.Length(max=10_000))
    base = fields.String(required=True, validate=validate.Regexp(f"^{OID_PATTERN}$"))
    result = fields.String(required=True, validate=validate.Regexp(f"^{OID_PATTERN}$"))


class _TooLarge(Exception):
    """A diff over the limit."""


class _Limited(io.BytesIO):
    """A buffer that holds at most `limit` bytes."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit

    def write(self, content: Any) -> int:
        if self.tell() + len(content) > self._limit:
            raise _TooLarge
        return super().write(content)


def checked(reply: Mapping[str, Any]) -> dict[str, Any]:
    """Return a machine's reply about changes, loaded by its schema.

    Raises ValidationError or ValueError.
    """
    return _loaded(_Changes, reply)


def fetch(db: Database, client: AgentClient, execution: Execution, limit: int) -> bool:
    """Fetch and store the changes of an execution that is over.

    A diff over `limit` bytes is not stored. Returns False while the machine is still recording the changes. Raises
    Unreachable, and Refused when the machine cannot answer now.
    """
    workspace = workspaces.numbered(db, execution.workspace_generation)
    if workspace is None:
        _give_up(db, execution.number, "lost")
        return True
    path = f"/executions/{quote(execution.execution_id, safe='')}"
    # With the workspace's number: an earlier execution with this id on the machine is not the hub's.
    number = "" if workspace.agent_generation is None else f"?generation={workspace.agent_generation}"
    try:
        record = client.call("GET", path + number, seconds=_CALL_SECONDS)
        reason = record.get("changesReason", "not recorded")
        if reason == "pending":
            return False
        if reason is not None:
            _give_up(db, execution.number, reason if isinstance(reason, str) and _REASON.fullmatch(reason) else "lost")
            return True
        changes = checked(client.call("GET", f"{path}/changes", seconds=_CALL_SECONDS))
        _store(db, execution.number, changes, _patch(client, f"{path}/diff", limit))
    except (ValidationError, ValueError, TypeError) as error:
        log.warning("execution %s: its changes break their schema: %s", execution.execution_id, str(error)[:300])
        _give_up(db, execution.number, "invalid")
    except Refused as refusal:
        if refusal.status != 404:
            raise
        _give_up(db, execution.number, "lost")
    return True


def kept(db: Database, number: int) -> dict[str, Any] | None:
    """Return an execution's changes as its machine listed them.

    Returns None when they were not fetched.
    """
    with db.read() as connection:
        row = connection.execute(
            "SELECT changes FROM fetched_changes WHERE execution = :number", {"number": number}
        ).fetchone()
    return None if row is None else checked(json.loads(zlib.decompress(row["changes"])))


def kept_patch(db: Database, number: int) -> bytes | None:
    """Return the diff of an execution.

    Returns None when it was not fetched or was over the limit.
    """
    with db.read() as connection:
        row = connection.execute(
            "SELECT patch FROM fetched_changes WHERE execution = :number", {"number": number}
        ).fetchone()
    return None if row is None or row["patch"] is None else zlib.decompress(row["patch"])


def of_file(patch: bytes, path: str, old_path: str | None) -> bytes | None:
    """Return the part of a diff about one file; None when it cannot be found."""
    head = b"diff --git a/%b b/%b\n" % ((old_path or path).encode(), path.encode())
    parts = re.split(rb"^(?=diff --git )", patch, flags=re.MULTILINE)
    return b"".join(part for part in parts if part.startswith(head)) or None


def pending(db: Database) -> list[Execution]:
    """Return finished executions whose changes are to be fetched, oldest first."""
    with db.read() as connection:
        rows = connection.execute(
            select("x.changes_reason = 'pending' AND x.last_seq IS NOT NULL ORDER BY x.number LIMIT 1000")
        ).fetchall()
    return [from_row(row) for row in rows]


def give_up(db: Database, number: int) -> None:
    """Record that an execution's changes can no longer be fetched."""
    _give_up(db, number, "lost")


def _patch(client: AgentClient, path: str, limit: int) -> bytes | None:
    output = _Limited(limit)
    try:
        client.download(path, output, limit)
    except _TooLarge:
        return None
    return output.getvalue()


def _store(db: Database, number: int, changes: dict[str, Any], patch: bytes | None) -> None:
    sums = {name: changes[name] for name in ("files", "additions", "deletions", "truncated", "exact")}
    content = {
        "number": number,
        "sums": to_json(sums),
        "changes": zlib.compress(json.dumps(schema_of(_Changes).dump(changes)).encode()),
        "patch": None if patch is None else zlib.compress(patch),
    }
    with db.write() as connection:
        won = connection.execute(
            "UPDATE executions SET changes = :sums, changes_reason = NULL"
            " WHERE number = :number AND changes_reason = 'pending' AND prompt IS NOT NULL",
            {"number": number, "sums": content["sums"]},
        ).rowcount
        if won:
            connection.execute(
                "INSERT OR REPLACE INTO fetched_changes (execution, changes, patch) VALUES (:number, :changes, :patch)",
                content,
            )


def _give_up(db: Database, number: int, reason: str) -> None:
    with db.write() as connection:
        connection.execute(
            "UPDATE executions SET changes_reason = :reason WHERE number = :number AND changes_reason = 'pending'",
            {"number": number, "reason": reason},
        )


def _loaded(schema: type[Schema], reply: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = schema_of(schema).load(storable(dict(reply)))
    return found
