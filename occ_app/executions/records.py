"""An execution as a value: its request, its row, and its outcome.

The SQL is in queries.py and lifecycle.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from occ_app.config.permission_rules import Rule
from occ_app.executions import events
from occ_app.executions.attachments import Attachment
from occ_app.system import compact_json, timestamps
from occ_app.system.process_identity import ProcessIdentity

FINAL_STATES = ("succeeded", "failed", "cancelled")
STATES = ("queued", "running", "parked", *FINAL_STATES)
# The codes of `error` events, as docs/protocol.md lists them. A machine may send others.
ERROR_CODES = frozenset(
    (
        *("EXECUTION_TIMEOUT", "EXECUTION_IDLE", "EXECUTION_CANCELLED", "CLAUDE_NOT_FOUND", "CLAUDE_AUTH"),
        *("RATE_LIMITED", "API_UNAVAILABLE", "MAX_TURNS", "MAX_BUDGET", "SESSION_NOT_FOUND", "CLAUDE_ERROR"),
        *("CLAUDE_EXIT", "OUTPUT_TRUNCATED", "OUTPUT_LIMIT", "WORKER_LOST", "DAEMON_STOPPED", "WORKSPACE_MISSING"),
        *("INTERNAL", "AGENT_LOST", "NO_AGENT", "AGENT_REFUSED", "INVALID_EVENT", "APPROVAL_EXPIRED"),
        *("RESTORE_CONFLICT",),
    )
)


@dataclass(frozen=True)
class Request:
    """A caller's request; limits in seconds."""

    execution_id: str
    workspace_id: str
    prompt: str
    timeout_seconds: float
    idle_timeout_seconds: float
    model: str | None
    max_turns: int | None
    max_budget_usd: float | None
    session_id: str | None
    hash: str
    key_id: str | None = None  # on a hub: the key that asks, its owner, and where it is to run
    owner_id: str | None = None
    permissions: str = "edit"
    permissions_named: bool = False  # the caller asks for these by name, so less is a refusal
    rules: tuple[Rule, ...] = ()  # that deny calls or ask about them, in this execution alone
    continues: str | None = None  # the execution whose session and workspace it takes
    visible_to: str | None = None  # the owner whose executions it may continue; None: all
    agent: str | None = None
    labels: tuple[str, ...] = ()
    workspace_generation: int | None = None  # the number that the workspace must have
    notify: bool = False  # on a hub: notify the owner of its end, however short it was
    attachments: tuple[Attachment, ...] = ()
    approval_seconds: float | None = None  # for a person to answer while it is parked
    fork: bool = False  # begin a conversation with the session of the one it continues
    rewind_to: str | None = None  # the turn of that conversation to continue after
    local_sharing: str | None = None  # `pending` for one that an agent is to announce to its hub


