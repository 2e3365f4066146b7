"""A hub's control process: uploads, routes to agents, webhooks and timeouts.

Executions that wait too long are ended.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from occ_app.config.config import HubConfig
from occ_app.database.database import Database
from occ_app.errors import OCCError, Refused, Unreachable
from occ_app.executions import lifecycle, retention
from occ_app.executions import queries as executions
from occ_app.executions.answers import Approval
from occ_app.executions.records import Outcome
from occ_app.hub import agent_lists, approval_rows, deliveries, logins, placement
from occ_app.hub import outbox as errands
from occ_app.hub import workspaces as hub_workspaces
from occ_app.hub.agent_clients import Calls
from occ_app.hub.agents import Agent, Agents
from occ_app.hub.approvals import HubApprovals
from occ_app.hub.updates import Updates
from occ_app.streams import tail
from occ_app.streams.doorbell import Ringer
from occ_app.workspaces import upload_jobs
from occ_worker.control.changes_fetcher import ChangesFetcher
from occ_worker.control.deliveries import Deliveries
from occ_worker.control.upkeep import Upkeep

log = logging.getLogger("occ.control")

_PROBES_AT_ONCE = 8
_ERRAND_SECONDS = 10.0
_FIRST_PROBE_PAUSE, _LONGEST_PROBE_PAUSE = 5.0, 900.0
_LINKED_PROBE_PAUSE = 120.0  # after two failures of an agent that has a link


@dataclass(frozen=True)
class _Probed:
    """The result of probing an address that did not answer.

    It has the time of the next probe, on the monotonic clock, and the pause before it in seconds.
    """

    again_at: float
    pause: float


class HubControl(Upkeep):
    """The jobs of a hub's control process.

    `queued` counts the wake-ups on the executions queue; `ring` adds one.
    """

    def __init__(
        self,
        config: HubConfig,
        db: Database,
        agents: Agents,
        calls: Calls,
        readers: Ringer,
        deliveries: Deliveries,
        queued: Callable[[], int],
        ring: Callable[[], None],
    ) -> None:
        super().__init__(config, db)
        self.deliveries = deliveries
        self._hub = config
        self._agents = agents
        self._calls = calls
        self._readers = readers
        self._queued = queued
        self._ring = ring
        self._waiting_since: dict[int, float] = {}
        self._probed: dict[str, _Probed] = {}  # by token, so that a new registration is probed at once
        self._newest: str | None = None  # the newest registration seen
        self._next_probe = 0.0
        self._reaching = threading.Lock()
        self._fetcher = ChangesFetcher(config, db, agents, calls, readers)

    def reconcile_uploads(self) -> None:
        """Undo the unfinished work of a killed predecessor, and wake its callers."""
        for number in upload_jobs.abandon_running(self._db):
            self._readers.ring(tail.job_key(number))
        for path in self._hub.zips.glob(".incoming-*"):
            path.unlink(missing_ok=True)

    def _unpack(self, number: int) -> None:
        updates = Updates(self._hub, self._db, self._agents, self._calls)
        hub_workspaces.store(self._db, number, self._hub, updates.run)
        self._readers.ring(tail.job_key(number))

    def under_way(self) -> bool:
        return any(executions.counts(self._db))

    def reap(self) -> None:
        """Wake a relay for executions that wait or lost theirs, and end overdue ones."""
        _, waiting = executions.counts(self._db)
        if (waiting or placement.orphans(self._db)) and self._queued() == 0:
            self._ring()
        self._end_overdue()

    def _end_overdue(self) -> None:
        # Counted from when this process first saw it, so that a clock change or a restart of the hub ends none early.
        listed, _ = executions.listing(self._db, state="queued", limit=self._hub.max_queue)
        queued = [execution for execution in listed if execution.paused is None]
        now = time.monotonic()
        self._waiting_since = {x.number: self._waiting_since.get(x.number, now) for x in queued}
        for execution in queued:
            if now - self._waiting_since[execution.number] < self._hub.wait_seconds:
                continue
            why = execution.waits_for or "a machine to run it"
            outcome = Outcome.failure("NO_AGENT", f"It waited {self._hub.wait_seconds:g} s for {why}.")
            if lifecycle.give_up(self._db, execution.number, outcome):
                self._readers.ring(tail.execution_key(execution.number))

    def to_be_reached(self) -> bool:
        """Return whether `reach` has anything to do."""
        newest = self._agents.newest()
        if newest != self._newest or time.monotonic() >= self._next_probe:
            self._newest = newest
            return True
        return bool(errands.waiting(self._db) or approval_rows.any_undelivered(self._db)) or self._fetcher.due()

    def reach(self) -> None:
        """Probe the addresses of agents, and make pending calls to reachable ones."""
        if not self._reaching.acquire(blocking=False):
            return
        try:
            self._next_probe = time.monotonic() + _FIRST_PROBE_PAUSE
            machines = {agent.agent_id: agent for agent in self._agents.listing() if agent.online}
            self._probe([agent for agent in machines.values() if self._to_be_probed(agent)])
            self._deliver_answers(machines)
            self._run_errands(machines)
        finally:
            self._reaching.release()
        self._fetcher.start_due(machines)

    def _deliver_answers(self, machines: Mapping[str, Agent]) -> None:
        """Deliver pending answers to approvals, to several machines at once."""
        due = dict[str, list[Approval]]()
        for approval in approval_rows.undelivered(self._db, machines):
            due.setdefault(approval.agent_id or "", []).append(approval)
        if not due:
            return
        with ThreadPoolExecutor(_PROBES_AT_ONCE) as pool:
            for waiting in due.values():
                pool.submit(self._deliver_to_one, waiting)

    def _deliver_to_one(self, waiting: Sequence[Approval]) -> None:
        """Deliver the answers for one machine while it accepts them."""
        approvals = HubApprovals(self._db, self._agents, self._calls)
        for approval in waiting:
            try:
                if approvals.deliver(approval).pending is not None:
                    return
            except OCCError as error:  # a locked database
                log.warning("the answer to %s is delivered later: %s", approval.approval_id, error)
                return

    def _to_be_probed(self, agent: Agent) -> bool:
        probed = self._probed.get(agent.token)
        return agent.direct and agent.reachable is None and (probed is None or time.monotonic() >= probed.again_at)

    def _probe(self, due: list[Agent]) -> None:
        """Probe agents at their addresses, several at once.

        An address behind a firewall takes seconds to fail.
        """
        if not due:
            return
        with ThreadPoolExecutor(_PROBES_AT_ONCE) as pool:
            answers = list(pool.map(self._calls.probe, due[: 2 * _PROBES_AT_ONCE]))
        if len(due) > 2 * _PROBES_AT_ONCE:
            self._next_probe = 0.0
        for agent, answered in zip(due, answers, strict=False):
            if answered:
                self._probed.pop(agent.token, None)
                log.info("agent %s answers at its address", agent.agent_id)
                self._ring()
                continue
            former = self._probed.get(agent.token)
            pause = min(2 * former.pause, _LONGEST_PROBE_PAUSE) if former else _FIRST_PROBE_PAUSE
            if former and self._calls.via(agent):
                pause = max(pause, _LINKED_PROBE_PAUSE)
            self._probed[agent.token] = _Probed(time.monotonic() + pause, pause)

    def _run_errands(self, machines: Mapping[str, Agent]) -> None:
        """Make the pending calls to each machine, several machines at once.

        A silent machine therefore does not delay others.
        """
        due = dict[str, list[errands.Errand]]()
        for errand in errands.waiting(self._db):
            if errand.agent_id in machines:
                due.setdefault(errand.agent_id, []).append(errand)
        if not due:
            return
        with ThreadPoolExecutor(_PROBES_AT_ONCE) as pool:
            for agent_id, waiting in due.items():
                pool.submit(self._run_for, machines[agent_id], waiting)

    def _run_for(self, agent: Agent, waiting: Sequence[errands.Errand]) -> None:
        """Make a machine's pending calls in order while it answers."""
        for errand in waiting:
            try:
                self._calls.client(agent).call(errand.method, errand.path, seconds=_ERRAND_SECONDS)
            except Unreachable:
                return
            except Refused as refusal:
                if refusal.status != 404 and refusal.code != "WORKSPACE_IS_FOLDER":
                    continue  # busy, or stopping: retried in a moment
            errands.done(self._db, errand)
            self._ring()  # a held workspace may be free now

    def forget_aged(self) -> None:
        """Delete old deliveries, expired logins, unused zips and forgotten projects.

        Forgotten projects are those of forgotten machines.
        """
        logins.forget(self._db)
        deliveries.forget(self._db, retention.older_than(self._hub.retention_days))
        hub_workspaces.remove_unused_zips(self._db, self._hub)
        for number in agent_lists.remove_forgotten_projects(self._agents):
            self._readers.ring(tail.execution_key(number))
