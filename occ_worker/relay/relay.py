"""The relay of one execution, between the hub's rows and the agent that runs it.

A relay sends the agent the work, and stores the agent's events as rows. The agent numbers the events, beginning with
`queued`, which the hub has already stored. The numbers are therefore the same on both sides, and after an interruption
the relay resumes after the newest row, in any process. The execution's id is the same on both sides, so that a
repeated request runs once.
"""

from __future__ import annotations

import contextlib
import logging
import time

from occ_app.client.agent_client import AgentClient
from occ_app.errors import OCCError, Refused, Unreachable
from occ_app.executions import lifecycle
from occ_app.executions import queries as executions
from occ_app.executions.records import Execution, Outcome
from occ_app.hub import approval_rows, fetched_changes, placement
from occ_app.hub import outbox as errands
from occ_app.hub import workspaces as hub_workspaces
from occ_app.hub.agents import Agent
from occ_app.workspaces import projects
from occ_app.workspaces import workspace as workspaces
from occ_worker.relay import sending
from occ_worker.relay.context import RelayContext
from occ_worker.relay.patience import Patience
from occ_worker.relay.relayed_rows import RelayedRows

log = logging.getLogger("occ.relay")

_DAY_SECONDS = 86400.0
_FETCH_SECONDS = 20.0  # for a machine to record changes
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
_MAX_FAULTS = 5  # internal errors before an execution is given up
_FAULT = ("INTERNAL", "The hub failed to relay this. See its worker's log.")
_PUT_BACK_SECONDS = 5.0  # of failing calls before an execution that its agent does not have is placed again
# Statuses from a healthy agent, from another server at its address, or of an internal error: the call is retried.
_BUSY = (429, 503)
_PASSING = (*_BUSY, 401, 403, 408, 421, 425, 500, 502, 504, 507)