@dataclass(frozen=True)
class Execution:
    """A row of `executions`.

    While it is queued, `position` counts those ahead and `waits_for` is the reason. `usage` is JSON as the CLI printed
    it. `workspace_generation` is the number of the workspace that it was accepted for; its id may belong to another by
    now. `permissions_named`: its request named them; otherwise its machine may lower them. `cancel_code` is the error
    code that it will end with, once it was cancelled. `parked_at` is set while it waits for a person without a
    process, `parked_seconds` the time it did so before. Only on a hub: `key_id` and its `owner_id`, `agent_id`,
    `wanted_…`, and `prompt_sent`, whether its agent may have the prompt. `attachments` describes those of its prompt;
    attachments.py has their content. `fork`: it began its conversation with the session of another. `rewind_to` is the
    number of the turn that it continues after, `resume_at` the CLI's id of the last message of that turn, known once
    it starts, and `last_message` that of its last message. `place` is its place in the line if it was moved, `paused`
    the reason why it waits for a person: a turn before it `failed`, or a `person` paused it. `start_tree` and
    `end_tree` are the snapshots of its workspace before and after it, `changes` their sums as JSON shows them,
    `changes_reason` the reason for none. `local_sharing` is, on an agent, `pending`, `announced` or `refused` for one
    that it shares with its hub, and on a hub `received` for one that its machine started and shares.
    """

    number: int
    execution_id: str
    workspace_id: str
    state: str
    request_hash: str
    prompt: str | None
    timeout_seconds: float
    idle_timeout_seconds: float
    requested_model: str | None
    max_turns: int | None
    max_budget_usd: float | None
    resume_session_id: str | None
    created_at: str
    started_at: str | None
    finished_at: str | None
    cancel_code: str | None
    owner_boot_id: str | None
    owner_pid: int | None
    owner_start: int | None
    deadline: float | None
    exit_code: int | None
    signal: int | None
    error_code: str | None
    error_message: str | None
    session_id: str | None
    model: str | None
    claude_version: str | None
    cost_usd: float | None
    cost_exact: bool  # False: `cost_usd` may include earlier runs of the session
    usage: Any
    num_turns: int | None
    duration_ms: int | None
    last_seq: int
    position: int | None
    key_id: str | None
    owner_id: str | None
    permissions: str
    conversation: str | None
    continues: int | None
    agent_id: str | None
    wanted_agent: str | None
    wanted_labels: tuple[str, ...]
    waits_for: str | None
    prompt_sent: int | None
    workspace_generation: int
    start_tree: str | None = None
    end_tree: str | None = None
    changes: Any = None
    changes_reason: str | None = None
    attachments: Any = ()
    fork: bool = False
    rewind_to: int | None = None
    last_message: str | None = None
    resume_at: str | None = None
    place: int | None = None
    paused: str | None = None
    parked_at: str | None = None
    parked_seconds: float = 0.0
    approval_seconds: float | None = None
    local_sharing: str | None = None
    permissions_named: bool = True

    @property
    def is_local(self) -> bool:
        """Whether its machine started it and shares it with this hub."""
        return self.local_sharing == "received"

    @property
    def why_no_changes(self) -> str | None:
        """The reason why its changes are not known; None when they are."""
        if self.changes is not None:
            return None
        return self.changes_reason or ("not recorded" if self.over else "pending")

    @property
    def is_paused(self) -> bool:
        """Whether it waits for a person to resume it."""
        return self.paused is not None and self.state == "queued"

    @property
    def over(self) -> bool:
        return self.state in FINAL_STATES

    @property
    def claimed_by(self) -> ProcessIdentity | None:
        """The process that runs it; None while it waits."""
        if self.owner_boot_id is None or self.owner_pid is None or self.owner_start is None:
            return None
        return ProcessIdentity(self.owner_boot_id, self.owner_pid, self.owner_start)


LARGEST_NUMBER = 1 << 62  # number that is kept; SQLite's own go a little further


def countable(value: Any) -> Any:
    """Return a JSON value with None for numbers that cannot be added up.

    These are not finite, or above LARGEST_NUMBER.
    """
    if isinstance(value, dict):
        return {key: countable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [countable(item) for item in value]
    return None if isinstance(value, (int, float)) and not abs(value) < LARGEST_NUMBER else value


@dataclass(frozen=True)
class Outcome:
    """How an execution ended: its final event, and what its row keeps of it."""

    state: str
    event: str
    data: Mapping[str, Any]
    usage: Any = None
    last_message: str | None = None  # the CLI's id of the model's last message
    finished_at: str | None = None  # None: now

    @classmethod
    def failure(cls, code: str, message: str, **extra: Any) -> Outcome:
        """Return the outcome for an error code of the wire contract.

        Extra keys (exitCode, signal) go into the event.
        """
        state = "cancelled" if code == "EXECUTION_CANCELLED" else "failed"
        kept = {key: value for key, value in extra.items() if value is not None}
        return cls(state, "error", {"code": code, "message": message, **kept, "timestamp": timestamps.milliseconds()})

    def news(self, seq: int) -> bytes:
        """Return its final event as a ring carries it.

        Empty for seq 0, when something else ended the execution.
        """
        return events.news(seq, [(self.event, compact_json.to_json(self.data))]) if seq else b""
