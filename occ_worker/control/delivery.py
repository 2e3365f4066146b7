"""Send a delivery to its webhook: one signed POST, bounded in time, and when to try again.

The URL is the operator's choice, so this machine and its network may be called; addresses that are never called are in
occ_app/hub/forbidden_addresses.py, and is looked at for the very address that is then connected to.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import random
import socket
import threading
import time
from dataclasses import dataclass

import urllib3
from urllib3.connection import HTTPConnection

from occ_app import __version__
from occ_app.client import replies
from occ_app.client.connections import pools_over
from occ_app.errors import Unreachable
from occ_app.hub import forbidden_addresses as addresses
from occ_app.hub.webhooks import SECRET_PREFIX, Claimed
from occ_app.system.timestamps import iso_now
from occ_app.web import schemas


@dataclass(frozen=True)
class Patience:
    """How long a receiver is waited for, and when it is called again; seconds.

    `lease` is how long a delivery stays claimed when its process dies: longer than an attempt can take, looking its
    name up included. The pause before each further attempt varies by `jitter`; after the last there is none.
    """

    seconds: float = 10.0
    lease: float = 60.0
    pauses: tuple[float, ...] = (10, 60, 300, 1800, 7200, 21600, 43200, 86400)
    jitter: float = 0.15

    @property
    def longest(self) -> float:
        """No plan is made for later than this from now: the longest pause, with its jitter, or a lease."""
        return max((self.lease, *self.pauses)) * (1 + self.jitter) + 1.0

    def pause(self, attempts: int) -> float | None:
        """Until the next attempt when `attempts` were made; None when that was the last."""
        if attempts > len(self.pauses):
            return None
        return self.pauses[attempts - 1] * random.uniform(1 - self.jitter, 1 + self.jitter)  # noqa: S311 - jitter, not a secret


PATIENCE = Patience()


_APPROVAL = ("approval_id", "kind", "tool", "reason", "asked_at", "expires_at", "state", "actor", "decided_at")


def body(claimed: Claimed) -> bytes:
    """Return the posted body: the execution as in GET /executions/{id}, and the approval without its input."""
    content = {
        "event": claimed.event,
        "deliveryId": claimed.delivery_id,
        "webhookId": claimed.webhook_id,
        "sentAt": iso_now(),
        "execution": schemas.ExecutionRecord().dump(claimed.execution),
    }
    if claimed.approval is not None:
        content["approval"] = schemas.ApprovalRecord(only=_APPROVAL).dump(claimed.approval)
    return json.dumps(content).encode()


def signature(secret: str, moment: int, content: bytes) -> str:
    """Return the value of OCC-Signature at `moment`, in seconds since 1970."""
    mac = hmac.new(secret.encode(), f"{moment}.".encode() + content, hashlib.sha256)
    return f"t={moment},v1={mac.hexdigest()}"


def standard_signature(secret: str, delivery_id: str, moment: int, content: bytes) -> str:
    """Return the value of webhook-signature, as Standard Webhooks defines it, at `moment` in seconds since 1970.

    The key is the base64 of a secret that begins with `whsec_`; an older secret is itself the key.
    """
    encoded = secret.removeprefix(SECRET_PREFIX)
    key = secret.encode() if encoded == secret else base64.b64decode(encoded)
    mac = hmac.new(key, f"{delivery_id}.{moment}.".encode() + content, hashlib.sha256)
    return f"v1,{base64.b64encode(mac.digest()).decode()}"


def _headers(claimed: Claimed, moment: int, content: bytes) -> dict[str, str]:
    return {
        "Content-Type": "application/json",
        "User-Agent": f"occ/{__version__}",
        "webhook-id": claimed.delivery_id,
        "webhook-timestamp": str(moment),
        "webhook-signature": standard_signature(claimed.secret, claimed.delivery_id, moment, content),
        "OCC-Delivery": claimed.delivery_id,
        "OCC-Signature": signature(claimed.secret, moment, content),
    }


def send(claimed: Claimed, seconds: float) -> int:
    """Make one delivery. Returns the status of the answer, of which nothing more is read; raises Unreachable."""
    addresses.resolved(claimed.url)
    content = body(claimed)
    headers = _headers(claimed, int(time.time()), content)
    line, deadline = _Line(), time.monotonic() + seconds
    watch = threading.Timer(seconds, line.cut)  # a receiver that sends a byte a second is never silent for long
    watch.daemon = True
    watch.start()
    try:
        with line.pools() as pools:
            response = pools.request(
                "POST",
                claimed.url,
                body=content,
                headers=headers,
                preload_content=False,
                redirect=False,
                timeout=urllib3.Timeout(total=seconds),
            )
            response.close()
            if line.was_cut:  # in the middle of its headers, which http.client takes for their end
                raise TimeoutError
            return int(response.status)
    except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
        late = line.was_cut or time.monotonic() >= deadline  # the limit on the head may have cut it first
        raise Unreachable("no answer in time" if late else _why(error)) from None
    finally:
        watch.cancel()
        line.close()


def _why(error: BaseException) -> str:
    if isinstance(error, urllib3.exceptions.SSLError):
        return "its certificate is not trusted here" if "CERTIFICATE_VERIFY" in str(error) else "it does not speak TLS"
    return replies.reason(error)


class _Line:
    """The one connection of an attempt, which can be cut from another thread."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()
        self.was_cut = False

    def cut(self) -> None:
        """Cut the connection at any point; one that is opened later is cut at once."""
        with self._lock:
            self.was_cut = True
            self._shut()

    def close(self) -> None:
        with self._lock:
            if self._socket is not None:
                self._socket.close()
                self._socket = None

    def pools(self) -> urllib3.PoolManager:
        """A PoolManager whose connection is this one."""
        return pools_over(self._connect, retries=False)

    def _connect(self, connection: HTTPConnection) -> socket.socket:
        connected = HTTPConnection._new_conn(connection)
        # A name may have led elsewhere since it was looked up; nothing was sent yet.
        if addresses.never_called(addresses.address(connected.getpeername()[0])):
            connected.close()
            raise urllib3.exceptions.NewConnectionError(connection, "never called")
        with self._lock:
            self._socket = connected.dup()  # TLS takes the other over; shutting one shuts both
            if self.was_cut:
                self._shut()
        return connected

    def _shut(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
