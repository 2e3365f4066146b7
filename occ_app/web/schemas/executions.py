"""Executions on the wire: the request, the record, the lists."""

from __future__ import annotations

from typing import Any

from marshmallow import Schema, ValidationError, fields, validate, validates_schema

from occ_app.config import permission_rules
from occ_app.config.settings import PERMISSIONS
from occ_app.executions import attachments, inputs
from occ_app.web.fields import (
    CURSOR_PATTERN,
    ID_PREFIX_PATTERN,
    MODEL_PATTERN,
    UUID_PATTERN,
    Base64,
    Id,
    Seconds,
    TrueOrFalse,
    WholeNumber,
    check_id_prefix,
    check_model,
    check_one_line,
    check_prompt,
    check_session,
)
from occ_app.web.schemas.base import LARGEST_GENERATION, STATES, RequestSchema


class AttachmentBody(RequestSchema):
    """An image, a PDF or a text that comes with a prompt; `data` is Base64."""

    name = fields.String(required=True, validate=[validate.Length(1, 255), check_one_line])
    data = Base64(required=True)


class AttachmentRecord(Schema):
    """The name, the kind and the size of an attachment."""

    name = fields.String()
    media_type = fields.String(data_key="mediaType", attribute="mediaType")
    bytes = fields.Integer()


def _rules(decision: str) -> Any:
    """Return the field of a request's rules, which only narrow.

    They name calls that never run, or that a person is asked about.
    """

    def check(text: str) -> None:
        check_one_line(text)
        try:
            permission_rules.parsed(text, decision)
        except ValueError as error:
            raise ValidationError(f"Not a rule: {error}.") from None

    text = fields.String(validate=[validate.Length(1, permission_rules.MAX_CHARACTERS), check])
    return fields.List(text, validate=validate.Length(max=permission_rules.MOST_IN_REQUEST))


class ExecuteBody(RequestSchema):
    """The body of POST /execute."""

    execution_id = Id(data_key="executionId", required=True)
    workspace_id: fields.String = Id(data_key="workspaceId")
    prompt = fields.String(required=True, validate=check_prompt, metadata={"pattern": r"\S"})
    timeout_seconds = Seconds(data_key="timeoutSeconds")
    idle_timeout_seconds = Seconds(data_key="idleTimeoutSeconds")
    model = fields.String(validate=check_model, metadata={"pattern": MODEL_PATTERN})
    max_turns = WholeNumber(data_key="maxTurns", validate=validate.Range(1, 10_000))
    max_budget_usd = Seconds(data_key="maxBudgetUsd")
    session_id = fields.String(data_key="sessionId", validate=check_session, metadata={"pattern": UUID_PATTERN})
    permissions = fields.String(validate=validate.OneOf(PERMISSIONS))
    deny = _rules("deny")
    ask = _rules("ask")
    approval_seconds = Seconds(data_key="approvalSeconds")
    continues = Id()
    fork = TrueOrFalse()
    rewind_to = Id(data_key="rewindTo")
    attachments = fields.List(fields.Nested(AttachmentBody), validate=validate.Length(max=attachments.MAX_FILES))
    workspace_generation = WholeNumber(data_key="workspaceGeneration", validate=validate.Range(1, LARGEST_GENERATION))

    @validates_schema
    def check_place(self, data: dict[str, Any], **_: Any) -> None:
        """Refuse a request without a workspace, or with two sessions to continue."""
        if "workspace_id" not in data and "continues" not in data:
            raise ValidationError("Name a workspace, or an execution in `continues`.", "workspaceId")
        if "session_id" in data and "continues" in data:
            raise ValidationError("`continues` takes the session of that execution; leave this out.", "sessionId")
        if {"fork", "rewind_to"} & data.keys() and not {"session_id", "continues"} & data.keys():
            raise ValidationError("`fork` and `rewindTo` need an execution in `continues`.", "continues")


class ExecutionChange(RequestSchema):
    """The body of PATCH /executions/{id}.

    `before` is null for the end of the conversation.
    """

    prompt = fields.String(validate=check_prompt, metadata={"pattern": r"\S"})
    paused = TrueOrFalse()
    before: fields.String = Id(allow_none=True)

    @validates_schema
    def check_change(self, data: dict[str, Any], **_: Any) -> None:
        """Refuse a body without any change."""
        if not data:
            raise ValidationError("Give a prompt, `paused` or `before`.", "prompt")


