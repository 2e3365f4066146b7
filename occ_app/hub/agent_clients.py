"""Clients with which the hub calls its agents, directly or through their links.

An agent is called at its address when that answers, and otherwise through the link that it holds. One HTTP client
serves both.

An agent chooses the address that it reports, so some are never called: those of the hub's own machine, and link-local
addresses, where clouds serve their secrets. Every connection is checked again once it is open, because by then the
name may resolve to another address. An agent on the hub's own machine is called through its link.
"""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from occ_app.client.agent_client import AgentClient
from occ_app.errors import OCCError, Unreachable
from occ_app.hub import forbidden_addresses as addresses
from occ_app.hub.agents import Agent, Agents, boottime
from occ_app.system.timestamps import iso

log = logging.getLogger("occ.hub")

_CLIENTS = 500
_PROBE_SECONDS = 3.0
_AVOID_SECONDS = 30.0
_HOLDER_SECONDS = 3.0  # for the instance that holds a registration to answer
_HOLDER_PAUSE_SECONDS = 0.1  # between two checks for its link
_SETTLE_SECONDS = 10.0  # for links to connect after a registration or a start of the hub


class Calls:
    """The agent clients of one process.

    `links` is the folder of the links' sockets.
    """

    def __init__(self, agents: Agents, links: Path) -> None:
        self._agents = agents
        self._links = links
        self._clients: dict[tuple[str, str, str], AgentClient] = {}
        self._began = time.monotonic()
        self._avoided: dict[str, float] = {}  # until when, on the monotonic clock, by the token of the registration

    def via(self, agent: Agent) -> str | None:
        """Return how an agent would be called now: `direct`, `link`, or None."""
        if agent.reachable == "direct":
            return "direct"
        return "link" if (self._links / agent.agent_id).exists() else None

    def reached(self, agent: Agent) -> bool:
        """Return whether an agent can be called, so that work can be placed on it.

        A way that failed a moment ago does not count (see `avoid`).
        """
        return self.via(agent) is not None and time.monotonic() >= self._avoided.get(agent.token, 0.0)

    def avoid(self, agent: Agent) -> None:
        """Place nothing on an agent for _AVOID_SECONDS, because calls to it fail."""
        now = time.monotonic()
        self._avoided = {token: end for token, end in self._avoided.items() if end > now}
        self._avoided[agent.token] = now + _AVOID_SECONDS

    def client(self, agent: Agent) -> AgentClient:
        """Return a client for this agent. Raises Unreachable when it cannot be called."""
        via = self.via(agent)
        if via is None:
            raise Unreachable(f"Agent {agent.name} cannot be reached: its address does not answer and it has no link.")
        key = (agent.agent_id, agent.token, via)
        if key not in self._clients:
            if len(self._clients) >= _CLIENTS:
                self._clients.clear()
            if via == "direct":
                self._clients[key] = _direct(agent, address(agent))
            else:
                url = f"{_scheme(agent)}://127.0.0.1:{agent.port}"
                through = self._links / agent.agent_id
                self._clients[key] = AgentClient(url, agent.token, agent.tls_fingerprint, through)
        return self._clients[key]

    def answers(self, agent: Agent) -> bool | None:
        """Return whether the instance that holds this registration answers.

        Takes at most about three seconds. The link of an instance may not be connected yet because the instance or
        this hub has just started; then it is awaited. Returns None when the answer is not known: this hub has just
        started, and the instance's last heartbeat came before that.
        """
        deadline = time.monotonic() + _HOLDER_SECONDS
        recent = iso(datetime.now(UTC) - timedelta(seconds=_SETTLE_SECONDS)) < agent.registered_at
        new_hub = time.monotonic() < self._began + self._agents.lease_seconds
        waits = agent.instance is not None and (recent or new_hub)
        while True:
            found = self._agents.find(agent.agent_id)
            if found is None or found.token != agent.token:
                return False
            if self._is_held(found, max(0.1, deadline - time.monotonic())):
                return True
            if not waits or time.monotonic() >= deadline:
                break
            time.sleep(_HOLDER_PAUSE_SECONDS)
        unheard = boottime() - found.heard > time.monotonic() - self._began
        return None if waits and new_hub and unheard and self.via(found) is None else False

    def _is_held(self, agent: Agent, seconds: float) -> bool:
        if self.via(agent) is None or (agent.instance is None and self.via(agent) == "direct"):
            return False
        try:
            if agent.instance is None:  # version 0.1.0 has no instance, and its link ends with the agent
                self.client(agent).health(seconds)
                return True
            return self.client(agent).instance(seconds) == agent.instance
        except OCCError as error:
            log.info("agent %s does not answer as the instance that registered: %s", agent.agent_id, error)
            return False

    def echo(self, agent: Agent) -> str:
        """Call an agent, and return the id of the instance that answers.

        Takes at most about three seconds. Raises OCCError.
        """
        return self.client(agent).instance(_HOLDER_SECONDS)

    def broke(self, agent: Agent) -> None:
        """Record that a call failed, so that the next one does not use the address.

        The address is used again once a probe succeeds.
        """
        if agent.reachable == "direct":
            self._agents.set_reachable(agent, None)

    def probe(self, agent: Agent) -> bool:
        """Return whether this agent answers at its address, and record it if so."""
        try:
            url = address(agent)
            check_address(url)
            client = _direct(agent, url)
            try:
                client.health(_PROBE_SECONDS)
            finally:
                client.close()
        except OCCError as error:
            log.debug("agent %s is not reached directly: %s", agent.agent_id, error)
            return False
        self._agents.set_reachable(agent, "direct")
        return True


def address(agent: Agent) -> str:
    """Return the URL that an agent reports, or the one it registered from."""
    if agent.url is not None:
        return agent.url
    host = f"[{agent.address}]" if ":" in agent.address else agent.address
    return f"{_scheme(agent)}://{host}:{agent.port}"


def check_address(url: str) -> None:
    """Raise Unreachable when an agent must not be called at a URL.

    Every address that the host resolves to is checked.
    """
    for target in addresses.resolved(url):
        addresses.check_target(target)


def _direct(agent: Agent, url: str) -> AgentClient:
    return AgentClient(url, agent.token, agent.tls_fingerprint, admit=addresses.check_peer, prove=True)


def _scheme(agent: Agent) -> str:
    return "https" if agent.tls_fingerprint else "http"
