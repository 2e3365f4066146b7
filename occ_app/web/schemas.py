"""Every body and query on the agent's wire, as marshmallow schemas.

`/openapi.json` is generated from these, so the document and the checks cannot differ. Names on the wire are camelCase,
in Python snake_case.
"""

from __future__ import annotations

from typing import Any

from marshmallow import RAISE, Schema, ValidationError, fields, validate, validates_schema

from occ_app.config.settings import PERMISSIONS
from occ_app.executions import approvals
from occ_app.web.fields import (
    CURSOR_PATTERN,
    ID_PREFIX_PATTERN,
    MODEL_PATTERN,
    UUID_PATTERN,
    Id,
    Moment,
    Seconds,
    TrueOrFalse,
    WholeNumber,
    check_id_prefix,
    check_model,
    check_one_line,
    check_prompt,
    check_session,
    check_text,
)

MAX_QUERY_CHARACTERS = 1000
LARGEST_GENERATION = 2**62

STATES = ["queued", "running", "succeeded", "failed", "cancelled"]


class _Request(Schema):
    class Meta:
        unknown = RAISE
        ordered = True


class InitForm(_Request):
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


class ExecuteBody(_Request):
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
    continues = Id()
    workspace_generation = WholeNumber(data_key="workspaceGeneration", validate=validate.Range(1, LARGEST_GENERATION))

    @validates_schema
    def check_place(self, data: dict[str, Any], **_: Any) -> None:
        """Refuse a request without a workspace, or with two sessions to continue."""
        if "workspace_id" not in data and "continues" not in data:
            raise ValidationError("Name a workspace, or an execution in `continues`.", "workspaceId")
        if "session_id" in data and "continues" in data:
            raise ValidationError("`continues` takes the session of that execution; leave this out.", "sessionId")


class ListQuery(_Request):
    """The query of GET /executions."""

    state = fields.String(validate=validate.OneOf(STATES))
    workspace_id = Id(data_key="workspaceId")
    agent_id = fields.String(data_key="agentId", validate=[validate.Length(1, 128), check_one_line])
    id_prefix = fields.String(data_key="idPrefix", validate=check_id_prefix, metadata={"pattern": ID_PREFIX_PATTERN})
    limit = fields.Integer(load_default=50, validate=validate.Range(1, 1000))
    before = fields.Integer(validate=validate.Range(min=1, max=2**62))


class EventsQuery(_Request):
    """The query of GET /executions/{id}/events. `after` is checked separately: it has a special error code."""

    after = fields.String(metadata={"pattern": CURSOR_PATTERN})
    follow = fields.Boolean(load_default=True)


class GenerationQuery(_Request):
    """The query of a call that concerns one workspace; `generation`: only if that is the workspace's number."""

    generation = fields.Integer(validate=validate.Range(1, LARGEST_GENERATION))


class NoQuery(_Request):
    """No query parameters."""


class ChangesSummary(Schema):
    """The sums of the changes of an execution. `truncated`: a list or a diff of them leaves something out."""

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
    waits_for = fields.String(data_key="waitsFor", allow_none=True)
    changes = fields.Nested(ChangesSummary, allow_none=True)
    why_no_changes = fields.String(data_key="changesReason", allow_none=True)


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
    """The answer to GET /executions/{id}/changes; `base` and `result` are the trees before and after."""

    execution_id = fields.String(data_key="executionId")
    workspace_id = fields.String(data_key="workspaceId")
    entries = fields.List(fields.Nested(ChangedFile))
    base = fields.String()
    result = fields.String()


class DiffQuery(_Request):
    """The query of GET /executions/{id}/diff; `path` selects one file, by its name after the execution."""

    path = fields.String(validate=validate.Length(1, 4096))


class SideQuery(_Request):
    """The query of GET /executions/{id}/files/{path}: before the execution or after it."""

    at = fields.String(load_default="end", validate=validate.OneOf(["start", "end"]))


class FolderQuery(_Request):
    """The query of GET /workspaces/{id}/files; `path` is a folder, the workspace's own when it is left out."""

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
    """The answer to GET /workspaces/{id}/files; `truncated` when there are more entries."""

    path = fields.String()
    entries = fields.List(fields.Nested(FolderEntry))
    truncated = fields.Boolean()


