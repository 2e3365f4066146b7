"""One attempt at a webhook's delivery: a signed POST with a time limit.

The module also has the times of retries. The operator chooses the URL, so this machine and its network may be called.
occ_app/hub/forbidden_addresses.py has the addresses that are never called; the address of the open connection is
checked against it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import random
import time
from dataclasses import dataclass

from occ_app import __version__
from occ_app.hub.deliveries import Claimed, SignedUrl
from occ_app.hub.webhooks import SECRET_PREFIX
from occ_app.system.timestamps import iso_now
from occ_app.web import schemas
from occ_worker.control.bounded_post import post


@dataclass(frozen=True)
class Patience:
    """Limits of an attempt and pauses between attempts, in seconds.

    `lease` is how long a delivery stays claimed when its process dies: longer than an attempt can take, including the
    name lookup. The pause before each further attempt varies by `jitter`; after the last pause there is no further
    attempt.
    """

    seconds: float = 10.0
    lease: float = 60.0
    pauses: tuple[float, ...] = (10, 60, 300, 1800, 7200, 21600, 43200, 86400)
    jitter: float = 0.15
    repeat: float = 900.0  # until a notification that needs a person is repeated

    @property
    def longest(self) -> float:
        """Return the longest time for which a delivery is ever planned ahead.

        It is the longest of the pauses with their jitter, the lease and the repetition.
        """
        return max((self.lease, self.repeat, *self.pauses)) * (1 + self.jitter) + 1.0

    def pause(self, attempts: int) -> float | None:
        """Return the pause after `attempts` attempts; None when that was the last."""
        if attempts > len(self.pauses):
            return None
        return self.pauses[attempts - 1] * random.uniform(1 - self.jitter, 1 + self.jitter)  # noqa: S311 - jitter, not a secret


PATIENCE = Patience()


_APPROVAL = ("approval_id", "kind", "tool", "reason", "asked_at", "expires_at", "state", "actor", "decided_at")


def body(claimed: Claimed) -> bytes:
    """Return the posted body.

    It has the execution as in GET /executions/{id}, and the approval without its input.
    """
    content = {
        "event": claimed.event,
        "deliveryId": claimed.delivery_id,
        "webhookId": claimed.receiver_id,
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
    """Return the value of webhook-signature, as defined by Standard Webhooks.

    `moment` is in seconds since 1970. The key is the base64 of a secret that begins with `whsec_`; an older secret is
    itself the key.
    """
    encoded = secret.removeprefix(SECRET_PREFIX)
    key = secret.encode() if encoded == secret else base64.b64decode(encoded)
    mac = hmac.new(key, f"{delivery_id}.{moment}.".encode() + content, hashlib.sha256)
    return f"v1,{base64.b64encode(mac.digest()).decode()}"


def _headers(claimed: Claimed, secret: str, moment: int, content: bytes) -> dict[str, str]:
    return {
        "Content-Type": "application/json",
        "User-Agent": f"occ/{__version__}",
        "webhook-id": claimed.delivery_id,
        "webhook-timestamp": str(moment),
        "webhook-signature": standard_signature(secret, claimed.delivery_id, moment, content),
        "OCC-Delivery": claimed.delivery_id,
        "OCC-Signature": signature(secret, moment, content),
    }


def send(claimed: Claimed, receiver: SignedUrl, seconds: float) -> int:
    """Make one delivery within `seconds`, and return the status of the reply.

    Nothing more of the reply is read. Raises Unreachable.
    """
    content = body(claimed)
    return post(receiver.url, _headers(claimed, receiver.secret, int(time.time()), content), content, seconds)
