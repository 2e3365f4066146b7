"""The files of an agent's own workspaces, and its snapshots, for the API."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flask import Response, request
from werkzeug.exceptions import RequestedRangeNotSatisfiable
from werkzeug.wsgi import wrap_file

from occ_app import errors
from occ_app.api.files import SentFile
from occ_app.config.config import Config
from occ_app.database.database import Database
from occ_app.executions import queries as executions
from occ_app.executions.changes import PRUNED
from occ_app.executions.records import Execution
from occ_app.snapshots import changes as differences
from occ_app.snapshots.changes import Change
from occ_app.snapshots.git import TooSlow
from occ_app.snapshots.objects import MissingObject
from occ_app.snapshots.scan import Skipped
from occ_app.snapshots.store import Snapshots
from occ_app.system.process_identity import own_identity
from occ_app.workspaces import open_files, restores
from occ_app.workspaces.workspace import Workspace


@dataclass(frozen=True)
class LocalFiles:
    """See Files; each reply with a file has at most `config.max_unpacked_bytes`."""

    config: Config
    db: Database
    snapshots: Snapshots

    def changes(self, execution: Execution) -> dict[str, Any]:
        base, result = _trees(execution)
        return {
            "execution_id": execution.execution_id,
            "workspace_id": execution.workspace_id,
            **execution.changes,
            "entries": [_entry(change) for change in self._changed(execution)[: differences.MAX_ENTRIES]],
            "base": base,
            "result": result,
        }

    def diff(self, execution: Execution, path: str | None) -> Iterator[bytes]:
        changed, only = self._changed(execution), None
        if path is not None:
            only = next((each for each in changed if each.path == path.encode(errors="surrogateescape")), None)
            if only is None:
                raise errors.file_not_found(path, "the execution did not change it")
        if not changed:
            return iter(())
        try:
            git = self.snapshots.git(execution.workspace_generation)
        except Skipped as reason:
            raise errors.changes_not_found(execution.execution_id, str(reason)) from None
        return differences.patch(git, *_trees(execution), changed, only)

    def stored(self, execution: Execution, path: str, at: str) -> SentFile:
        objects = self.snapshots.objects(execution.workspace_generation)
        try:
            entry = objects.entry(_trees(execution)[at == "end"], path.encode(errors="surrogateescape"))
            if entry is None or entry.folder:
                raise errors.file_not_found(path, f"the snapshot at the {at} of the execution does not have it")
            size, content = objects.open(entry.oid, "blob")
        except MissingObject:
            raise errors.changes_not_found(execution.execution_id, "lost") from None
        return SentFile(size, f"{entry.mode:06o}", content)

    def folder(self, workspace: Workspace, path: str) -> dict[str, Any]:
        found, truncated = open_files.entries(Path(workspace.path), path, project=workspace.is_project)
        return {"path": path, "entries": found, "truncated": truncated}

    def file(self, workspace: Workspace, path: str) -> Response:
        source = open_files.open_file(Path(workspace.path), path, project=workspace.is_project)
        size = source.seek(0, 2)
        source.seek(0)
        response = Response(
            wrap_file(request.environ, source), content_type="application/octet-stream", direct_passthrough=True
        )
        response.call_on_close(source.close)
        response.content_length = size
        try:
            response.make_conditional(request, accept_ranges=True, complete_length=size)
        except RequestedRangeNotSatisfiable:
            source.close()
            raise errors.InvalidRequest(
                f"The range is outside of the file, which has {size} bytes.", {"Range": [f"At most {size}."]}
            ) from None
        if (response.content_length or 0) > self.config.max_unpacked_bytes:
            source.close()
            raise errors.RequestError(
                "FILE_TOO_LARGE",
                f"The file has {size} bytes; request ranges of at most {self.config.max_unpacked_bytes}.",
                {"size": size, "limit": self.config.max_unpacked_bytes},
            )
        return response

    def restore(self, workspace: Workspace, execution_id: str, to: str, *, force: bool) -> dict[str, Any]:
        source = restores.source(self.db, workspace.generation, execution_id, to)
        if source is None:
            execution = executions.get(self.db, execution_id)
            if execution.workspace_generation != workspace.generation:
                raise errors.execution_not_found(execution_id)
            if execution.changes is None:
                raise errors.changes_not_found(execution_id, execution.why_no_changes or "")
            base, result = _trees(execution)
            trees = (result, base) if to == "start" else (base, result)
            source = restores.Source(execution_id, *trees, exact=execution.changes.get("exact") is True)
        return restores.restore(self.db, self.snapshots, workspace, source, own_identity(), force=force)

    def _changed(self, execution: Execution) -> list[Change]:
        try:
            return self.snapshots.changes(execution.workspace_generation, *_trees(execution))
        except Skipped as reason:
            raise errors.changes_not_found(execution.execution_id, str(reason)) from None
        except MissingObject:
            raise errors.changes_not_found(execution.execution_id, "lost") from None
        except TooSlow:
            raise errors.Unavailable("BUSY", "The comparison took too long; try again in a moment.") from None


def _trees(execution: Execution) -> tuple[str, str]:
    if execution.start_tree is None or execution.end_tree is None:
        raise errors.changes_not_found(execution.execution_id, PRUNED)
    return execution.start_tree, execution.end_tree


def _entry(change: Change) -> dict[str, Any]:
    """Return a change for JSON, whose text cannot hold every name."""
    names = ("status", "additions", "deletions", "binary", "size", "mode", "old_mode")
    old_path = None if change.old_path is None else change.old_path.decode(errors="replace")
    shown = {name: getattr(change, name) for name in names}
    return {"path": change.path.decode(errors="replace"), "old_path": old_path, **shown}
