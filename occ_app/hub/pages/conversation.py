"""The turns of a conversation as its page shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from occ_app import errors
from occ_app.api.services import services
from occ_app.executions import conversations, queries, waiting
from occ_app.executions.records import Execution
from occ_app.hub import agent_lists
from occ_app.hub.agents import Agent
from occ_app.hub.pages import advice, asked, parts
from occ_app.hub.pages import filters as shown
from occ_app.hub.pages.asked import Asked
from occ_app.hub.pages.parts import Part, Place
from occ_app.hub.services import hub_services
from occ_app.web import callers
from occ_app.workspaces import workspace as workspaces
from occ_app.workspaces.workspace import Workspace

_TURNS_WITH_ANSWERS, _MAX_TURNS = 4, 200
_WORDS = {
    "queued": "Waiting",
    "running": "Running",
    "parked": "Waits for you",
    "succeeded": "Done",
    "failed": "Failed",
    "cancelled": "Cancelled",
}


@dataclass(frozen=True)
class Turn:
    """A turn: its execution, and the part of its answer that is on the page.

    `part` is None where the page loads the answer later.
    """

    execution: Execution
    part: Part | None
    begins: Place  # where the page's part of the answer begins
    machine: str | None
    asked: Sequence[Asked] = ()  # the open approvals
    moves_up: str | None = None  # for a waiting follow-up: the turn to move it before
    moves_down: str | None = None  # the turn to move before it

    @property
    def state(self) -> str:
        """The execution's state; `parked` also while it runs and holds for an answer."""
        holds = self.execution.state == "running" and any(each.approval.pending is None for each in self.asked)
        return "parked" if holds else self.execution.state

    @property
    def word(self) -> str:
        """Return the state as a word."""
        if self.execution.cancel_code and not self.execution.over:
            return "Cancelling"
        return "Paused" if self.execution.paused else _WORDS.get(self.state, self.state.capitalize())

    @property
    def seconds(self) -> float:
        """Return how long the turn has run, or waited if it has not started."""
        one = self.execution
        if one.started_at is None:
            return shown.since(one.created_at, one.finished_at) or 0.0
        return shown.since(one.started_at, one.finished_at) or 0.0

    @property
    def advice(self) -> str:
        """Return the next step after its failure."""
        return advice.of(self.execution.error_code)

    @property
    def changes(self) -> Mapping[str, Any] | None:
        """Return the totals of its changes, or None if it changed no files."""
        found = self.execution.changes
        return found if isinstance(found, Mapping) and found.get("files") else None


@dataclass(frozen=True)
class Shown:
    """A conversation as a page shows it.

    `mode` is the action of its form: `send`, `queue`, `fresh` or `none`.
    """

    title: str
    turns: list[Turn]
    earlier: int  # turns that are not on the page
    workspace: Workspace | None
    agent: Agent | None
    cost_usd: float
    chosen: Execution
    mode: str

    @property
    def newest(self) -> Turn:
        return self.turns[-1]

    @property
    def running(self) -> Turn | None:
        """Return the first turn that is running or waiting."""
        return next((turn for turn in self.turns if not turn.execution.over), None)


def read(execution_id: str, *, answers: bool, place: Place | None = None) -> Shown:
    """Return the conversation of an execution, with its newest answers on request.

    `answers` includes the newest answers. `place` is where the answer of the execution begins. Raises NotFound.
    """
    db, visible_to = services().db, callers.caller().visible_to
    chosen = queries.get(db, execution_id, visible_to)
    summary, executions = conversations.get(db, chosen.conversation or execution_id, visible_to)
    with db.read() as connection:
        executions = waiting.described(connection, executions)
    workspace = workspaces.numbered(db, chosen.workspace_generation, visible_to)
    folder = workspace.path if workspace else ""
    names = agent_lists.names(hub_services().agents, (one.agent_id for one in executions))
    listed = executions[-_MAX_TURNS:]
    whole = {one.number for one in listed[-_TURNS_WITH_ANSWERS:]} | {chosen.number}
    turns = [
        _turn(
            one, listed, names, folder, place if one.number == chosen.number else None, answers and one.number in whole
        )
        for one in listed
    ]
    agent_id = next((one.agent_id for one in reversed(executions) if one.agent_id), None)
    return Shown(
        title=shown.beginning(summary.title or "", 120) or "A conversation whose prompts are forgotten",
        turns=turns,
        earlier=len(executions) - len(listed),
        workspace=workspace,
        agent=hub_services().agents.find(agent_id) if agent_id else None,
        cost_usd=summary.cost_usd,
        chosen=chosen,
        mode=_mode(executions, workspace),
    )


def _mode(executions: list[Execution], workspace: Workspace | None) -> str:
    if workspace is None:
        return "none"
    if not executions[-1].over:
        return "queue"
    return "send" if any(one.session_id for one in executions) else "fresh"


def _turn(
    one: Execution, all_turns: list[Execution], names: Mapping[str, str], folder: str, place: Place | None, read: bool
) -> Turn:
    begins = place or (Place() if one.over else parts.window(services().db, one))
    part = None
    if read:
        part = parts.read(services().db, one, begins, folder)
    machine = names.get(one.agent_id, "a removed machine") if one.agent_id else None
    waiting_ids = [each.execution_id for each in all_turns if each.state == "queued" and each.continues is not None]
    if one.execution_id not in waiting_ids:
        open_ones = asked.of_execution(one.execution_id, folder) if one.state in ("running", "parked") else []
        return Turn(one, part, begins, machine, open_ones)
    at = waiting_ids.index(one.execution_id)
    return Turn(
        one,
        part,
        begins,
        machine,
        (),
        waiting_ids[at - 1] if at else None,
        waiting_ids[at + 1] if at + 1 < len(waiting_ids) else None,
    )


def part(execution_id: str, place: Place, until: Place | None) -> Part:
    """Return a part of an execution's answer. Raises NotFound."""
    db, visible_to = services().db, callers.caller().visible_to
    execution = queries.get(db, execution_id, visible_to)
    workspace = workspaces.numbered(db, execution.workspace_generation, visible_to)
    return parts.read(db, execution, place, workspace.path if workspace else "", until)


def blocking(turn: Turn) -> Execution | None:
    """Return the execution that is running in the workspace of a waiting turn."""
    one = turn.execution
    if one.state != "queued" or one.paused:
        return None
    rows, _ = queries.listing(
        services().db,
        state="running",
        workspace_id=one.workspace_id,
        owner_id=callers.caller().visible_to,
        limit=1,
    )
    return rows[0] if rows else None


def agent_folder(execution: Execution) -> str:
    """Return the path of an execution's workspace.

    Returns an empty string when the workspace no longer exists or belongs to another owner.
    """
    workspace = workspaces.numbered(services().db, execution.workspace_generation, callers.caller().visible_to)
    return workspace.path if workspace else ""


def workspace_of(execution: Execution) -> Workspace:
    """Return the workspace of an execution.

    Raises NotFound when it has been deleted or belongs to another owner.
    """
    found = workspaces.numbered(services().db, execution.workspace_generation, callers.caller().visible_to)
    if found is None:
        raise errors.workspace_not_found(execution.workspace_id)
    return found
