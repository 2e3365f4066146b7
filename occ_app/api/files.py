"""Files of workspaces and changes of executions: diffs, single files, restores."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import quote

from flask import Blueprint, Response, g

from occ_app import errors
from occ_app.api.services import services
from occ_app.executions import queries as executions
from occ_app.executions.records import Execution
from occ_app.streams import tail
from occ_app.web import callers, schemas
from occ_app.web.contracts import contract
from occ_app.workspaces import open_files
from occ_app.workspaces import workspace as workspaces
from occ_app.workspaces.workspace import Workspace

bp = Blueprint("files", __name__)

PENDING_SECONDS = 20.0  # for the snapshot after an execution to be stored
_BYTES = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
_PATCH = {"text/x-diff": {"schema": {"type": "string"}}}


@dataclass(frozen=True)
class SentFile:
    """A file on its way to a caller: its bytes, git's mode in octal, its content."""

    size: int
    mode: str
    content: Iterator[bytes]


class Files(Protocol):
    """The files of an agent's workspaces, or of those on a hub's machines.

    Paths are text, with slashes.
    """

    def changes(self, execution: Execution) -> dict[str, Any]:
        """Return the reply of GET /executions/{id}/changes.

        Raises NotFound and Unavailable, as all methods here.
        """

    def diff(self, execution: Execution, path: str | None) -> Iterator[bytes]:
        """Return the patch of an execution, or of one file."""

    def stored(self, execution: Execution, path: str, at: str) -> SentFile:
        """Return a file as it was at the start or the end of an execution."""

    def folder(self, workspace: Workspace, path: str) -> dict[str, Any]:
        """Return the entries of a folder of a workspace."""

    def file(self, workspace: Workspace, path: str) -> Response:
        """Return a file of a workspace, or the range that the request asks for."""

    def restore(self, workspace: Workspace, execution_id: str, to: str, *, force: bool) -> dict[str, Any]:
        """Undo the changes of an execution or a restore, or make them again.

        Raises Conflict.
        """


def files() -> Files:
    """Return the files of the application that answers this request."""
    found: Files = services().files
    return found


@bp.before_request
def enter() -> None:
    """Take a place for the thread of this request.

    It may wait for a snapshot or, on a hub, for a machine.
    """
    g.file_read = services().file_reads.place(callers.caller().key_id)


@bp.teardown_request
def leave(_: object) -> None:
    """Free the place, if there was one."""
    place = g.pop("file_read", None)
    if place is not None:
        place.close()


@bp.get("/executions/<execution_id>/changes")
@contract(reply=schemas.Changes)
def changes(execution_id: str) -> Any:
    """Return the files that an execution changed.

    Waits a while for those of one that has just ended.
    """
    return files().changes(recorded(execution_id))


@bp.get("/executions/<execution_id>/diff")
@contract(query=schemas.DiffQuery, content=_PATCH)
def diff(execution_id: str, query: dict[str, Any]) -> Response:
    """Return the changes of an execution as a patch that `git apply --binary` takes."""
    content = files().diff(recorded(execution_id), query.get("path"))
    return Response(content, content_type="text/x-diff; charset=utf-8")


@bp.get("/executions/<execution_id>/files/<path:path>")
@contract(query=schemas.SideQuery, content=_BYTES)
def stored(execution_id: str, path: str, query: dict[str, Any]) -> Response:
    """Return a file as it was at the start or the end of an execution."""
    open_files.plain_parts(path)  # a hub's call with dots would lead to another address of its machine
    found = files().stored(recorded(execution_id), path, query["at"])
    response = Response(found.content, content_type="application/octet-stream")
    response.content_length = found.size
    response.headers["OCC-Mode"] = found.mode
    return as_attachment(response, path)


@bp.get("/workspaces/<workspace_id>/files")
@contract(query=schemas.FolderQuery, reply=schemas.FolderContent)
def folder(workspace_id: str, query: dict[str, Any]) -> Any:
    """List the entries of a folder of a workspace by name."""
    return files().folder(_workspace(workspace_id, query.get("generation")), query["path"])


@bp.get("/workspaces/<workspace_id>/files/<path:path>")
@contract(query=schemas.GenerationQuery, content=_BYTES)
def file(workspace_id: str, path: str, query: dict[str, Any]) -> Response:
    """Return a file of a workspace as it is now, or the range of the header Range."""
    open_files.plain_parts(path)
    return as_attachment(files().file(_workspace(workspace_id, query.get("generation")), path), path)


@bp.post("/workspaces/<workspace_id>/restore")
@contract(query=schemas.GenerationQuery, body=schemas.RestoreBody, reply=schemas.Restored)
def restore(workspace_id: str, query: dict[str, Any], body: dict[str, Any]) -> Any:
    """Restore the files that an execution changed.

    They are restored to its start, or again to its end.
    """
    services().refuse_when_stopping()
    workspace = _workspace(workspace_id, query.get("generation"))
    return files().restore(workspace, body["execution_id"], body["to"], force=body["force"])


def as_attachment(response: Response, path: str) -> Response:
    """Have a browser save a file instead of showing it."""
    name = quote(path.rpartition("/")[2].encode(errors="replace"), safe="")
    response.headers["Content-Disposition"] = f"attachment; filename*=UTF-8''{name}"
    response.headers["Cache-Control"] = "no-store"
    return response


def _workspace(workspace_id: str, generation: int | None = None) -> Workspace:
    return workspaces.get(services().db, workspace_id, callers.caller().visible_to, generation)


def recorded(execution_id: str) -> Execution:
    """Return an execution of the caller whose changes are known.

    Raises NotFound with the reason.
    """
    own, visible_to = services(), callers.caller().visible_to
    execution = executions.get(own.db, execution_id, visible_to)
    if execution.over and execution.why_no_changes == "pending":
        key = tail.execution_key(execution.number)
        channel = own.tail.subscribe(key)
        try:
            deadline = time.monotonic() + PENDING_SECONDS
            while execution.why_no_changes == "pending" and time.monotonic() < deadline and not own.tail.closed:
                rings = channel.rings
                execution = executions.get(own.db, execution_id, visible_to)
                if execution.why_no_changes == "pending":
                    own.tail.wait(channel, lambda seen=rings: channel.rings > seen, 1.0)  # type: ignore[misc]  # mypy does not infer the default
        finally:
            own.tail.unsubscribe(key)
    if execution.changes is None:
        raise errors.changes_not_found(execution_id, execution.why_no_changes or "")
    return execution
