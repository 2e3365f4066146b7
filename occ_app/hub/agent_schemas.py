"""Bodies of the hub's API for machines.

They are registrations, heartbeats, and the lists of machines for people.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from marshmallow import EXCLUDE, Schema, ValidationError, fields, validate

from occ_app.config.settings import PERMISSIONS, http_url
from occ_app.home.health import MAX_PROBLEM, MAX_PROBLEMS
from occ_app.hub.fields import Line
from occ_app.web import schemas
from occ_app.web.fields import Id, Moment, Seconds, TrueOrFalse, WholeNumber, check_one_line, check_text
from occ_app.workspaces.folders import MAX_PATH_CHARACTERS
from occ_app.workspaces.projects import MAX_KEYS, MAX_PROJECTS

FINGERPRINT_PATTERN = r"^([0-9A-Fa-f]{2}:?){32}$"


def _check_url(value: str) -> None:
    try:
        http_url(value)
    except ValueError as error:
        raise ValidationError(f"{str(error).capitalize()}.") from None


def _check_fingerprint(value: str) -> None:
    if not re.fullmatch(FINGERPRINT_PATTERN, value):
        raise ValidationError("Must be a SHA-256 fingerprint.")


class _FromAgent(Schema):
    """A body sent by an agent; a newer agent's may have more fields."""

    class Meta:
        unknown = EXCLUDE


class _HexDigits(fields.String):
    """A string of exactly `digits` hexadecimal digits."""

    def __init__(self, digits: int, **kwargs: Any) -> None:
        pattern = f"^[0-9a-f]{{{digits}}}$"
        super().__init__(validate=validate.Regexp(pattern), metadata={"pattern": pattern}, **kwargs)


class MachineProof(_FromAgent):
    """A machine's proof over the nonce of a challenge."""

    id = _HexDigits(32, required=True)
    nonce = _HexDigits(32, required=True)
    instance = _HexDigits(32, required=True)
    proof = _HexDigits(64, required=True)
    verifier = _HexDigits(64, allow_none=True, load_default=None)
    former = _HexDigits(64, allow_none=True, load_default=None)


class Challenge(Schema):
    """The hub's id and proof, and a nonce for one registration.

    The proof is over the nonce of the request.
    """

    hub_id = fields.String(data_key="hubId")
    nonce = fields.String()
    proof = fields.String()


class _Project(_FromAgent):
    """A project of a machine.

    `keys` names the client keys that may use it besides the admins'. `permissions` is the most that runs in it may do,
    null for everything that its machine allows.
    """

    name = Id(required=True)
    path = Line(1, MAX_PATH_CHARACTERS, required=True)
    generation = WholeNumber(required=True, validate=validate.Range(1, schemas.LARGEST_GENERATION))
    keys = fields.List(Line(1, 100), load_default=list, validate=validate.Length(max=MAX_KEYS))
    permissions = Line(1, 50, allow_none=True, load_default=None)


class Registration(_FromAgent):
    """The body of POST /api/agents/register."""

    protocol = WholeNumber(required=True)
    agent_id = Line(0, 128, data_key="agentId", allow_none=True, load_default=None)
    name = Line(1, 200, required=True)
    version = Line(0, 100, required=True)
    platform = Line(0, 100, load_default="")
    url = fields.String(
        allow_none=True,
        load_default=None,
        validate=[validate.Length(max=2000), _check_url],
        metadata={"description": "http:// or https://, a host, and a port or a path if wanted"},
    )
    port = WholeNumber(required=True, validate=validate.Range(1, 65535))
    direct = TrueOrFalse(load_default=True)
    tls_fingerprint = fields.String(
        data_key="tlsFingerprint",
        allow_none=True,
        load_default=None,
        validate=_check_fingerprint,
        metadata={"pattern": FINGERPRINT_PATTERN},
    )
    workers = WholeNumber(required=True, validate=validate.Range(1, 10_000))
    labels = fields.List(Line(1, 100), load_default=list, validate=validate.Length(max=100))
    claude_version = Line(0, 100, data_key="claudeVersion", allow_none=True, load_default=None)
    capabilities = fields.List(Line(1, 64), load_default=list, validate=validate.Length(max=100))
    permissions = Line(1, 50, allow_none=True, load_default=None)
    machine = fields.Nested(MachineProof, allow_none=True, load_default=None)
    projects = fields.List(fields.Nested(_Project), load_default=list, validate=validate.Length(max=MAX_PROJECTS))


class Registered(Schema):
    """The reply to a registration."""

    agent_id = fields.String(data_key="agentId")
    token = fields.String()
    name = fields.String()
    heartbeat_interval_seconds = fields.Integer(data_key="heartbeatIntervalSeconds")


class _BeatWorkers(_FromAgent):
    total = WholeNumber(validate=validate.Range(0, 10_000))
    busy = WholeNumber(validate=validate.Range(0, 10_000))


class _BeatQueue(_FromAgent):
    depth = WholeNumber(validate=validate.Range(0, 10_000_000))


