"""The bases of all schemas, and replies and constants of several endpoints."""

from __future__ import annotations

from marshmallow import RAISE, Schema, fields, validate

LARGEST_GENERATION = 2**62
STATES = ["queued", "running", "parked", "succeeded", "failed", "cancelled"]


class RequestSchema(Schema):
    """The base of bodies and queries: unknown fields are refused."""

    class Meta:
        unknown = RAISE
        ordered = True


class NoQuery(RequestSchema):
    """No query parameters."""


class Deleted(Schema):
    """The answer to a DELETE."""

    status = fields.String(validate=validate.Equal("success"))


class Error(Schema):
    """Every refusal."""

    status = fields.String(validate=validate.Equal("error"))
    code = fields.String()
    message = fields.String()
    details = fields.Dict()
