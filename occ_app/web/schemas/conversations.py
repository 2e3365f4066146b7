"""Conversations and approvals on the wire."""

from __future__ import annotations

from marshmallow import Schema, fields, validate

from occ_app.executions import remembering
from occ_app.executions.answers import KINDS, SURFACES
from occ_app.executions.answers import STATES as APPROVAL_STATES
from occ_app.web.fields import ONE_LINE_PATTERN, Id, check_one_line
from occ_app.web.schemas.base import STATES, RequestSchema
from occ_app.web.schemas.executions import ExecutionRecord


class ApprovalQuery(RequestSchema):
    """The query of GET /approvals."""

    state = fields.String(validate=validate.OneOf(APPROVAL_STATES))


class PendingAnswer(Schema):
    """An answer that a hub has not delivered to the machine yet."""

    decision = fields.String(validate=validate.OneOf(["allow", "deny"]))
    actor = fields.String()
    surface = fields.String(validate=validate.OneOf(SURFACES))
    answered_at = fields.String(data_key="answeredAt")


class AnswerProblem(Schema):
    """Why a machine did not take the last answer that a hub delivered."""

    code = fields.String()
    message = fields.String()


class ApprovalRecord(Schema):
    """A tool call, a question or a plan that a person decides on.

    `input` is whole, without secrets. `truncated`: a hub has only the beginning of the input while it cannot ask the
    machine.
    """

    approval_id = fields.String(data_key="approvalId")
    execution_id = fields.String(data_key="executionId")
    workspace_id = fields.String(data_key="workspaceId")
    kind = fields.String(validate=validate.OneOf(KINDS))
    tool = fields.String()
    input = fields.Raw()
    input_hash = fields.String(data_key="inputHash")
    redacted = fields.Boolean()
    reason = fields.String(allow_none=True)
    subagent = fields.String(allow_none=True)
    asked_at = fields.String(data_key="askedAt")
    expires_at = fields.String(data_key="expiresAt")
    state = fields.String(validate=validate.OneOf(APPROVAL_STATES))
    message = fields.String(allow_none=True)
    actor = fields.String(allow_none=True)
    surface = fields.String(allow_none=True, validate=validate.OneOf(SURFACES))
    decided_at = fields.String(data_key="decidedAt", allow_none=True)
    delivered_at = fields.String(data_key="deliveredAt", allow_none=True)
    agent_id = fields.String(data_key="agentId", allow_none=True)
    truncated = fields.Boolean()
    pending = fields.Nested(PendingAnswer, allow_none=True)
    problem = fields.Nested(AnswerProblem, allow_none=True)
    always_allows = fields.List(fields.String(), data_key="alwaysAllows")


class ApprovalList(Schema):
    """Approvals, oldest first."""

    approvals = fields.List(fields.Nested(ApprovalRecord))


class ApprovalAnswer(RequestSchema):
    """The body of POST /approvals/{id}."""

    decision = fields.String(required=True, validate=validate.OneOf(["allow", "deny"]))
    input_hash = fields.String(data_key="inputHash", validate=validate.Length(max=64))
    message = fields.String(validate=validate.Length(max=4000))
    updated_input = fields.Dict(data_key="updatedInput", keys=fields.String())
    answers = fields.Dict(keys=fields.String())
    remember = fields.String(validate=validate.OneOf(remembering.REMEMBER))
    surface = fields.String(validate=validate.OneOf(SURFACES))
    # The person whom a hub names to its machine.
    actor = fields.String(validate=[validate.Length(1, 200), check_one_line], metadata={"pattern": ONE_LINE_PATTERN})


class ConversationQuery(RequestSchema):
    """The query of GET /conversations."""

    workspace_id = Id(data_key="workspaceId")
    limit = fields.Integer(load_default=50, validate=validate.Range(1, 1000))
    before = fields.Integer(validate=validate.Range(min=1, max=2**62))


class ConversationRecord(Schema):
    """The executions of one session together; `state` is that of the newest."""

    conversation_id = fields.String(data_key="conversationId")
    workspace_id = fields.String(data_key="workspaceId")
    title = fields.String(allow_none=True)
    state = fields.String(validate=validate.OneOf(STATES))
    executions = fields.Integer()
    cost_usd = fields.Float(data_key="costUsd")
    created_at = fields.String(data_key="createdAt")
    updated_at = fields.String(data_key="updatedAt")
    last_execution_id = fields.String(data_key="lastExecutionId")


class ConversationList(Schema):
    """A page of conversations, newest first."""

    conversations = fields.List(fields.Nested(ConversationRecord))
    next = fields.Integer(allow_none=True)


class ConversationWithExecutions(ConversationRecord):
    """A conversation and its executions, oldest first."""

    turns = fields.List(fields.Nested(ExecutionRecord))
