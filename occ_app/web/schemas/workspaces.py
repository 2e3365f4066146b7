"""Uploads and workspaces on the wire."""

from __future__ import annotations

from marshmallow import Schema, fields, validate

from occ_app.web.fields import Id, check_one_line, check_text
from occ_app.web.schemas.base import LARGEST_GENERATION, RequestSchema


class InitForm(RequestSchema):
    """The text parts of POST /workspace/init; the zip is the file part `zip`.

    Only with the policy update: `base`, the snapshot that it changes, and `deletions`, a JSON list of paths.
    """

    workspace_id = Id(data_key="workspaceId", required=True)
    name = fields.String(required=True, validate=[validate.Length(1, 200), check_one_line])
    process_policy = fields.String(
        data_key="processPolicy", required=True, validate=validate.OneOf(["overwrite", "reuse", "update"])
    )
    description = fields.String(load_default="", validate=[validate.Length(max=10_000), check_text])
    strip_root = fields.Boolean(
        data_key="stripRoot", load_default=False, truthy={"true", "True"}, falsy={"false", "False"}
    )  # the second spelling is that of clients that are generated for Python
    base = fields.String(load_default=None, validate=validate.Regexp(r"[0-9a-f]{40}\Z"))
    deletions = fields.String(load_default="[]")


class InitUpload(InitForm):
    """The whole form, as the document shows it; the file is read separately."""

    zip = fields.Raw(required=True, metadata={"type": "string", "format": "binary"})


class GenerationQuery(RequestSchema):
    """The query of a call about one workspace.

    With `generation`, the workspace must have that number.
    """

    generation = fields.Integer(validate=validate.Range(1, LARGEST_GENERATION))


class SkippedEntry(Schema):
    """An entry of the zip that was left out."""

    path = fields.String()
    reason = fields.String()


class InitReply(Schema):
    """The answer to POST /workspace/init."""

    status = fields.String(validate=validate.Equal("success"))
    workspace_id = fields.String(data_key="workspaceId")
    path = fields.String()
    reused = fields.Boolean()
    files = fields.Integer()
    bytes = fields.Integer()
    skipped = fields.List(fields.Nested(SkippedEntry))
    stripped = fields.String(allow_none=True)
    snapshot = fields.String(allow_none=True)
    generation = fields.Integer()
    agent_id = fields.String(data_key="agentId", allow_none=True)


class WorkspaceOrigin(Schema):
    """The hub, its key and its upload that an agent's workspace came from."""

    hub_id = fields.String(data_key="hubId")
    key_id = fields.String(data_key="keyId")
    zip = fields.String()
    uploaded_at = fields.String(data_key="uploadedAt")


class WorkspaceRecord(Schema):
    """The record of a workspace."""

    workspace_id = fields.String(data_key="workspaceId")
    name = fields.String()
    description = fields.String()
    path = fields.String()
    files = fields.Integer()
    bytes = fields.Integer()
    skipped = fields.List(fields.Nested(SkippedEntry))
    created_at = fields.String(data_key="createdAt")
    updated_at = fields.String(data_key="updatedAt")
    snapshot = fields.String(allow_none=True)
    generation = fields.Integer()
    agent_id = fields.String(data_key="agentId", allow_none=True)
    source = fields.String(validate=validate.OneOf(["upload", "folder"]))
    alias = fields.String(allow_none=True)
    origin = fields.Nested(WorkspaceOrigin, allow_none=True)
    permissions = fields.String(allow_none=True)


class WorkspaceList(Schema):
    """All workspaces, by id."""

    workspaces = fields.List(fields.Nested(WorkspaceRecord))