class RestoreBody(_Request):
    """The body of POST /workspaces/{id}/restore; `executionId` may be a restore's id, which undoes it."""

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


class ExecutionList(Schema):
    """A page of executions, newest first."""

    executions = fields.List(fields.Nested(ExecutionRecord))
    next = fields.Integer(allow_none=True)


class SearchQuery(_Request):
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
    """The text around the first hit in a prompt or an output; its pieces joined are that text."""

    where = fields.String(data_key="in", validate=validate.OneOf(["prompt", "output"]))
    pieces = fields.List(fields.Nested(SnippetPiece))


class SearchResult(Schema):
    """An execution that was found, and where."""

    execution = fields.Nested(ExecutionRecord)
    snippets = fields.List(fields.Nested(SearchSnippet))


class SearchResults(Schema):
    """A page of results, newest first; `unindexed` counts executions that are not indexed yet."""

    results = fields.List(fields.Nested(SearchResult))
    next = fields.Integer(allow_none=True)
    unindexed = fields.Integer()


class UsageQuery(_Request):
    """The query of GET /usage: executions accepted from `since` on and before `until`."""

    by = fields.String(load_default="day", validate=validate.OneOf(["day", "workspace", "agent", "key", "owner"]))
    since = Moment()
    until = Moment()


class Usage(Schema):
    """The usage of a group of executions; money, tokens, turns and time cover finished ones."""

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
    """Days newest first, everything else the dearest first; `omitted` groups are only in the total."""

    by = fields.String()
    groups = fields.List(fields.Nested(UsageGroup))
    omitted = fields.Integer()
    total = fields.Nested(Usage)


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


class WorkspaceList(Schema):
    """All workspaces, by id."""

    workspaces = fields.List(fields.Nested(WorkspaceRecord))


class Deleted(Schema):
    """The answer to a DELETE."""

    status = fields.String(validate=validate.Equal("success"))


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
    """Events that were not stored because they broke their schema, and stored ones that cannot be read."""

    refused_events = fields.Integer(data_key="refusedEvents")
    unreadable_events = fields.Integer(data_key="unreadableEvents")
    unreadable_rows = fields.Integer(data_key="unreadableRows")


class SnapshotsState(Schema):
    """The snapshots of workspaces: whether there is a git, their bytes on the disk, and the most that they may take."""

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


class Error(Schema):
    """Every refusal."""

    status = fields.String(validate=validate.Equal("error"))
    code = fields.String()
    message = fields.String()
    details = fields.Dict()


class ApprovalQuery(_Request):
    """The query of GET /approvals."""

    state = fields.String(validate=validate.OneOf(approvals.STATES))


class ApprovalRecord(Schema):
    """A tool call, a question or a plan that a person decides on; `input` is whole, without secrets."""

    approval_id = fields.String(data_key="approvalId")
    execution_id = fields.String(data_key="executionId")
    workspace_id = fields.String(data_key="workspaceId")
    kind = fields.String(validate=validate.OneOf(approvals.KINDS))
    tool = fields.String()
    input = fields.Raw()
    input_hash = fields.String(data_key="inputHash")
    redacted = fields.Boolean()
    reason = fields.String(allow_none=True)
    subagent = fields.String(allow_none=True)
    asked_at = fields.String(data_key="askedAt")
    expires_at = fields.String(data_key="expiresAt")
    state = fields.String(validate=validate.OneOf(approvals.STATES))
    message = fields.String(allow_none=True)
    actor = fields.String(allow_none=True)
    decided_at = fields.String(data_key="decidedAt", allow_none=True)
    delivered_at = fields.String(data_key="deliveredAt", allow_none=True)


class ApprovalList(Schema):
    """Approvals, oldest first."""

    approvals = fields.List(fields.Nested(ApprovalRecord))


class ApprovalAnswer(_Request):
    """The body of POST /approvals/{id}."""

    decision = fields.String(required=True, validate=validate.OneOf(["allow", "deny"]))
    input_hash = fields.String(data_key="inputHash", validate=validate.Length(max=64))
    message = fields.String(validate=validate.Length(max=4000))
    updated_input = fields.Dict(data_key="updatedInput", keys=fields.String())
    answers = fields.Dict(keys=fields.String())


class ConversationQuery(_Request):
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
