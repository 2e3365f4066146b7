"""Rules on tool calls on the wire."""

from __future__ import annotations

from typing import Any

from marshmallow import Schema, ValidationError, fields, validate, validates_schema

from occ_app.config import permission_rules
from occ_app.executions import rules
from occ_app.web.fields import Id, check_one_line
from occ_app.web.schemas.base import RequestSchema


class RuleRecord(Schema):
    """A rule, such as `Bash(pytest *)`, and the executions it is for.

    A rule of the operator's settings has no id.
    """

    rule_id = fields.String(data_key="ruleId", allow_none=True, dump_default=None)
    rule = fields.String()
    decision = fields.String(validate=validate.OneOf(permission_rules.DECISIONS))
    scope = fields.String(validate=validate.OneOf(rules.SCOPES))
    workspace_id = fields.String(data_key="workspaceId", allow_none=True, dump_default=None)
    conversation_id = fields.String(data_key="conversationId", allow_none=True, dump_default=None)
    execution_id = fields.String(data_key="executionId", allow_none=True, dump_default=None)
    actor = fields.String(allow_none=True, dump_default=None)
    created_at = fields.String(data_key="createdAt", allow_none=True, dump_default=None)


class RuleList(Schema):
    """The rules of the operator, then those of people, oldest first."""

    rules = fields.List(fields.Nested(RuleRecord))


class RuleBody(RequestSchema):
    """The body of POST /rules.

    Without a workspace and an execution the rule is for the whole agent.
    """

    decision = fields.String(required=True, validate=validate.OneOf(permission_rules.DECISIONS))
    rule = fields.String(required=True, validate=[validate.Length(1, permission_rules.MAX_CHARACTERS), check_one_line])
    workspace_id = Id(data_key="workspaceId")
    execution_id = Id(data_key="executionId")
    scope = fields.String(validate=validate.OneOf(["execution", "conversation"]))

    @validates_schema
    def check_place(self, data: dict[str, Any], **_: Any) -> None:
        """Refuse a rule for two places, and a scope without an execution."""
        if "workspace_id" in data and "execution_id" in data:
            raise ValidationError("Name a workspace or an execution, not both.", "executionId")
        if "scope" in data and "execution_id" not in data:
            raise ValidationError("Only a rule for an execution has a scope: execution, or its conversation.", "scope")
