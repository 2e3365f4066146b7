"""Requests that send an execution and its workspace to the machine."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from occ_app.client.agent_client import AgentClient
from occ_app.client.event_checks import MAX_SEQ
from occ_app.errors import Refused
from occ_app.executions import attachments, lifecycle, rules
from occ_app.executions import queries as executions
from occ_app.executions.ceilings import lowest
from occ_app.executions.records import Execution, Outcome
from occ_app.hub import ceilings, keys
from occ_app.hub import outbox as errands
from occ_app.hub import workspaces as hub_workspaces
from occ_app.hub.agents import Agent
from occ_app.system.foreign_text import whole_characters
from occ_app.workspaces import origin as origins
from occ_app.workspaces import workspace as workspaces
from occ_app.workspaces.origin import OPERATOR, Origin
from occ_app.workspaces.workspace import Workspace
from occ_worker.relay.context import RelayContext

_LONGEST_PATH = 4096


def send_workspace(context: RelayContext, execution: Execution, agent: Agent, client: AgentClient) -> Outcome | None:
    """Send the agent the workspace unless it has it.

    Returns the outcome of an execution whose workspace cannot be sent. Raises Unreachable, and Refused when the agent
    refuses.
    """
    workspace = workspaces.numbered(context.db, execution.workspace_generation)
    if workspace is None:
        return Outcome.failure("WORKSPACE_MISSING", lifecycle.WORKSPACE_REMOVED)
    if not _may_resume(context, execution, workspace):
        return Outcome.failure("SESSION_NOT_FOUND", lifecycle.SESSION_UNKNOWN)
    if workspace.is_project:
        return None
    placement = workspace.placement
    if placement is not None and placement.is_current:
        return None
    origin, generation = _origin(context, workspace), workspace.agent_generation
    if placement is None or placement.upload_number is None:
        _delete_former(context, agent, client, workspace.workspace_id)
        found = _record(client, workspace.workspace_id)
        if found is not None:
            held = origins.of_record(found.get("origin"))
            hindrance = _hindrance(workspace.workspace_id, origin, held, agent)
            if hindrance is not None:
                return hindrance
            if held is not None and held.zip == origin.zip:  # sent by this hub before it was restored from a copy
                hub_workspaces.reserve_on(context.db, workspace, agent.agent_id)
                _note_placed(context, workspace, agent, found)
                return None
        generation = 0 if found is None else _generation(found)
        hub_workspaces.reserve_on(context.db, workspace, agent.agent_id)
    with hub_workspaces.zip_path(context.config, workspace).open("rb") as archive:
        reply = client.upload(
            workspace.workspace_id,
            archive,
            name=workspace.name,
            description=workspace.description,
            strip_root=workspace.stripped is not None,
            generation=generation,
            headers=origin.upload(),
        )
    _note_placed(context, workspace, agent, reply)
    return None


def owner(context: RelayContext, execution: Execution) -> dict[str, str]:
    """Return the header that names the owner of an execution's workspace.

    It holds this hub and the key that uploaded the workspace. A project has none.
    """
    workspace = workspaces.numbered(context.db, execution.workspace_generation)
    return {} if workspace is None or workspace.is_project else _origin(context, workspace).owner()


def _origin(context: RelayContext, workspace: Workspace) -> Origin:
    return Origin(context.hub_id, workspace.key_id or OPERATOR, workspace.zip or "", workspace.updated_at)


def _hindrance(workspace_id: str, origin: Origin, held: Origin | None, agent: Agent) -> Outcome | None:
    """Return why a workspace on an agent cannot be used or replaced.

    Returns None when it can. The workspace has the same id as the hub's.
    """
    if not origin.same_owner(held):
        return Outcome.failure(
            "AGENT_REFUSED",
            f"Agent {agent.name} has a workspace {workspace_id} that is not this hub's; upload under another id, or"
            " delete it there.",
        )
    if held is not None and held.zip != origin.zip and held.uploaded_at > origin.uploaded_at:
        return Outcome.failure(
            "AGENT_REFUSED",
            f"Agent {agent.name} has a newer upload of workspace {workspace_id} than this hub, which was restored from"
            " an older copy; upload the folder again.",
        )
    return None


def _note_placed(context: RelayContext, workspace: Workspace, agent: Agent, reply: Mapping[str, Any]) -> None:
    """Record that an agent has a workspace's files.

    `reply` has the path and the number that the agent reports.
    """
    path = reply.get("path")
    known = isinstance(path, str) and len(path) <= _LONGEST_PATH
    path = whole_characters(str(path)) if known else ""
    hub_workspaces.note_placed(context.db, workspace, agent.agent_id, path, _generation(reply))


def _may_resume(context: RelayContext, execution: Execution, workspace: Workspace) -> bool:
    """Return whether an execution may resume its session, as far as the hub knows.

    In a project, admins may resume any session of its folder; the machine checks that the session began there.
    """
    if executions.may_resume(context.db, execution):
        return True
    return workspace.is_project and keys.is_unlimited(context.db, execution.key_id)


def _delete_former(context: RelayContext, agent: Agent, client: AgentClient, workspace_id: str) -> None:
    """Delete former workspaces with this id on the agent.

    Only deletions that are still pending are sent. Raises Unreachable, and Refused while something runs there.
    """
    for errand in errands.deletions(context.db, agent.agent_id, workspace_id):
        try:
            client.call(errand.method, errand.path)
        except Refused as refusal:
            if refusal.status != 404 and refusal.code != "WORKSPACE_IS_FOLDER":
                raise
        errands.done(context.db, errand)


def _record(client: AgentClient, workspace_id: str) -> dict[str, object] | None:
    """Return an agent's record of a workspace; None when it has none with this id."""
    try:
        return client.workspace(workspace_id)
    except Refused as refusal:
        if refusal.status == 404:
            return None
        raise