class InputBody(RequestSchema):
    """The body of POST /executions/{id}/input."""

    input_id = Id(data_key="inputId", required=True)
    text = fields.String(required=True, validate=check_prompt, metadata={"pattern": r"\S"})
    delivery = fields.String(load_default="steer", validate=validate.OneOf(inputs.DELIVERIES))
    fallback = TrueOrFalse(load_default=True)


class InputRecord(Schema):
    """A text for an execution.

    `delivery` is null until it is decided, `executionId` the follow-up it became.
    """

    input_id = fields.String(data_key="inputId")
    text = fields.String()
    wanted = fields.String(validate=validate.OneOf(inputs.DELIVERIES))
    delivery = fields.String(validate=validate.OneOf(inputs.DELIVERIES), allow_none=True)
    state = fields.String(validate=validate.OneOf(inputs.STATES))
    follow_up = fields.String(data_key="executionId", allow_none=True)
    reason = fields.String(allow_none=True)


class ListQuery(RequestSchema):
    """The query of GET /executions."""

    state = fields.String(validate=validate.OneOf(STATES))
    workspace_id = Id(data_key="workspaceId")
    agent_id = fields.String(data_key="agentId", validate=[validate.Length(1, 128), check_one_line])
    id_prefix = fields.String(data_key="idPrefix", validate=check_id_prefix, metadata={"pattern": ID_PREFIX_PATTERN})
    limit = fields.Integer(load_default=50, validate=validate.Range(1, 1000))
    before = fields.Integer(validate=validate.Range(min=1, max=2**62))


class EventsQuery(RequestSchema):
    """The query of GET /executions/{id}/events.

    `after` is checked separately: it has a special error code.
    """

    after = fields.String(metadata={"pattern": CURSOR_PATTERN})
    follow = fields.Boolean(load_default=True)


class ChangesSummary(Schema):
    """The sums of an execution's changes.

    `truncated`: a list or a diff of them is incomplete.
    """

    files = fields.Integer()
    additions = fields.Integer()
    deletions = fields.Integer()
    truncated = fields.Boolean()
    exact = fields.Boolean()


class ExecutionRecord(Schema):
    """The record of an execution."""

    execution_id = fields.String(data_key="executionId")
    workspace_id = fields.String(data_key="workspaceId")
    state = fields.String(validate=validate.OneOf(STATES))
    prompt = fields.String(allow_none=True)
    position = fields.Integer(allow_none=True)
    created_at = fields.String(data_key="createdAt")
    started_at = fields.String(data_key="startedAt", allow_none=True)
    finished_at = fields.String(data_key="finishedAt", allow_none=True)
    exit_code = fields.Integer(data_key="exitCode", allow_none=True)
    signal = fields.Integer(allow_none=True)
    error_code = fields.String(data_key="errorCode", allow_none=True)
    error_message = fields.String(data_key="errorMessage", allow_none=True)
    session_id = fields.String(data_key="sessionId", allow_none=True)
    model = fields.String(allow_none=True)
    claude_version = fields.String(data_key="claudeVersion", allow_none=True)
    permissions = fields.String(validate=validate.OneOf(PERMISSIONS))
    conversation_id = fields.String(data_key="conversationId", attribute="conversation", allow_none=True)
    cost_usd = fields.Float(data_key="costUsd", allow_none=True)
    cost_exact = fields.Boolean(data_key="costExact")
    usage = fields.Raw(allow_none=True)
    num_turns = fields.Integer(data_key="numTurns", allow_none=True)
    duration_ms = fields.Integer(data_key="durationMs", allow_none=True)
    last_seq = fields.Integer(data_key="lastSeq")
    agent_id = fields.String(data_key="agentId", allow_none=True)
    attachments = fields.List(fields.Nested(AttachmentRecord))
    waits_for = fields.String(data_key="waitsFor", allow_none=True)
    is_paused = fields.Boolean(data_key="paused")
    is_local = fields.Boolean(data_key="local")
    changes = fields.Nested(ChangesSummary, allow_none=True)
    why_no_changes = fields.String(data_key="changesReason", allow_none=True)


class ExecutionList(Schema):
    """A page of executions, newest first."""

    executions = fields.List(fields.Nested(ExecutionRecord))
    next = fields.Integer(allow_none=True)
