"""Ids as people give them: whole, by a unique beginning, or as the newest one.

They are looked up among those that the key may see, and a whole id comes first. The API itself accepts whole ids only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
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
        """Return at most `limit` ids that begin so, newest first.

        An empty beginning matches all.
        """
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
    """Give a command the argument ID, which may be a beginning, and --last."""
    command = click.option("--last", is_flag=True, help="Take the newest run instead of an ID.")(command)
    return click.argument("execution_id", metavar="ID", required=False)(command)


def execution_id(source: Executions, given: str | None, *, last: bool) -> str:
    """Return the whole id of the execution that a person names.

    Raises UsageError and NotFound.
    """
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
    return the_one(given, found, errors.execution_not_found)


def approval_id(client: AgentClient, given: str | None, *, last: bool) -> str:
    """Return the whole id of the approval that a person names.

    It is an open one, else a closed one. Raises UsageError and NotFound.
    """
    if (given is None) != last:
        raise click.UsageError("Give the ID of one approval, or its beginning, or --last.")
    listed = _approvals(client, "?state=open")
    if given is None:
        if not listed:
            raise errors.NotFound("APPROVAL_NOT_FOUND", "Nothing waits for a person.")
        return listed[-1]
    for known in (listed, _approvals(client, "")):
        found = [each for each in known if each == given] or [each for each in known if each.startswith(given)]
        if found:
            return the_one(given, found, errors.approval_not_found)
    return given


def _approvals(client: AgentClient, query: str) -> list[str]:
    """Return the ids of approvals, oldest first.

    With a query, those that wait for a person.
    """
    listed = client.call("GET", f"/approvals{query}")["approvals"]
    return [str(each["approvalId"]) for each in listed if not query or each.get("pending") is None]


def workspace(client: AgentClient, given: str) -> dict[str, Any]:
    """Return the record of the workspace that a person names.

    It is named by its id, its alias, or a beginning. Raises NotFound.
    """
    if "@" not in given:
        try:
            return client.workspace(given)
        except errors.Refused as refusal:
            if refusal.status != 404:
                raise
    return _workspace_of(client.workspaces(), given)


def workspace_id(client: AgentClient, given: str) -> str:
    """Return the name under which to run in the workspace that a person names.

    It is a project's alias, else the id.
    """
    record = workspace(client, given)
    return str(record.get("alias") or record["workspaceId"])


def workspace_filter(records: Iterable[Mapping[str, Any]], given: str) -> str:
    """Return the id for a list of one workspace's executions.

    An id that no workspace has now may be a removed one's. Raises NotFound for a beginning of several ids.
    """
    listed = list(records)
    if not any(name.startswith(given) for record in listed for name in _names_of(record)):
        return given
    return str(_workspace_of(listed, given)["workspaceId"])


def _workspace_of(records: Sequence[Mapping[str, Any]], given: str) -> dict[str, Any]:
    exact = [record for record in records if given in _names_of(record)]
    found = exact or [record for record in records if any(name.startswith(given) for name in _names_of(record))]
    by_name = {_names_of(record)[0]: record for record in found}
    return dict(by_name[the_one(given, list(by_name), errors.workspace_not_found)])


def _names_of(record: Mapping[str, Any]) -> list[str]:
    """Return the names of a workspace, the one for people first."""
    return [str(name) for name in (record.get("alias"), record["workspaceId"]) if name]


def the_one(given: str, found: Sequence[str], missing: Callable[[str], errors.NotFound]) -> str:
    """Return the only one of the ids found.

    Raises NotFound: the `missing` one, or that of several.
    """
    if len(found) == 1:
        return found[0]
    error = missing(given)
    if not found:
        raise error
    more = ", …" if len(found) > _NAMED else ""
    raise errors.NotFound(
        error.code, f"{given} is the beginning of several ids: {', '.join(found[:_NAMED])}{more}. Give more of it."
    )
