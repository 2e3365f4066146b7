"""The files of a hub's workspaces, requested from the machines that have them.

Everything that a machine sends is checked.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any
from urllib.parse import quote, urlencode

from flask import Response, request
from marshmallow import EXCLUDE, Schema, ValidationError
from werkzeug.wsgi import wrap_file

from occ_app import errors
from occ_app.api.files import SentFile
from occ_app.client.agent_client import AgentClient
from occ_app.config.config import HubConfig
from occ_app.database.database import Database
from occ_app.executions.records import Execution
from occ_app.hub import fetched_changes
from occ_app.hub.agent_clients import Calls
from occ_app.hub.agents import Agents
from occ_app.system.foreign_text import storable
from occ_app.web import schemas
from occ_app.web.fields import schema_of
from occ_app.workspaces.workspace import Workspace

_PIECE = 1 << 16
_RESTORE_SECONDS = 300.0
_CODES = {  # refusals that the caller can act on; any other is reported as a machine that does not answer
    *("CHANGES_NOT_FOUND", "FILE_NOT_FOUND", "FILE_TOO_LARGE", "RESTORE_CONFLICT", "WORKSPACE_BUSY"),
    *("WORKSPACE_NOT_FOUND", "EXECUTION_NOT_FOUND", "INVALID_REQUEST", "BUSY", "NO_SPACE"),
}


@dataclass(frozen=True)
class RemoteFiles:
    """A hub's implementation of the files in occ_app/api/files.py."""

    config: HubConfig
    db: Database
    agents: Agents
    calls: Calls

    def changes(self, execution: Execution) -> dict[str, Any]:
        reply = fetched_changes.kept(self.db, execution.number)
        if reply is None:
            with self._asked(execution.agent_id) as client:
                reply = fetched_changes.checked(client.call("GET", f"{_execution(execution)}/changes"))
        return reply | {
            "execution_id": execution.execution_id,
            "workspace_id": execution.workspace_id,
        }

    def diff(self, execution: Execution, path: str | None) -> Iterator[bytes]:
        kept = fetched_changes.kept_patch(self.db, execution.number)
        if kept is not None and path is not None:
            kept = self._part(execution, kept, path)
        if kept is not None:
            return iter((kept,))
        query = "" if path is None else f"?{urlencode({'path': path})}"
        output, _, _ = self._downloaded(
            execution.agent_id, f"{_execution(execution)}/diff{query}", self.config.max_unpacked_bytes
        )
        return _content(output)

    def _part(self, execution: Execution, patch: bytes, path: str) -> bytes | None:
        """Return the part of a stored patch about one file.

        Returns None when it cannot be found.
        """
        changes = fetched_changes.kept(self.db, execution.number)
        entries = changes["entries"] if changes else []
        entry = next((each for each in entries if each["path"] == path), None)
        return None if entry is None else fetched_changes.of_file(patch, path, entry["old_path"])

    def stored(self, execution: Execution, path: str, at: str) -> SentFile:
        where = f"{_execution(execution)}/files/{_quoted(path)}?at={at}"
        output, _, headers = self._downloaded(execution.agent_id, where, self.config.max_unpacked_bytes)
        mode = headers.get("OCC-Mode", "")
        size = output.seek(0, 2)
        output.seek(0)
        return SentFile(size, mode if re.fullmatch("[0-7]{6}", mode) else "100644", _content(output))

    def folder(self, workspace: Workspace, path: str) -> dict[str, Any]:
        with self._asked(workspace.agent_id) as client:
            reply = client.call("GET", _workspace(workspace, "files", path=path))
            return _checked(schemas.FolderContent, reply) | {"path": path}

    def file(self, workspace: Workspace, path: str) -> Response:
        asked = {"Range": request.headers["Range"]} if "Range" in request.headers else {}
        where = _workspace(workspace, f"files/{_quoted(path)}")
        output, status, headers = self._downloaded(workspace.agent_id, where, self.config.max_unpacked_bytes, asked)
        response = Response(
            wrap_file(request.environ, output), content_type="application/octet-stream", direct_passthrough=True
        )
        response.call_on_close(output.close)
        response.content_length = output.seek(0, 2)
        output.seek(0)
        response.headers["Accept-Ranges"] = "bytes"
        if status == 206 and re.fullmatch(r"bytes [0-9]+-[0-9]+/[0-9]+", headers.get("Content-Range", "")):
            response.status_code = 206
            response.headers["Content-Range"] = headers["Content-Range"]
        return response

    def restore(self, workspace: Workspace, execution_id: str, to: str, *, force: bool) -> dict[str, Any]:
        body = {"executionId": execution_id, "to": to, "force": force}
        with self._asked(workspace.agent_id) as client:
            reply = client.call("POST", _workspace(workspace, "restore"), body, _RESTORE_SECONDS)
            return _checked(schemas.Restored, reply) | {"workspace_id": workspace.workspace_id}

    @contextlib.contextmanager
    def _asked(self, agent_id: str | None) -> Iterator[AgentClient]:
        """Yield a client of a machine, and translate the machine's refusals.

        Raises Unavailable when it does not answer.
        """
        agent = self.agents.find(agent_id) if agent_id else None
        try:
            if agent is None:
                raise errors.Unreachable("no machine has it.")
            yield self.calls.client(agent)
        except errors.Refused as refusal:
            if refusal.code in _CODES:
                raise errors.RequestError(refusal.code, str(refusal), refusal.details) from None
            raise _away(refusal) from None
        except (errors.Unreachable, ValidationError, ValueError) as error:
            raise _away(error) from None

    def _downloaded(
        self, agent_id: str | None, path: str, limit: int, headers: Mapping[str, str] | None = None
    ) -> tuple[IO[bytes], int, Mapping[str, str]]:
        """Fetch a body into a temporary file, which the caller closes."""
        folder = self.config.run / "uploads"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        output = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed with the response
        try:
            with self._asked(agent_id) as client:
                status, received = client.download(path, output, limit, headers)
        except BaseException:
            output.close()
            raise
        output.seek(0)
        return output, status, received


def _checked(schema: type[Schema], reply: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = schema_of(schema).load(storable(dict(reply)), unknown=EXCLUDE)
    return found


def _away(error: Exception) -> errors.Unavailable:
    return errors.Unavailable("AGENT_UNREACHABLE", f"The machine with these files does not send them: {error}")


def _execution(execution: Execution) -> str:
    return f"/executions/{quote(execution.execution_id, safe='')}"


def _workspace(workspace: Workspace, rest: str, **query: str) -> str:
    """Return the address of a workspace on its machine.

    The machine knows a project by its name. The address has the workspace's number there, so that no other workspace
    with that id is read.
    """
    name = workspace.name if workspace.is_project else workspace.workspace_id
    number = {} if workspace.agent_generation is None else {"generation": str(workspace.agent_generation)}
    asked = {key: value for key, value in (query | number).items() if value}
    return f"/workspaces/{quote(name, safe='')}/{rest}" + (f"?{urlencode(asked)}" if asked else "")


def _quoted(path: str) -> str:
    return quote(path.encode(errors="surrogateescape"), safe="/")


def _content(output: IO[bytes]) -> Iterator[bytes]:
    with output:
        while piece := output.read(_PIECE):
            yield piece
