"""Ids as people give them: whole, by any beginning that only one has, or as the newest one.

They are looked up among those that the key may see, and a whole id wins. The API itself takes whole ids only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import click

from occ_app import errors
from occ_app.database.database import Database
from occ_app.executions import queries as executions

if TYPE_CHECKING:
    from occ_app.client.agent_client import AgentClient

_BEGINNING = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
_NAMED = 5  # of the ids that have the same beginning


class Executions(Protocol):
    """The executions of an agent or hub, as far as their ids go."""

    def has(self, execution_id: str) -> bool:
        """Return whether there is an execution with exactly this id."""
        ...

    def beginning_with(self, beginning: str, limit: int) -> list[str]:
        """Return at most `limit` ids that begin so, newest first; with an empty beginning the newest of all."""
        ...


class StoredExecutions:
    """The executions in a database of this machine."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def has(self, execution_id: str) -> bool:
        return executions.find(self._db, execution_id) is not None

    def beginning_with(self, beginning: str, limit: int) -> list[str]:
        found, _ = executions.listing(self._db, id_prefix=beginning or None, limit=limit)
        return [each.execution_id for each in found]


class ServedExecutions:
    """The executions that an agent or hub lists for a key."""

    def __init__(self, client: AgentClient) -> None:
        self._client = client

    def has(self, execution_id: str) -> bool:
        try:
            self._client.execution(execution_id)
        except errors.Refused as refusal:
            if refusal.status == 404:
                return False
            raise
        return True

    def beginning_with(self, beginning: str, limit: int) -> list[str]:
        query: dict[str, Any] = {"limit": limit} | ({"idPrefix": beginning} if beginning else {})
        try:
            page = self._client.executions(**query)
        except errors.Refused as refusal:
            if beginning and refusal.code == "INVALID_REQUEST":  # an agent or hub of an older version
                return []
            raise
        return [str(each["executionId"]) for each in page["executions"]]


def choosing(command: Any) -> Any:
    """Give a command the argument ID, which may be a beginning, and the option --last; it gets both."""
    command = click.option("--last", is_flag=True, help="Take the newest run instead of an ID.")(command)
    return click.argument("execution_id", metavar="ID", required=False)(command)


def execution_id(source: Executions, given: str | None, *, last: bool) -> str:
    """Return the whole id of the execution that a person means. Raises UsageError and NotFound."""
    if (given is None) != last:
        raise click.UsageError("Give the ID of one run, or its beginning, or --last.")
    if given is None:
        newest = source.beginning_with("", 1)
        if not newest:
            raise errors.NotFound("EXECUTION_NOT_FOUND", "There are no executions yet.")
        return newest[0]
    if source.has(given):
        return given
    found = source.beginning_with(given, _NAMED + 1) if re.fullmatch(_BEGINNING, given) else []
    return _the_one(given, found, errors.execution_not_found)


def workspace_id(client: AgentClient, given: str) -> str:
    """Return the whole id, or the alias, of the workspace that a person means. Raises NotFound."""
    if "@" not in given:
        try:
            return str(client.workspace(given)["workspaceId"])
        except errors.Refused as refusal:
            if refusal.status != 404:
                raise
    names = [str(each.get("alias") or each["workspaceId"]) for each in client.workspaces()]
    if given in names:
        return given
    return _the_one(given, [name for name in names if name.startswith(given)], errors.workspace_not_found)


def _the_one(given: str, found: Sequence[str], missing: Callable[[str], errors.NotFound]) -> str:
    if len(found) == 1:
        return found[0]
    error = missing(given)
    if not found:
        raise error
    more = ", …" if len(found) > _NAMED else ""
    raise errors.NotFound(
        error.code, f"{given} is the beginning of several ids: {', '.join(found[:_NAMED])}{more}. Give more of it."
    )
