"""Changes of executions, files of workspaces and restores on the wire."""

from __future__ import annotations

from marshmallow import Schema, fields, validate

from occ_app.web.fields import Id, TrueOrFalse
from occ_app.web.schemas.base import RequestSchema
from occ_app.web.schemas.executions import ChangesSummary


class ChangedFile(Schema):
    """One file that an execution changed; modes are git's, in octal."""

    path = fields.String()
    old_path = fields.String(data_key="oldPath", allow_none=True)
    status = fields.String(validate=validate.OneOf(["added", "modified", "deleted", "renamed"]))
    additions = fields.Integer()
    deletions = fields.Integer()
    binary = fields.Boolean()
    size = fields.Integer()
    mode = fields.String(allow_none=True)
    old_mode = fields.String(data_key="oldMode", allow_none=True)


class Changes(ChangesSummary):
    """The reply to GET /executions/{id}/changes.

    `base` and `result` are the trees before and after.
    """

    execution_id = fields.String(data_key="executionId")
    workspace_id = fields.String(data_key="workspaceId")
    entries = fields.List(fields.Nested(ChangedFile))
    base = fields.String()
    result = fields.String()


class DiffQuery(RequestSchema):
    """The query of GET /executions/{id}/diff.

    `path` selects one file, by its name after the execution.
    """

    path = fields.String(validate=validate.Length(1, 4096))


class SideQuery(RequestSchema):
    """The query of GET /executions/{id}/files/{path}: before or after it."""

    at = fields.String(load_default="end", validate=validate.OneOf(["start", "end"]))


class FolderQuery(RequestSchema):
    """The query of GET /workspaces/{id}/files.

    `path` is a folder; by default the workspace's own.
    """

    path = fields.String(load_default="", validate=validate.Length(max=4096))
    generation = fields.Integer(validate=validate.Range(1, 2**62))


class FolderEntry(Schema):
    """One entry of a folder; `size` in bytes, `mode` in octal."""

    name = fields.String()
    type = fields.String(validate=validate.OneOf(["file", "folder", "link"]))
    size = fields.Integer()
    mode = fields.String()
    modified_at = fields.String(data_key="modifiedAt")


class FolderContent(Schema):
    """The reply to GET /workspaces/{id}/files.

    `truncated` when there are more entries.
    """

    path = fields.String()
    entries = fields.List(fields.Nested(FolderEntry))
    truncated = fields.Boolean()


class RestoreBody(RequestSchema):
    """The body of POST /workspaces/{id}/restore.

    `executionId` may be a restore's id, which undoes it.
    """

    execution_id = Id(data_key="executionId", required=True)
    to = fields.String(required=True, validate=validate.OneOf(["start", "end"]))
    force = TrueOrFalse(load_default=False)


class Restored(Schema):
    """The answer to a restore. Its own id can be restored to `start`, which undoes it."""

    workspace_id = fields.String(data_key="workspaceId")
    restore_id = fields.String(data_key="restoreId")
    files = fields.Integer()
    base = fields.String()
    result = fields.String()