class Heartbeat(_FromAgent):
    """The body of POST /api/agents/{id}/heartbeat."""

    seq_num = WholeNumber(data_key="seqNum", required=True, validate=validate.Range(0, 2**53))
    status = Line(1, 50, required=True)
    version = Line(0, 100, load_default="")
    workers = fields.Nested(_BeatWorkers, load_default=dict)
    queue = fields.Nested(_BeatQueue, load_default=dict)
    executions = fields.List(Line(0, 128), load_default=list, validate=validate.Length(max=10_000))
    projects = fields.List(fields.Nested(_Project), load_default=None, validate=validate.Length(max=MAX_PROJECTS))
    instance = Line(0, 64, allow_none=True, load_default=None)
    problems = fields.List(Line(0, MAX_PROBLEM), load_default=list, validate=validate.Length(max=MAX_PROBLEMS))


class LocalExecution(_FromAgent):
    """The body of POST /api/agents/{id}/executions.

    It announces an execution that the machine started itself. `workspaceId`, its generation and `conversationId` are
    those on the machine.
    """

    execution_id = Id(data_key="executionId", required=True)
    workspace_id = Id(data_key="workspaceId", required=True)
    workspace_generation = WholeNumber(
        data_key="workspaceGeneration", required=True, validate=validate.Range(1, schemas.LARGEST_GENERATION)
    )
    conversation_id = Id(data_key="conversationId", allow_none=True, load_default=None)
    prompt = fields.String(required=True, validate=check_text)
    permissions = fields.String(required=True, validate=validate.OneOf(PERMISSIONS))
    model = Line(1, 256, allow_none=True, load_default=None)
    timeout_seconds = Seconds(data_key="timeoutSeconds", required=True)
    idle_timeout_seconds = Seconds(data_key="idleTimeoutSeconds", required=True)
    created_at = Moment(data_key="createdAt", required=True)
    started_at = Moment(data_key="startedAt", allow_none=True, load_default=None)


class LocalReceived(Schema):
    """The reply to an announcement.

    `shared` is false when the hub has another execution with this id.
    """

    shared = fields.Boolean()


class Heard(Schema):
    """The reply to a heartbeat.

    `via` is how the hub calls this agent: `direct`, `link`, or null while it cannot.
    """

    via = fields.String(allow_none=True, validate=validate.OneOf(["direct", "link"]))


class EchoBody(_FromAgent):
    """The body of POST /api/agents/{id}/echo: an empty object."""


class EchoReply(Schema):
    """The result of a call from the hub to the agent.

    `instance` is the id of the daemon's start that answered; `problem` is the reason why none did. `version` and
    `time` are the hub's.
    """

    via = fields.String(allow_none=True, validate=validate.OneOf(["direct", "link"]))
    milliseconds = fields.Float()
    instance = fields.String(allow_none=True)
    problem = fields.String(allow_none=True)
    version = fields.String()
    time = fields.String()


class AgentProject(Schema):
    """A project on a machine that the caller may use.

    `workspaceId` is its id on this hub.
    """

    name = fields.String()
    workspace_id = fields.String(data_key="workspaceId")
    permissions = fields.String(allow_none=True)


class AgentRecord(Schema):
    """The record of a machine.

    `via` is how the hub reaches it: `direct`, `link`, or null while it cannot.
    """

    agent_id = fields.String(data_key="agentId")
    name = fields.String()
    labels = fields.List(fields.String())
    state = fields.String(validate=validate.OneOf(["online", "draining", "offline"]))
    via = fields.String(allow_none=True, validate=validate.OneOf(["direct", "link"]))
    workers = fields.Nested(schemas.WorkerState)
    queue = fields.Nested(schemas.QueueState)
    status = fields.String()
    version = fields.String()
    platform = fields.String()
    claude_version = fields.String(data_key="claudeVersion", allow_none=True)
    capabilities = fields.List(fields.String())
    permissions = fields.String(allow_none=True)
    problems = fields.List(fields.String())
    registered_at = fields.String(data_key="registeredAt")
    last_seen_at = fields.String(data_key="lastSeenAt")
    projects = fields.List(fields.Nested(AgentProject))


class AgentQuery(Schema):
    """The query of GET /agents; `after` is the `next` of the previous page."""

    limit = fields.Integer(load_default=1000, validate=validate.Range(1, 1000))
    after = fields.String(load_default=None, validate=[validate.Length(1, 128), check_one_line])


class AgentList(Schema):
    """A page of machines, by name; `next` is null on the last."""

    agents = fields.List(fields.Nested(AgentRecord))
    next = fields.String(allow_none=True)


def agent_record(agent: Any, via: str | None, projects: Sequence[Mapping[str, str | None]] = ()) -> dict[str, Any]:
    """Return the values of an agent's record.

    `projects` are those that the caller may use.
    """
    return {
        **{name: getattr(agent, name) for name in ("agent_id", "name", "labels", "state", "status", "version")},
        **{name: getattr(agent, name) for name in ("capabilities", "permissions", "problems")},
        **{name: getattr(agent, name) for name in ("platform", "claude_version", "registered_at", "last_seen_at")},
        "via": via,
        "projects": projects,
        "workers": {"total": agent.workers, "busy": max(agent.busy, agent.placed)},
        "queue": {"depth": agent.waiting},
    }