class Relay:
    """The relay of one execution, which its agent `agent_id` runs or will run."""

    def __init__(self, context: RelayContext, execution: Execution) -> None:
        self._context = context
        self._execution = execution
        self._patience = Patience(begun=execution.last_seq > 1)
        self._rows = RelayedRows(context, execution, self._patience)
        self._lost_since: float | None = None
        self._sent_anew = False
        self._prompt_sent = bool(execution.prompt_sent)
        self._left = False  # True once it is back in the queue
        self._patience.hold(asked=self.parked or approval_rows.asked(context.db, execution.number))

    @property
    def away(self) -> bool:
        """Return whether its agent does not answer now."""
        return self._lost_since is not None

    def take_lag(self) -> float:
        """Return the longest seconds from an event to its row since the last call."""
        return self._rows.take_lag()

    @property
    def parked(self) -> bool:
        """Return whether the execution is parked on its agent."""
        return self._rows.parked

    @property
    def needs_place(self) -> bool:
        """Return whether it counts toward the hub's limit of relays.

        A relay does not count while its execution is parked, nor for a local execution.
        """
        return not (self.parked or self._is_local)

    @property
    def _is_local(self) -> bool:
        return self._execution.is_local

    @property
    def execution_id(self) -> str:
        return self._execution.execution_id

    @property
    def number(self) -> int:
        return self._execution.number

    @property
    def agent_id(self) -> str:
        return self._execution.agent_id or ""

    def overdue(self, cancel_code: str | None) -> Outcome | None:
        """Return the outcome with which the hub ends it; None while the agent has time."""
        limit = self._execution.timeout_seconds or self._context.config.max_timeout_seconds
        return self._patience.over(cancel_code, 0 if self._is_local else limit, self._is_full)

    def _is_full(self) -> bool:
        """Return whether other executions fill the agent, by its last heartbeat."""
        agent = self._context.agents.find(self.agent_id)
        if agent is None:
            return False
        return sum(running != self._execution.execution_id for running in agent.running) >= agent.workers

    def abandon(self, outcome: Outcome) -> bool:
        """End the execution now, without waiting for its agent.

        The agent gets a cancel that is kept until it is confirmed, and the workspace is held until then. No machine is
        called here. The relay's thread ends once its current wait is over. Returns False when the execution is over
        already.
        """
        if not self._rows.finish(outcome, self._have_it_cancelled):
            return False
        log.warning("execution %s was ended without agent %s", self._execution.execution_id, self.agent_id)
        return True

    def fetch_changes(self) -> None:
        """Fetch recorded changes; the control process fetches those that this does not."""
        context, deadline = self._context, time.monotonic() + _FETCH_SECONDS
        while self._rows.over and self._prompt_sent and time.monotonic() < deadline and not context.stopping():
            try:
                agent = context.agents.find(self.agent_id)
                if agent is None:
                    return
                client = context.calls.client(agent)
                if fetched_changes.fetch(context.db, client, self._execution, context.config.max_diff_bytes):
                    self._rows.ring(b"")
                    return
            except OCCError as error:
                log.info("execution %s: its changes are not fetched yet: %s", self._execution.execution_id, error)
                return
            context.rest(_FIRST_PAUSE)

    def _have_it_cancelled(self) -> None:
        """Add a cancel for the agent to the outbox, if the agent may have the execution."""
        if self._prompt_sent and self._context.agents.find(self.agent_id) is not None:
            errands.cancel(self._context.db, self.agent_id, self._execution.execution_id)

    def run(self) -> None:
        """Relay the execution to its end, and store the outcome.

        Retries while the agent or the database is unavailable. When the process is stopping, the row stays as it is
        for the next process to take over.
        """
        context, pause, faults = self._context, _FIRST_PAUSE, 0
        while not (context.stopping() or self._rows.over):
            before = self._rows.seq
            try:
                outcome = self._try() if faults < _MAX_FAULTS else self._given_up(*_FAULT)
                if self._left:
                    return
                if outcome is not None:
                    self._finish(outcome)
                    return
            except (Unreachable, Refused) as error:
                log.info("execution %s: %s", self._execution.execution_id, error)
            except OCCError as error:
                log.error("execution %s cannot be stored yet: %s", self._execution.execution_id, error)
            except Exception:
                faults += 1
                log.exception("internal error while relaying execution %s", self._execution.execution_id)
            pause = _FIRST_PAUSE if self._rows.seq > before else min(2 * pause, _LONGEST_PAUSE)
            context.rest(pause)
        if self._rows.over:  # the agent may have received it after the cancel
            self._have_it_cancelled()

    def _try(self) -> Outcome | None:
        """Relay over one connection, and return the outcome; None if not known yet."""
        agent = self._context.agents.find(self._execution.agent_id or "")
        if agent is None:
            self._left = not self._prompt_sent and placement.put_back(self._context.db, self._execution)
            if self._left:
                return None
            return Outcome.failure("AGENT_LOST", "The agent that ran this was removed from the hub.")
        if not self._prompt_sent and executions.cancel_code(self._context.db, self._execution.number) is not None:
            return Outcome.failure("EXECUTION_CANCELLED", "The execution was cancelled before it started.")
        try:
            return self._relay(agent, self._context.calls.client(agent))
        except (Refused, Unreachable) as error:
            status = error.status if isinstance(error, Refused) else 0
            if status in _BUSY and isinstance(error, Refused) and error.code:
                self._lost_since = None
                raise
            if isinstance(error, Refused) and status not in _PASSING and not error.away:
                return self._refused(error, agent)
            self._context.calls.broke(agent)
            lost = self._lost_since = self._lost_since or time.monotonic()
            if not self._prompt_sent and self._put_back(agent):
                return None
            config = self._context.config
            seconds = config.forget_agents_days * _DAY_SECONDS if self._is_local else config.reconnect_seconds
            if time.monotonic() - lost <= seconds or self.parked:
                raise
            return self._given_up("AGENT_LOST", f"Agent {agent.name} was away for {seconds:g} s and was given up.")

    def _put_back(self, agent: Agent) -> bool:
        """Return the execution to the queue if its agent cannot be called.

        The agent must not have received the prompt. Returns whether it was put back.
        """
        calls = self._context.calls
        if calls.via(agent) is not None and time.monotonic() - (self._lost_since or 0.0) < _PUT_BACK_SECONDS:
            return False
        calls.avoid(agent)
        self._left = placement.put_back(self._context.db, self._execution)
        return self._left

    def _relay(self, agent: Agent, client: AgentClient) -> Outcome | None:
        body, new = None, False
        if self._rows.seq <= 1 and not self._is_local:  # only `queued`: the agent may not have it
            if self._cancelled(client):
                return Outcome.failure("EXECUTION_CANCELLED", "The execution was cancelled before it started.")
            hindrance = sending.send_workspace(self._context, self._execution, agent, client)
            if hindrance is not None:
                return hindrance
            permissions = sending.permissions_on(self._context, self._execution, agent)
            body, new = sending.request_body(self._context, self._execution, permissions), not self._prompt_sent
            # Marked first, so that no prompt is sent that a power failure could place elsewhere. An execution with this
            # id that the agent has before the mark is not the hub's.
            if self._rows.over:
                return None
            placement.mark_prompt_sent(self._context.db, self._execution, permissions)
            self._prompt_sent = True
            self._patience.prompt_sent()
        headers = sending.owner(self._context, self._execution)
        for batch in client.batches(self._execution.execution_id, self._rows.seq, body, new=new, headers=headers):
            self._lost_since = None
            outcome = self._rows.store(batch) or self._over_limit()
            if outcome is not None:
                return outcome
            if self._is_removed(agent, sign_of_life=not batch):
                with contextlib.suppress(Unreachable, Refused):
                    if not self._is_local:
                        self._cancel(client)
                return None
            if self._rows.over or self._context.stopping():
                return None
        raise Unreachable(f"Agent {agent.name} ended the stream before the execution.")

    def _over_limit(self) -> Outcome | None:
        return None if self._rows.overflow is None else self._given_up(*self._rows.overflow)

    def _is_removed(self, agent: Agent, *, sign_of_life: bool) -> bool:
        """Return whether the agent was removed; looked up only on a sign of life."""
        if agent.agent_id in self._context.removed:
            return True
        return sign_of_life and self._context.agents.find(agent.agent_id) is None

    def _cancelled(self, client: AgentClient) -> bool:
        """Return whether the execution was cancelled before the agent received it."""
        if executions.cancel_code(self._context.db, self._execution.number) is None:
            return False
        try:
            self._cancel(client)
        except Refused as refusal:
            return refusal.status == 404
        return False

    def _cancel(self, client: AgentClient) -> None:
        client.cancel(self._execution.execution_id, sending.agent_generation(self._context, self._execution))

    def _refused(self, refusal: Refused, agent: Agent) -> Outcome | None:
        """Return the outcome of an agent's refusal; None when a retry may help."""
        if refusal.code in ("WORKSPACE_NOT_FOUND", "WORKSPACE_CONFLICT") and not self._sent_anew:
            self._sent_anew = True
            workspace = workspaces.numbered(self._context.db, self._execution.workspace_generation)
            if workspace is None:
                return Outcome.failure("WORKSPACE_MISSING", lifecycle.WORKSPACE_REMOVED)
            if workspace.is_project:
                return Outcome.failure("WORKSPACE_MISSING", projects.REMOVED)
            hub_workspaces.note_missing(self._context.db, workspace, agent.agent_id)
            return None
        if refusal.code == "WORKSPACE_BUSY":
            return None  # an execution that the hub did not send is running in it
        if refusal.code == "EXECUTION_NOT_FOUND":
            # The agent may be a copy of the home, and the execution may still be running in the original.
            return self._given_up("AGENT_LOST", f"Agent {agent.name} no longer has this execution.")
        return Outcome.failure("AGENT_REFUSED", f"Agent {agent.name} refused it: {refusal}")

    def _given_up(self, code: str, message: str) -> Outcome:
        """Return the outcome of an execution that its agent may still be running.

        The execution is also cancelled on its agent once that is possible. A local one continues there: the hub only
        stops showing it.
        """
        if self._is_local:
            return Outcome.failure(code, f"{message} It was started on its machine, and may still run there.")
        errands.cancel(self._context.db, self._execution.agent_id or "", self._execution.execution_id)
        return Outcome.failure(code, message)

    def _finish(self, outcome: Outcome) -> None:
        self._rows.count_broken()
        if self._rows.finish(outcome):
            log.info("execution %s %s", self._execution.execution_id, outcome.data.get("code", outcome.state))
