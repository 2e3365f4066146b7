"""Runs started in Slack: by a message, a reply, or the form."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from typing import Any

from occ_app.config.settings import PERMISSIONS
from occ_app.errors import NotFound, RequestError
from occ_app.executions import lifecycle
from occ_app.executions import queries as executions
from occ_app.executions.records import Execution, Request
from occ_app.home import daemon
from occ_app.hub import placement
from occ_app.slack import blocks, dialogs, people, threads
from occ_app.slack.inbox import Payload
from occ_app.slack.incoming import Incoming
from occ_app.slack.people import Person
from occ_app.slack.threads import Thread
from occ_app.workspaces import workspace as workspaces
from occ_app.workspaces.workspace import Workspace
from occ_worker.slack import dropped
from occ_worker.slack.hub import SlackHub
from occ_worker.slack.replies import TakesLong, say


@dataclass(frozen=True)
class Task:
    """A requested run.

    `generation` is the number of its workspace where the form names one.
    """

    prompt: str
    workspace_id: str = ""
    continues: str | None = None
    generation: int | None = None
    agent: str | None = None
    model: str | None = None
    permissions: str = dialogs.DEFAULT_LEVEL


def by_message(hub: SlackHub, payload: Payload, found: Incoming, person: Person, known: Thread | None) -> None:
    """Start the run of a message.

    It continues the latest run of its thread. A zip in the message becomes its workspace. Raises the errors that
    refuse it, and TakesLong for a zip in a payload that is not `slow`.
    """
    owner_id = person.owner_id if known is None else known.owner_id
    execution = executions.find(hub.db, found.execution_id)  # after a kill
    if execution is None:
        workspace_id, continues = "", None
        if known is not None:
            runs = threads.runs_in(hub.db, found.channel, found.thread)
            continues = runs[-1] if runs else None
        if found.files:
            workspace_id = _dropped(hub, payload, found, person, continues)
        elif continues is None:
            workspace_id = _workspace(hub, found, person)
        if not found.text:
            say(
                hub,
                payload,
                found,
                f"Your zip is now the workspace {workspace_id}. Choose it with `/occ use {workspace_id}`.",
            )
            return
        digest = hashlib.sha256(f"slack {found.text}".encode()).hexdigest()
        execution = _create(hub, found, person, Task(found.text, workspace_id, continues), owner_id, digest)
    thread = Thread(found.team, found.channel, found.thread, owner_id, bool(found.private))
    threads.begin(hub.db, thread, execution.number)  # synced to disk, together with the execution
    hub.wake()


def by_form(hub: SlackHub, found: Incoming, person: Person) -> None:
    """Start the run of a submitted form, in a new thread.

    The thread begins with a message of the app. Raises the errors that refuse the run.
    """
    execution = executions.find(hub.db, found.execution_id)  # after a kill
    if execution is None:
        task = _task(hub, found, person)
        digest = hashlib.sha256(f"slack {json.dumps(asdict(task))}".encode()).hexdigest()
        execution = _create(hub, found, person, task, person.owner_id, digest)
    head = blocks.opening(found.user, execution.prompt or "")
    private = found.channel.startswith(threads.DIRECT)
    threads.open_thread(
        hub.db, Thread(found.team, found.channel, "", person.owner_id, private), execution.number, head, found.user
    )
    hub.wake()


def form(hub: SlackHub, found: Incoming, person: Person) -> dict[str, Any] | None:
    """Return the form for this person; None while they have no workspace."""
    places = sorted(workspaces.listing(hub.db, person.visible_to), key=lambda each: each.updated_at, reverse=True)
    if not places:
        return None
    chosen = people.place(hub.db, found.team, found.channel, person.owner_id)
    return dialogs.form(
        found.channel,
        found.user,
        [(str(each.generation), _name(each)) for each in places],
        [(each.agent_id, each.name) for each in hub.agents.listing()],
        next((str(each.generation) for each in places if each.workspace_id == chosen), None),
    )


def _name(workspace: Workspace) -> str:
    return workspace.alias or workspace.workspace_id


def _task(hub: SlackHub, found: Incoming, person: Person) -> Task:
    """Return the task that a form describes.

    Raises RequestError for values that the hub's form does not offer, NotFound for a workspace that was removed.
    """
    values = {name: chosen[0] for name, chosen in found.fields.items() if chosen}
    place, level, model = values.get(dialogs.WHERE, ""), values.get(dialogs.LEVEL, ""), values.get(dialogs.MODEL)
    if not place.isdecimal() or level not in PERMISSIONS or not values.get(dialogs.PROMPT):
        raise RequestError("INVALID_REQUEST", "Fill in the form again: send `/occ`.")
    workspace = workspaces.numbered(hub.db, int(place[:18]), person.visible_to)
    if workspace is None:
        raise NotFound("WORKSPACE_NOT_FOUND", "That workspace was removed; send `/occ` and choose another one.")
    from occ_app.web.fields import MODEL_PATTERN  # loaded at the first form, because it takes 5 MB

    if model is not None and not re.fullmatch(MODEL_PATTERN, model):
        raise RequestError("INVALID_REQUEST", f"{model[:100]!r} is not a valid model name. Send `/occ` again.")
    machine = values.get(dialogs.MACHINE)
    return Task(
        values[dialogs.PROMPT], workspace.workspace_id, None, workspace.generation, machine or None, model, level
    )


def _create(hub: SlackHub, found: Incoming, person: Person, task: Task, owner_id: str, digest: str) -> Execution:
    """Accept a run, once for each message or form.

    Raises the errors that refuse it.
    """
    config = hub.config
    if not daemon.takes_work(config):
        raise RequestError("STOPPING", "The hub is stopping; send it again in a minute.")
    request = Request(
        execution_id=found.execution_id,
        workspace_id=task.workspace_id,
        prompt=task.prompt,
        timeout_seconds=config.timeout_seconds,
        idle_timeout_seconds=config.idle_timeout_seconds,
        model=task.model,
        max_turns=None,
        max_budget_usd=None,
        session_id=None,
        hash=digest,
        key_id=person.key_id,
        owner_id=owner_id,
        permissions=task.permissions,
        # The form preselects the default, so only another level was chosen by a person.
        permissions_named=task.permissions != dialogs.DEFAULT_LEVEL,
        approval_seconds=config.slack_approval_seconds,
        continues=task.continues,
        visible_to=person.visible_to,
        agent=task.agent,
        workspace_generation=task.generation,
    )
    execution, _ = lifecycle.create(
        hub.db,
        request,
        max_queue=config.max_queue,
        admit=lambda connection, wanted: placement.admit(hub.agents, connection, wanted, person.visible_to),
        resolve=lambda connection, name: placement.resolve(hub.agents, connection, name),
    )
    return execution


def _dropped(hub: SlackHub, payload: Payload, found: Incoming, person: Person, continues: str | None) -> str:
    """Return the workspace made from the zip in a message.

    Raises RequestError as its upload does, and TakesLong.
    """
    if continues is not None:
        raise RequestError(
            "INVALID_REQUEST", "A thread stays in its workspace. Send the zip in a message outside the thread."
        )
    if not daemon.takes_work(hub.config):
        raise RequestError("STOPPING", "The hub is stopping; send it again in a minute.")
    if not payload.slow:
        raise TakesLong
    return dropped.make_workspace(hub, found, person)


def _workspace(hub: SlackHub, found: Incoming, person: Person) -> str:
    """Return the person's workspace for the channel, or their only workspace.

    Raises RequestError.
    """
    chosen = people.place(hub.db, found.team, found.channel, person.owner_id)
    if chosen is not None:
        return chosen
    visible = workspaces.listing(hub.db, person.visible_to)
    if len(visible) == 1:
        return visible[0].workspace_id
    raise RequestError("WORKSPACE_NOT_CHOSEN", "Choose the workspace of this channel first: `/occ use NAME`.")
