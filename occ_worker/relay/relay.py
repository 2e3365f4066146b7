"""The relay of one execution: its agent gets the work, and the agent's events become the hub's rows.

The agent numbers the events, beginning with `queued`, which the hub has stored already; so the hub's rows and the
agent's are numbered alike, and a relay that breaks goes on after the newest row, whichever process it lives in. The
execution's id is the same on both sides, so that a repeated request runs once.
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
_MAX_FAULTS = 5  # of OCC's own, until an execution is given up
_FAULT = ("INTERNAL", "The hub failed to relay this; its worker's log says why.")
_PUT_BACK_SECONDS = 5.0  # of failing calls, until an execution that its agent does not know is placed again
# Replies of a healthy agent, of another server at its address, or of a fault: the call is repeated.
_BUSY = (429, 503)
_PASSING = (*_BUSY, 401, 403, 408, 421, 425, 500, 502, 504, 507)


class Relay:
    """The relay of one execution, which its agent `agent_id` runs or is to run."""

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
        """Whether its agent does not answer now."""
        return self._lost_since is not None

    def take_lag(self) -> float:
        """The longest time from an event to its row since the last call, in seconds, by the clocks of both machines."""
        return self._rows.take_lag()

    @property
    def parked(self) -> bool:
        """Whether the execution is parked on its agent."""
        return self._rows.parked

    @property
    def needs_place(self) -> bool:
        """Whether it counts among the relays of the hub: not while its execution is parked, and not a local one."""
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
        """Return how the hub is to end the execution because its agent did not; None while the agent has time."""
        limit = self._execution.timeout_seconds or self._context.config.max_timeout_seconds
        return self._patience.over(cancel_code, 0 if self._is_local else limit, self._is_full)

    def _is_full(self) -> bool:
        """Whether the agent's last heartbeat named as many other executions as it has workers."""
        agent = self._context.agents.find(self.agent_id)
        if agent is None:
            return False
        return sum(running != self._execution.execution_id for running in agent.running) >= agent.workers

    def abandon(self, outcome: Outcome) -> bool:
        """End the execution now, without waiting for its agent. False when it is over already.

        The agent gets a cancel that waits until it is confirmed, and the workspace is held until then. Waits for no
        machine; the thread of the relay leaves when its own wait is over.
        """
        if not self._rows.finish(outcome, self._have_it_cancelled):
            return False
        log.warning("execution %s was ended without agent %s", self._execution.execution_id, self.agent_id)
        return True

    def fetch_changes(self) -> None:
        """Fetch what the execution changed, once its machine has recorded it; the control process does the rest."""
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
        """Have the agent cancel it, once that is possible, if the agent may have it."""
        if self._prompt_sent and self._context.agents.find(self.agent_id) is not None:
            errands.cancel(self._context.db, self.agent_id, self._execution.execution_id)

    def run(self) -> None:
        """Relay to the end and write it down, however often the agent or the database is away.

        When the process is to stop the row stays as it is, for the next process to take up.
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
                log.exception("execution %s met a fault of OCC", self._execution.execution_id)
            pause = _FIRST_PAUSE if self._rows.seq > before else min(2 * pause, _LONGEST_PAUSE)
            context.rest(pause)
        if self._rows.over:  # the agent may have got it after the cancel
            self._have_it_cancelled()

    def _try(self) -> Outcome | None:
        """Relay over one connection. Returns how the execution ended; None when that is not known yet."""
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
        """Return the execution to the queue when its agent, which does not know it, cannot be called."""
        calls = self._context.calls
        if calls.via(agent) is not None and time.monotonic() - (self._lost_since or 0.0) < _PUT_BACK_SECONDS:
            return False
        calls.avoid(agent)
        self._left = placement.put_back(self._context.db, self._execution)
        return self._left

    def _relay(self, agent: Agent, client: AgentClient) -> Outcome | None:
        body, new = None, False
        if self._rows.seq <= 1 and not self._is_local:  # nothing but `queued`: the agent may not have heard of it
            if self._cancelled(client):
                return Outcome.failure("EXECUTION_CANCELLED", "The execution was cancelled before it started.")
            hindrance = sending.send_workspace(self._context, self._execution, agent, client)
            if hindrance is not None:
                return hindrance
            permissions = sending.permissions_on(self._context, self._execution, agent)
            body, new = sending.request_body(self._context, self._execution, permissions), not self._prompt_sent
            # Marked first: the agent gets no prompt that a power cut could place elsewhere, and an execution of this
            # id that it has before the mark is somebody else's.
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
        """Whether somebody removed the agent; looked up only when there is nothing else to do."""
        if agent.agent_id in self._context.removed:
            return True
        return sign_of_life and self._context.agents.find(agent.agent_id) is None

    def _cancelled(self, client: AgentClient) -> bool:
        """Whether somebody ended it before the agent heard of it."""
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
        """Return the outcome of an agent's refusal; None when a repeated call may help."""
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
            return None  # something the hub did not send runs in it
        if refusal.code == "EXECUTION_NOT_FOUND":
            # Who has its id may be a copy of it, and the execution run on in the other.
            return self._given_up("AGENT_LOST", f"Agent {agent.name} does not know this execution any more.")
        return Outcome.failure("AGENT_REFUSED", f"Agent {agent.name} refused it: {refusal}")

    def _given_up(self, code: str, message: str) -> Outcome:
        """Return the outcome of an execution that its agent may still run, and cancel it there once possible.

        A local one goes on: the hub only stops showing it.
        """
        if self._is_local:
            return Outcome.failure(code, f"{message} It was started on its machine, and may still run there.")
        errands.cancel(self._context.db, self._execution.agent_id or "", self._execution.execution_id)
        return Outcome.failure(code, message)

    def _finish(self, outcome: Outcome) -> None:
        self._rows.count_broken()
        if self._rows.finish(outcome):
            log.info("execution %s %s", self._execution.execution_id, outcome.data.get("code", outcome.state))
