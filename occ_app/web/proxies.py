"""Headers of proxies.

They are used when they come from a proxy that the operator trusts, and ignored otherwise.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Sequence
from typing import Any

WSGI = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def forwarded(app: WSGI, trusted: Sequence[str]) -> WSGI:
    """Wrap an application to use a trusted proxy's headers.

    X-Forwarded-For and X-Forwarded-Proto become the client's address and the scheme. `trusted` has addresses and
    networks. The client is the last address in X-Forwarded-For that is not trusted, so a client cannot choose it.
    """
    networks = [ipaddress.ip_network(each) for each in trusted]

    def call(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if networks and _trusts(networks, environ.get("REMOTE_ADDR", "")):
            proto = environ.get("HTTP_X_FORWARDED_PROTO", "").rpartition(",")[2].strip().lower()
            if proto in ("http", "https"):
                environ["wsgi.url_scheme"] = proto
            environ["REMOTE_ADDR"] = _client(networks, environ)
        return app(environ, start_response)

    return call


def _client(networks: Sequence[Network], environ: dict[str, Any]) -> str:
    """Return the nearest address that is not a trusted proxy's."""
    client = str(environ["REMOTE_ADDR"])
    for named in reversed(environ.get("HTTP_X_FORWARDED_FOR", "").split(",")):
        address = _address(named)
        if address is None:
            break
        client = str(address)
        if not _trusts(networks, client):
            break
    return client


def _trusts(networks: Sequence[Network], name: str) -> bool:
    address = _address(name)
    return address is not None and any(address in network for network in networks)


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the address in a name such as 192.0.2.1:80 or [2001:db8::1]:80.

    The port may be missing. None for anything else.
    """
    name = name.strip()
    if name.startswith("["):
        name = name[1:].partition("]")[0]
    elif name.count(":") == 1:
        name = name.partition(":")[0]
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
