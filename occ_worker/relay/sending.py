"""Giving a machine the workspace of an execution that is placed on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from occ_app.client.agent_client import AgentClient
from occ_app.client.event_checks import MAX_SEQ
from occ_app.errors import Refused
from occ_app.executions import lifecycle
from occ_app.executions import queries as executions
from occ_app.executions.records import Execution, Outcome
from occ_app.hub import outbox as errands
from occ_app.hub import workspaces as hub_workspaces
from occ_app.hub.agents import Agent
from occ_app.system.foreign_text import whole_characters
from occ_app.workspaces import workspace as workspaces
from occ_worker.relay.context import RelayContext

_LONGEST_PATH = 4096


def send_workspace(context: RelayContext, execution: Execution, agent: Agent, client: AgentClient) -> Outcome | None:
    """Give the agent the workspace unless it has it. Returns why that cannot be, if so.

    Raises Unreachable, and Refused when the agent refuses.
    """
    workspace = workspaces.numbered(context.db, execution.workspace_generation)
    if workspace is None:
        return Outcome.failure("WORKSPACE_MISSING", lifecycle.WORKSPACE_REMOVED)
    if not executions.may_resume(context.db, execution):
        return Outcome.failure("SESSION_NOT_FOUND", lifecycle.SESSION_UNKNOWN)
    placement = workspace.placement
    if placement is not None and placement.is_current:
        return None
    if placement is None or placement.upload_number is None:
        _delete_former(context, agent, client, workspace.workspace_id)
        if _record(client, workspace.workspace_id) is not None:
            return Outcome.failure(
                "AGENT_REFUSED",
                f"Agent {agent.name} has a workspace {workspace.workspace_id} that is not this hub's; upload under"
                " another id, or delete it there.",
            )
        hub_workspaces.reserve_on(context.db, workspace, agent.agent_id)
    with hub_workspaces.zip_path(context.config, workspace).open("rb") as archive:
        reply = client.upload(
            workspace.workspace_id,
            archive,
            name=workspace.name,
            description=workspace.description,
            strip_root=workspace.stripped is not None,
            generation=0 if workspace.placed is None else workspace.agent_generation,
        )
    path = reply.get("path")
    known = isinstance(path, str) and len(path) <= _LONGEST_PATH
    path = whole_characters(str(path)) if known else ""
    hub_workspaces.note_placed(context.db, workspace, agent.agent_id, path, _generation(reply))
    return None


def _delete_former(context: RelayContext, agent: Agent, client: AgentClient, workspace_id: str) -> None:
    """Have the agent delete former workspaces of this id first, if it has not yet.

    Raises Unreachable, and Refused while something runs there.
    """
    for errand in errands.deletions(context.db, agent.agent_id, workspace_id):
        try:
            client.call(errand.method, errand.path)
        except Refused as refusal:
            if refusal.status != 404:
                raise
        errands.done(context.db, errand)


def _record(client: AgentClient, workspace_id: str) -> dict[str, object] | None:
    """Read an agent's record of a workspace; None when it has none of this id."""
    try:
        return client.workspace(workspace_id)
    except Refused as refusal:
        if refusal.status == 404:
            return None
        raise


def _generation(reply: Mapping[str, Any]) -> int | None:
    """Return the number an agent gave an uploaded workspace; None for an agent that gives none."""
    generation = reply.get("generation")
    valid = isinstance(generation, int) and not isinstance(generation, bool) and 0 < generation <= MAX_SEQ
    return generation if valid and isinstance(generation, int) else None


def agent_generation(context: RelayContext, execution: Execution) -> int | None:
    """Return the number that the execution's workspace has on its agent; None when it is not known."""
    workspace = workspaces.numbered(context.db, execution.workspace_generation)
    return None if workspace is None else workspace.agent_generation


def request_body(context: RelayContext, execution: Execution) -> dict[str, Any]:
    """Return the body of the agent's POST /execute; the agent decides the values that the client left open.

    It names the workspace's number, so the prompt never runs in a later workspace of that id.
    """
    given = {
        "timeoutSeconds": execution.timeout_seconds,
        "idleTimeoutSeconds": execution.idle_timeout_seconds,
        "model": execution.requested_model,
        "maxTurns": execution.max_turns,
        "maxBudgetUsd": execution.max_budget_usd,
        "sessionId": execution.resume_session_id,
        "workspaceGeneration": agent_generation(context, execution),
    }
    asked = {"executionId": execution.execution_id, "workspaceId": execution.workspace_id}
    return {**asked, "prompt": execution.prompt, **{name: value for name, value in given.items() if value}}
