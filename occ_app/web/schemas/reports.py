"""Search and usage on the wire."""

from __future__ import annotations

from marshmallow import Schema, fields, validate

from occ_app.web.fields import Moment, check_prompt
from occ_app.web.schemas.base import STATES, RequestSchema
from occ_app.web.schemas.executions import ExecutionRecord

MAX_QUERY_CHARACTERS = 1000


class SearchQuery(RequestSchema):
    """The query of GET /search."""

    q = fields.String(
        required=True, validate=[validate.Length(max=MAX_QUERY_CHARACTERS), check_prompt], metadata={"pattern": r"\S"}
    )
    limit = fields.Integer(load_default=20, validate=validate.Range(1, 100))
    before = fields.Integer(validate=validate.Range(min=1, max=2**62))


class SnippetPiece(Schema):
    """A piece of text; `hit` when it matches."""

    text = fields.String()
    hit = fields.Boolean()


class SearchSnippet(Schema):
    """The text around the first hit in a prompt or an output, in pieces."""

    where = fields.String(data_key="in", validate=validate.OneOf(["prompt", "output"]))
    pieces = fields.List(fields.Nested(SnippetPiece))


class SearchResult(Schema):
    """An execution that was found, and where."""

    execution = fields.Nested(ExecutionRecord)
    snippets = fields.List(fields.Nested(SearchSnippet))


class SearchResults(Schema):
    """A page of results, newest first.

    `unindexed` counts executions that are not indexed yet.
    """

    results = fields.List(fields.Nested(SearchResult))
    next = fields.Integer(allow_none=True)
    unindexed = fields.Integer()


class UsageQuery(RequestSchema):
    """The query of GET /usage: executions accepted from `since` on and before `until`."""

    by = fields.String(load_default="day", validate=validate.OneOf(["day", "workspace", "agent", "key", "owner"]))
    since = Moment()
    until = Moment()


class Usage(Schema):
    """The usage of a group of executions.

    Money, tokens, turns and time cover finished ones.
    """

    executions = fields.Integer()
    states = fields.Dict(keys=fields.String(validate=validate.OneOf(STATES)), values=fields.Integer())
    cost_usd = fields.Float(data_key="costUsd")
    inexact_costs = fields.Integer(data_key="inexactCosts")
    input_tokens = fields.Integer(data_key="inputTokens")
    output_tokens = fields.Integer(data_key="outputTokens")
    cache_read_tokens = fields.Integer(data_key="cacheReadTokens")
    cache_creation_tokens = fields.Integer(data_key="cacheCreationTokens")
    turns = fields.Integer()
    run_seconds = fields.Float(data_key="runSeconds")


class UsageGroup(Schema):
    """One day, workspace, agent or key; `group` is null for executions that have none."""

    group = fields.String(allow_none=True)
    name = fields.String(allow_none=True)
    usage = fields.Nested(Usage)


class UsageReport(Schema):
    """Groups of usage: days newest first, all others by cost.

    `omitted` groups are only in the total.
    """

    by = fields.String()
    groups = fields.List(fields.Nested(UsageGroup))
    omitted = fields.Integer()
    total = fields.Nested(Usage)