def _generation(reply: Mapping[str, Any]) -> int | None:
    """Return the number an agent gave an uploaded workspace.

    Returns None for an agent that does not report numbers.
    """
    generation = reply.get("generation")
    valid = isinstance(generation, int) and not isinstance(generation, bool) and 0 < generation <= MAX_SEQ
    return generation if valid and isinstance(generation, int) else None


def agent_generation(context: RelayContext, execution: Execution) -> int | None:
    """Return the number of the execution's workspace on its agent.

    Returns None when it is not known.
    """
    workspace = workspaces.numbered(context.db, execution.workspace_generation)
    return None if workspace is None else workspace.agent_generation


def _name_on_agent(context: RelayContext, execution: Execution) -> str:
    """Return the id of the execution's workspace on its agent."""
    workspace = workspaces.numbered(context.db, execution.workspace_generation)
    return workspace.name if workspace is not None and workspace.is_project else execution.workspace_id


def _attachments(context: RelayContext, execution: Execution) -> list[dict[str, str]]:
    if not execution.attachments:
        return []
    found = attachments.of_execution(context.db, execution.number)
    return [{"name": each.name, "data": base64.b64encode(each.data).decode()} for each in found]


def _rewound(context: RelayContext, execution: Execution) -> str | None:
    if execution.rewind_to is None:
        return None
    with context.db.read() as connection:
        return executions.numbered(connection, execution.rewind_to).execution_id


def permissions_on(context: RelayContext, execution: Execution, agent: Agent) -> str:
    """Return the permissions that an execution gets on an agent.

    They are limited to those its workspace currently allows, and, unless the request named a level, to those the agent
    allows.
    """
    workspace = workspaces.numbered(context.db, execution.workspace_generation)
    allowed = lowest(execution.permissions, None if workspace is None else workspace.permissions)
    return ceilings.level([agent], allowed, named=execution.permissions_named)


def request_body(context: RelayContext, execution: Execution, permissions: str) -> dict[str, Any]:
    """Return the body of the agent's POST /execute.

    The agent chooses values that the client left open. The body has the workspace's number, so that the prompt never
    runs in a later workspace with that id.
    """
    workspace = workspaces.numbered(context.db, execution.workspace_generation)
    options = {
        "timeoutSeconds": execution.timeout_seconds,
        "idleTimeoutSeconds": execution.idle_timeout_seconds,
        "model": execution.requested_model,
        "maxTurns": execution.max_turns,
        "maxBudgetUsd": execution.max_budget_usd,
        "approvalSeconds": execution.approval_seconds,
        "sessionId": execution.resume_session_id,
        # The default is left out, because agents with an older OCC do not know the field.
        "permissions": None if permissions == ceilings.DEFAULT else permissions,
        "deny": rules.requested(context.db, execution.number, "deny"),
        "ask": rules.requested(context.db, execution.number, "ask"),
        "workspaceGeneration": None if workspace is None else workspace.agent_generation,
        "attachments": _attachments(context, execution),
        "fork": execution.fork,
        "rewindTo": _rewound(context, execution),
    }
    target = {"executionId": execution.execution_id, "workspaceId": _name_on_agent(context, execution)}
    return {**target, "prompt": execution.prompt, **{name: value for name, value in options.items() if value}}
