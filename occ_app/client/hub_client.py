"""The HTTP client of the hub's side for agents: registration and heartbeat."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import urllib3

from occ_app import __version__
from occ_app.client import connections, replies
from occ_app.errors import Unreachable, Untrusted
from occ_app.system import proofs
from occ_app.system.foreign_text import visible_line

_WORD = "[\x21-\x7e]{1,1000}"  # an id or a token: printable, without spaces, so that a header can hold it

_LONGEST_TEXT = 500


@dataclass(frozen=True)
class Registration:
    """A hub's answer to a registration."""

    agent_id: str
    token: str
    heartbeat_interval_seconds: float
    name: str | None = None


@dataclass(frozen=True)
class Challenge:
    """A hub's id, and the nonce that a registration there must sign."""

    hub_id: str
    nonce: str


@dataclass(frozen=True)
class Echo:
    """A hub's call of this agent.

    It has the way (direct, link, None for none), the time it took, and the instance that answered. `problem` is the
    reason why there was no answer; `version` and `time` are the hub's.
    """

    via: str | None
    milliseconds: float
    instance: str | None
    problem: str | None
    version: str
    time: str


class HubClient:
    """An agent's calls to its hub: small JSON replies, no redirects, bounded in time."""

    def __init__(self, url: str, seconds: float = 10.0, pin: str | None = None) -> None:
        """Take a hub's address, a limit in seconds, and a certificate's fingerprint.

        `pin` is the SHA-256 of the only certificate to trust, for any host name.
        """
        self.url = url
        self._seconds = seconds
        trust: dict[str, Any] = {"cert_reqs": "CERT_NONE", "assert_fingerprint": pin} if pin else {}
        self._pool = connections.pools_over(retries=False, maxsize=1, **trust)

    def register(self, api_key: str, body: Mapping[str, Any]) -> Registration:
        """Announce this agent. Raises Refused or Unreachable."""
        reply = self._post("/api/agents/register", api_key, body)
        try:
            interval = float(reply.get("heartbeatIntervalSeconds", 30))
            if not 1 <= interval <= 300:
                raise ValueError
            for name in ("agentId", "token"):
                if not isinstance(reply[name], str) or not re.fullmatch(_WORD, reply[name]):
                    raise ValueError
        except (KeyError, TypeError, ValueError):
            raise Unreachable(f"{self.url} did not answer a registration like a hub; check OCC_REMOTE_URL.") from None
        called = reply.get("name")
        usable = isinstance(called, str) and 0 < len(called) <= 250 and called.isprintable()
        return Registration(reply["agentId"], reply["token"], interval, called if usable else None)

    def challenge(self, api_key: str) -> Challenge:
        """Request the hub's id, a nonce, and its proof that it knows this key.

        The key is not sent. Raises Refused, also by a hub that has no such endpoint, and Unreachable, also for a wrong
        proof.
        """
        nonce, shared = proofs.new_nonce(), proofs.of_key(api_key)
        reply = self._call("GET", "/api/agents/challenge", proofs.question(shared, nonce))
        hub_id, said, proof = (reply.get(name) for name in ("hubId", "nonce", "proof"))
        if not isinstance(proof, str) or not proofs.same(proof, proofs.of_agent(shared, nonce)):
            raise Unreachable(f"{self.url} does not prove that it knows this agent's key; check OCC_REMOTE_URL.")
        if not isinstance(hub_id, str) or not re.fullmatch("hub-[0-9a-f]{32}", hub_id) or not isinstance(said, str):
            raise Unreachable(f"{self.url} did not answer like a hub; check OCC_REMOTE_URL.")
        return Challenge(hub_id, said)

    def beat(self, agent_id: str, token: str, body: Mapping[str, Any]) -> bool:
        """Send one heartbeat.

        Returns False when the hub says that it cannot call this agent. Raises Refused or Unreachable.
        """
        reply = self._post(f"/api/agents/{quote(agent_id, safe='')}/heartbeat", token, body)
        return "via" not in reply or reply["via"] is not None

    def announce(self, agent_id: str, token: str, body: Mapping[str, Any]) -> bool:
        """Announce a local execution. Returns whether the hub shows it.

        Raises Refused, also by a hub that has no such endpoint, and Unreachable.
        """
        return self._post(f"/api/agents/{quote(agent_id, safe='')}/executions", token, body).get("shared") is True

    def echo(self, agent_id: str, token: str) -> Echo:
        """Have the hub call this agent.

        Raises Refused, also by a hub that has no such endpoint, and Unreachable.
        """
        reply = self._post(f"/api/agents/{quote(agent_id, safe='')}/echo", token, {})
        texts = {
            name: visible_line(str(reply[name]))[:_LONGEST_TEXT] if reply.get(name) is not None else None
            for name in ("via", "instance", "problem", "version", "time")
        }
        took = reply.get("milliseconds")
        return Echo(
            texts["via"],
            float(took) if isinstance(took, (int, float)) else 0.0,
            *(texts["instance"], texts["problem"], texts["version"] or "", texts["time"] or ""),
        )

    def offers_link(self, agent_id: str, token: str, instance: str = "") -> bool | None:
        """Return whether the hub has an endpoint for the agent's link.

        None when its reply does not say.
        """
        # A handshake, since routes for WebSockets match nothing else; without a subprotocol a hub refuses it with 426.
        headers = {
            "Authorization": f"Bearer {token}",
            "OCC-Instance": instance,
            "User-Agent": f"occ/{__version__}",
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
        }
        try:
            response = self._pool.request(
                "GET",
                f"{self.url}/api/agents/{quote(agent_id, safe='')}/link",
                headers=headers,
                preload_content=False,
                redirect=False,
                timeout=urllib3.Timeout(total=self._seconds),
            )
        except (urllib3.exceptions.HTTPError, OSError):
            return None
        response.close()
        return {426: True, 404: False, 405: False, 501: False}.get(response.status)

    def _post(self, path: str, secret: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return self._call("POST", path, f"Bearer {secret}", json.dumps(body).encode())

    def _call(self, method: str, path: str, authorization: str, body: bytes | None = None) -> dict[str, Any]:
        headers = {
            "Authorization": authorization,
            "Content-Type": "application/json",
            "User-Agent": f"occ/{__version__}",
            "Connection": "close",  # the next call is half a minute away, and the hub has many agents
        }
        try:
            response = self._pool.request(
                method,
                self.url + path,
                body=body,
                headers=headers,
                preload_content=False,
                redirect=False,
                decode_content=False,
                timeout=urllib3.Timeout(total=self._seconds),
            )
        except urllib3.exceptions.SSLError as error:
            raise Untrusted(replies.distrust(error, f"The hub at {self.url}", "--remote-pin")) from None
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise Unreachable(f"The hub at {self.url} does not answer ({replies.reason(error)}).") from None
        if not 200 <= response.status < 300:
            raise replies.refusal(response, f"The hub at {self.url}")
        return replies.body(response, self.url, time.monotonic() + self._seconds)
