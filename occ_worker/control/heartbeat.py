"""The agent's heartbeats, and its registration with the hub.

One heartbeat is sent each interval and a last one when the agent stops. A failed heartbeat is not repeated, because
the next one is due soon. The result is stored in occ.db, where `/health` reads it.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from occ_app.claude import program as claude_cli
from occ_app.config.config import Config
from occ_app.database.database import Database
from occ_app.errors import OCCError, Refused, RequestError, Unreachable
from occ_app.executions import queries as executions
from occ_app.home import certificate, health, machine, state
from occ_app.home import notes as agent
from occ_app.supervisor.registration import note_registered, register_at_any
from occ_app.system.timestamps import iso_now
from occ_app.workspaces import projects

if TYPE_CHECKING:
    from occ_app.client.hub_client import HubClient

log = logging.getLogger("occ.heartbeat")

_LONGEST_PAUSE = 300.0
_BEAT_SECONDS = 10.0
_LAST_BEAT_SECONDS = 3.0
_FAILURES_BEFORE_ANOTHER_ADDRESS = 2


class Heartbeat:
    """The heartbeats of one control process.

    `hub` returns a client of an address for calls of at most so many seconds. `registered` is called after each
    registration.
    """

    def __init__(
        self,
        config: Config,
        db: Database,
        port: int,
        hub: Callable[[str, float], HubClient],
        registered: Callable[[], None] = lambda: None,
    ) -> None:
        self._config = config
        self._db = db
        self._port = port
        self._hub = hub
        self._on_registered = registered
        self._registered = bool(agent.noted(db, "registration").get("registered"))
        self._pause = 1.0
        self._next = 0.0
        self._going = threading.Lock()
        self._certificate = self._fingerprint()

    def due(self) -> bool:
        """Return whether a heartbeat is due; called about once a second."""
        if self._config.remote_url is None or self._going.locked():
            return False
        return time.monotonic() >= self._next - 0.5

    def beat(self) -> None:
        """Register or send one heartbeat, and record the result."""
        with self._going:
            fingerprint = self._fingerprint()
            if fingerprint not in (
                None,
                self._certificate,
            ):  # renewed: the hub trusts only the former certificate
                self._registered = False
            if not self._registered:
                self._register()
                if self._registered:
                    self._certificate = fingerprint
                return
            self._schedule(state.load(self._config.state))
            self._send(self._client(_BEAT_SECONDS), "")
            if self._registered and self._is_away():
                self._registered = False
                self._register()

    def _fingerprint(self) -> str | None:
        chain = certificate.chain_of(self._config)
        return None if chain is None else certificate.fingerprint_of(chain)

    def last(self) -> None:
        """Notify the hub that the agent is stopping, in at most _LAST_BEAT_SECONDS."""
        if self._config.remote_url is None or not self._registered:
            return
        with self._going:
            self._send(self._client(_LAST_BEAT_SECONDS), "stopping")

    def _client(self, seconds: float) -> HubClient:
        """Return a client of the address where this agent is registered."""
        return self._hub(state.hub_urls(state.load(self._config.state), self._config.remote_urls)[0], seconds)

    def _is_away(self) -> bool:
        """Return whether the hub may have moved to another of its addresses.

        That is so after several failed heartbeats, if it has another address.
        """
        failures: int = health.heartbeat(self._config, self._db)["consecutiveFailures"]
        return len(self._config.remote_urls) > 1 and failures >= _FAILURES_BEFORE_ANOTHER_ADDRESS

    def _schedule(self, identity: state.State | None) -> None:
        interval = identity.heartbeat_interval_seconds if identity else 30.0
        now = time.monotonic()
        # Counted from the due time, so that heartbeats do not drift; after a long stop one is sent, not a burst.
        self._next = self._next + interval if now - self._next < interval else now + interval

    def _register(self) -> None:
        cli = claude_cli.probe(self._config)
        try:
            reported = projects.report(self._db)
            registered, _ = register_at_any(
                self._config, lambda url: self._hub(url, _BEAT_SECONDS), self._port, cli, reported
            )
        except (Refused, Unreachable, RequestError) as error:  # RequestError from a locked database
            log.warning("not registered with the hub: %s", error)
            agent.note(self._db, "registration", {"registered": False, "problem": str(error)})
            self._next = time.monotonic() + self._pause * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, not a secret
            self._pause = min(self._pause * 2, _LONGEST_PAUSE)
            return
        self._registered, self._pause, self._next = True, 1.0, time.monotonic()
        for warning in note_registered(self._config, self._db, registered):
            log.warning("%s", warning)
        log.info("registered with the hub as %s", registered.state.agent_id)
        self._on_registered()

    def _send(self, hub: HubClient, status: str) -> None:
        identity = state.load(self._config.state)
        if identity is None or identity.agent_id is None:
            self._registered = False
            return
        kept = health.heartbeat(self._config, self._db)
        sequence = kept["seqNum"] + 1
        body = self._body(identity, sequence, status)
        result = {**kept, "seqNum": sequence}
        try:
            reached = hub.beat(identity.agent_id, identity.token, body)
            unreached = 0 if reached else health.unreached(self._db) + 1
            result |= {"lastSuccessfulAt": iso_now(), "consecutiveFailures": 0, "unreached": unreached}
        except (Refused, Unreachable) as error:
            log.warning("heartbeat %d was not accepted: %s", sequence, error)
            result["consecutiveFailures"] += 1
            if isinstance(error, Refused):
                self._refused(error, status)
        agent.note(self._db, "heartbeat", result)

    def _refused(self, refusal: Refused, status: str) -> None:
        if refusal.retry_after is not None:
            self._next = max(self._next, time.monotonic() + min(refusal.retry_after, _LONGEST_PAUSE))
        if refusal.status in (401, 403, 404) and status != "stopping":
            # The hub no longer knows this token: register now, and retry with back-off if that fails, too.
            self._registered = False
            self._register()

    def _body(self, identity: state.State, sequence: int, status: str) -> dict[str, object]:
        reported: dict[str, object] = {}
        try:
            report = health.health(self._config, self._db)
            running = [execution.execution_id for execution in executions.running(self._db)]
            reported = {"projects": projects.report(self._db)}
        except OCCError:  # a locked database must not prevent a heartbeat
            report, running = {"status": "degraded", "uptime": 0, "version": "", "problems": []}, []
            report |= {"workers": {}, "queue": {}}
        return {
            "seqNum": sequence,
            "timestamp": iso_now(),
            "status": status or report["status"],
            "version": report["version"],
            "uptime": report["uptime"],
            "workers": report["workers"],
            "queue": report["queue"],
            "executions": running,
            "problems": health.for_heartbeat(report["problems"]),
            **reported,
            "instance": machine.instance(self._config) if identity.hub_id else None,
        }
