"""Addresses that the hub never calls.

They are those at which clouds serve a machine's secrets and, for agents, the hub's own.
"""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit

from occ_app.errors import Unreachable

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# Cloud metadata services outside the link-local addresses.
_METADATA = frozenset(map(ipaddress.ip_address, ("fd00:ec2::254", "fd20:ce::254", "100.100.100.200", "168.63.129.16")))
_TEST_NETS = {4: "192.0.2.1", 6: "2001:db8::1"}  # addresses for documentation, which no machine has
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def resolved(url: str) -> list[Address]:
    """Return the addresses of a URL's host.

    Raises Unreachable when the host is not known, or one of its addresses is never called.
    """
    parts = urlsplit(url)
    try:
        infos = socket.getaddrinfo(parts.hostname, parts.port or 80, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise Unreachable(f"The host of {url} is not known.") from None
    addresses = [address(str(place[0])) for *_, place in infos]
    if any(map(never_called, addresses)):
        raise Unreachable(f"{url} is an address that OCC does not call.")
    return addresses


def never_called(target: Address) -> bool:
    """Return whether OCC must send nothing to an address."""
    return target.is_link_local or target.is_multicast or target.is_unspecified or target in _METADATA


def check_peer(text: str) -> None:
    """Raise Unreachable unless an agent may be called at this IP address.

    Used to check a connection once it is open.
    """
    check_target(address(text))


def check_target(target: Address) -> None:
    """Raise Unreachable unless an agent may be called at this address."""
    if never_called(target):
        raise Unreachable(f"{target} is an address that OCC does not call.")
    if is_own(target):
        raise Unreachable(f"{target} is an address of the hub's own machine; an agent there is called over its link.")


def is_own(target: Address) -> bool:
    """Return whether an address currently belongs to this machine."""
    if target.is_loopback or _source(target) == target:
        return True
    # A second address of an interface is reached from its first, but can be bound. Where every address can be bound,
    # that proves nothing.
    return _can_bind(str(target)) and not _can_bind(_TEST_NETS[target.version])


def _source(target: Address) -> Address | None:
    """Return the address from which this machine would call `target`.

    Nothing is sent.
    """
    try:
        with socket.socket(_family(str(target)), socket.SOCK_DGRAM) as probe:
            probe.connect((str(target), 9))
            return address(str(probe.getsockname()[0]))
    except OSError:
        return None


def _can_bind(text: str) -> bool:
    try:
        with socket.socket(_family(text), socket.SOCK_DGRAM) as probe:
            probe.bind((text, 0))
    except OSError:
        return False
    return True


def _family(text: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in text else socket.AF_INET


def address(text: str) -> Address:
    """Return an address as the system writes it.

    An IPv4 address mapped into IPv6 is returned as IPv4.
    """
    parsed = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed in _NAT64:
            return ipaddress.IPv4Address(int(parsed) & 0xFFFFFFFF)
        return parsed.ipv4_mapped or parsed.sixtofour or parsed
    return parsed
