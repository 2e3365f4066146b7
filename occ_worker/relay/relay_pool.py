"""The relays of a hub process."""

from __future__ import annotations

import contextlib
import logging
import select
import threading
from collections.abc import Callable

from occ_app.config.config import HubConfig
from occ_app.database import database as db
from occ_app.errors import OCCError, Refused, Unreachable
from occ_app.executions import queries as executions
from occ_app.executions.records import Execution, Outcome
from occ_app.home import daemon
from occ_app.home import notes as agent
from occ_app.hub import placement, registrations
from occ_app.hub.agent_clients import Calls
from occ_app.hub.agents import Agents
from occ_app.streams.doorbell import Doorbell, Ringer
from occ_app.system import logs
from occ_app.system.process_identity import own_identity
from occ_worker.relay import sending
from occ_worker.relay.context import RelayContext
from occ_worker.relay.relay import Relay

log = logging.getLogger("occ.relay")

_MAX_FETCHES = 8  # of changes at once; the control process fetches the rest
_LOOK_SECONDS = 1.0  # between checks for cancels without a ring


class RelayPool:
    """The relays of one process.

    At most `relays` threads each serve one execution, and one more listens to the doorbell.
    """

    def __init__(self, config: HubConfig, database: db.Database) -> None:
        self._config = config
        self._identity = own_identity()
        self._places = threading.BoundedSemaphore(config.relays)
        self._fetches = threading.BoundedSemaphore(_MAX_FETCHES)
        self._happened = threading.Condition()
        self._stopping = threading.Event()
        self._relays: set[Relay] = set()
        self._without_place: set[Relay] = set()  # relays of parked and of local executions
        self._removed: set[str] = set()
        self._cancels: set[str] = set()  # cancels sent or being sent, each by its thread
        self._noted: dict[str, float] = {}
        self._bell = Doorbell(config.run / "worker")
        agents = Agents(database, config.heartbeat_seconds, config.forget_agents_days)
        self._context = RelayContext(
            config=config,
            hub_id=registrations.hub_id(database),
            db=database,
            agents=agents,
            calls=Calls(agents, config.run / "links"),
            readers=Ringer(config.run / "tail"),
            rest=self._rest,
            removed=self._removed,
            stopping=self._stopping.is_set,
        )

    def start(self, ring_queue: Callable[[], None]) -> None:
        """Start listening to the doorbell.

        `ring_queue` enqueues a job that looks for more executions to relay.
        """
        self._ring_queue = ring_queue
        threading.Thread(target=self._listen, name="bell", daemon=True).start()

    def stop(self) -> None:
        """Make every relay leave its row to the next process, without waiting for them."""
        self._stopping.set()
        with self._happened:
            self._happened.notify_all()

    def start_due(self) -> None:
        """Start relays for executions that can be taken over or placed now.

        Stops when all places are taken.
        """
        context = self._context
        while not self._stopping.is_set() and self._places.acquire(blocking=False):
            try:
                execution = placement.take_up(context.db, self._identity)
                if execution is None and daemon.takes_work(self._config):
                    execution = placement.claim(
                        context.db, context.agents, self._identity, context.calls.reached, relays=self._config.relays
                    )
            except BaseException:
                self._places.release()
                raise
            if execution is None:
                self._places.release()
                return
            relay = Relay(context, execution)
            self._relays.add(relay)
            threading.Thread(target=self._run, args=(relay,), name="relay", daemon=True).start()

    def _run(self, relay: Relay) -> None:
        with logs.execution(relay.execution_id):
            try:
                relay.run()
            except Exception:
                log.exception("internal error in a relay; its execution continues at the next start of the hub")
            finally:
                self._leave(relay)
            if self._fetches.acquire(blocking=False):  # the relay's place is already free
                try:
                    relay.fetch_changes()
                finally:
                    self._fetches.release()

    def _leave(self, relay: Relay) -> None:
        """Release the place of a relay, once."""
        with self._happened:
            if relay not in self._relays:
                return
            self._relays.remove(relay)
            placeless = relay in self._without_place
            self._without_place.discard(relay)
        if not placeless:
            self._places.release()
        with contextlib.suppress(OCCError):  # control also looks for queued executions
            self._ring_queue()

    def _end_overdue(self) -> None:
        """End executions that an agent did not end in time, or whose agent was removed.

        Their places are free at once.
        """
        cancel_codes = {x.number: x.cancel_code for x in executions.relayed(self._context.db)}
        for relay in list(self._relays):
            outcome = relay.overdue(cancel_codes.get(relay.number))
            if relay.agent_id in self._removed:
                outcome = Outcome.failure("AGENT_LOST", "The agent that ran this was removed from the hub.")
            if outcome is not None and relay.abandon(outcome):
                self._leave(relay)

    def _lend_places(self) -> None:
        """Release the places of relays that need none, and retake those needed again."""
        with self._happened:
            for relay in self._relays:
                if not relay.needs_place and relay not in self._without_place:
                    self._without_place.add(relay)
                    self._places.release()
                elif relay.needs_place and relay in self._without_place and self._places.acquire(blocking=False):
                    self._without_place.remove(relay)

    def _rest(self, seconds: float) -> None:
        with self._happened:
            self._happened.wait(seconds)

    def _listen(self) -> None:
        """Forward cancels and wake waiting relays on each ring, and once a second."""
        while not self._stopping.is_set():
            select.select([self._bell], [], [], _LOOK_SECONDS)
            rings, _ = self._bell.rings()
            if rings:
                with self._happened:
                    self._happened.notify_all()
            try:
                # A ring carries the id of an execution or of an agent.
                self._removed |= {key for key, _ in rings if key.startswith("agent-") and self._is_removed(key)}
                if self._relays:
                    self._pass_cancels_on()
                    self._end_overdue()
                    self._lend_places()
                self._note()
            except OCCError as error:
                log.error("cannot check for cancels: %s", error)

    def _pass_cancels_on(self) -> None:
        """Send cancels to agents, each in a thread, so that a silent one delays no other."""
        due = {x.execution_id: x for x in executions.relayed(self._context.db) if x.cancel_code is not None}
        self._cancels &= due.keys()
        for execution_id, execution in due.items():
            if execution_id not in self._cancels:
                self._cancels.add(execution_id)
                threading.Thread(target=self._pass_on, args=(execution,), name="cancel", daemon=True).start()

    def _pass_on(self, execution: Execution) -> None:
        sent = False
        try:
            sent = _pass_cancel_on(self._context, execution)
        finally:
            if not sent:
                self._cancels.discard(execution.execution_id)  # retried at the next check

    def _is_removed(self, agent_id: str) -> bool:
        return self._context.agents.find(agent_id) is None

    def _note(self) -> None:
        """Record the state of the relays for /metrics when it has changed."""
        relays = list(self._relays)
        lag = max((relay.take_lag() for relay in relays), default=0.0)
        figures = {"relays": len(relays), "away": sum(relay.away for relay in relays), "lagSeconds": round(lag, 3)}
        if figures != self._noted:
            agent.note(self._context.db, "relays", figures)
            self._noted = figures


def _pass_cancel_on(context: RelayContext, execution: Execution) -> bool:
    """Send a requested cancel to the execution's agent; return whether it was sent.

    Before the agent has the prompt, an execution with that id there is not the hub's, so nothing is sent.
    """
    if not execution.prompt_sent:
        return False
    agent = context.agents.find(execution.agent_id or "")
    try:
        if agent is not None:
            generation = sending.agent_generation(context, execution)
            context.calls.client(agent).cancel(execution.execution_id, generation)
    except (Unreachable, Refused) as error:
        log.info("execution %s is to be cancelled: %s", execution.execution_id, error)
        return False
    return True
