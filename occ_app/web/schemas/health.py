"""GET /health on the wire."""

from __future__ import annotations

from marshmallow import Schema, fields, validate


class HeartbeatState(Schema):
    """The heartbeat towards the hub."""

    last_successful_at = fields.String(data_key="lastSuccessfulAt", allow_none=True)
    consecutive_failures = fields.Integer(data_key="consecutiveFailures")
    seq_num = fields.Integer(data_key="seqNum")


class WorkerState(Schema):
    """How many executions can run at once, and how many do."""

    total = fields.Integer()
    busy = fields.Integer()


class QueueState(Schema):
    """How many executions wait."""

    depth = fields.Integer()


class ClaudeState(Schema):
    """The CLI that this agent runs."""

    version = fields.String(allow_none=True)
    path = fields.String(allow_none=True)


class SkippedState(Schema):
    """Events that were not stored because of their schema, and unreadable ones."""

    refused_events = fields.Integer(data_key="refusedEvents")
    unreadable_events = fields.Integer(data_key="unreadableEvents")
    unreadable_rows = fields.Integer(data_key="unreadableRows")


class SnapshotsState(Schema):
    """The snapshots of workspaces.

    Whether there is a git, their bytes on the disk, and the limit on them.
    """

    git = fields.Boolean()
    bytes = fields.Integer()
    limit = fields.Integer()


class Health(Schema):
    """The answer to GET /health."""

    status = fields.String(validate=validate.OneOf(["healthy", "degraded"]))
    version = fields.String()
    uptime = fields.Float()
    heartbeat = fields.Nested(HeartbeatState)
    workers = fields.Nested(WorkerState)
    queue = fields.Nested(QueueState)
    claude = fields.Nested(ClaudeState)
    skipped = fields.Nested(SkippedState)
    snapshots = fields.Nested(SnapshotsState, allow_none=True)
    problems = fields.List(fields.String())
