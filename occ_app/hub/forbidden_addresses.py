"""Addresses that the hub never calls, whoever names them: those where clouds keep their machines' secrets, and none."""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit

from occ_app.errors import Unreachable

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# What clouds answer at beside the link-local addresses.
_METADATA = frozenset(map(ipaddress.ip_address, ("fd00:ec2::254", "fd20:ce::254", "100.100.100.200", "168.63.129.16")))
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def resolved(url: str) -> list[Address]:
    """Where a URL's host is. Raises Unreachable when nobody knows, or when one of its addresses is never called."""
    parts = urlsplit(url)
    try:
        found = socket.getaddrinfo(parts.hostname, parts.port or 80, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise Unreachable(f"The host of {url} is not known.") from None
    addresses = [address(str(place[0])) for *_, place in found]
    if any(map(never_called, addresses)):
        raise Unreachable(f"{url} is an address that is never called.")
    return addresses


def never_called(target: Address) -> bool:
    """Whether an address is one that nothing of OCC's may be sent to."""
    return target.is_link_local or target.is_multicast or target.is_unspecified or target in _METADATA


def address(text: str) -> Address:
    """An address as the system writes it; an IPv4 one in IPv6's clothes is taken as what it is."""
    found = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        if found in _NAT64:
            return ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        return found.ipv4_mapped or found.sixtofour or found
    return found
