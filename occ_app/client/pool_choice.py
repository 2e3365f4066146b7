"""The connections of a client.

They go to an address, checked before anything is sent, or over a Unix socket.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import urllib3

from occ_app.client import connections


def _nothing(_: object) -> None: ...


def choose_pool(
    url: str,
    token: str,
    pin: str | None,
    through: Path | None,
    admit: Callable[[str], None] | None,
    *,
    prove: bool,
) -> urllib3.PoolManager:
    """Return the connections of an AgentClient, whose arguments these are."""
    trust: dict[str, Any] = {"cert_reqs": "CERT_NONE", "assert_fingerprint": pin} if pin else {}
    proving = prove and pin is None
    if through is not None:
        from occ_app.client.unix_socket import pools

        return pools(through, retries=False, maxsize=4, **trust)
    if admit is None and not proving:
        return connections.pools_over(retries=False, maxsize=4, **trust)
    from occ_app.client.proven import prover

    check = prover(token, urlsplit(url).path) if proving else _nothing
    return connections.pools_over(connections.connect_to(admit or _nothing), check, retries=False, maxsize=4, **trust)
