"""The hub's address for other devices, and QR codes of addresses."""

from __future__ import annotations

import io
import ipaddress
import socket
from urllib.parse import urlsplit

from occ_app.home import daemon


def address(running: daemon.Daemon) -> str:
    """Return the address to give to other machines and people."""
    return shown_url(running.url, running.host, running.public_url)


def shown_url(url: str, host: str, public_url: str | None) -> str:
    """Return the address to give to other machines.

    It is the public one, or one that this machine has on a network.
    """
    if public_url:
        return public_url
    if host not in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
        return url
    import psutil

    addresses = (address for interface in psutil.net_if_addrs().values() for address in interface)
    outward = [a.address for a in addresses if a.family == socket.AF_INET and not a.address.startswith("127.")]
    return url.replace("127.0.0.1", outward[0]).replace("[::1]", outward[0]) if outward else url


def is_local(url: str) -> bool:
    """Return whether only this machine reaches a URL."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def qr(text: str) -> str:
    """Return a QR code for a terminal."""
    import segno

    drawn = io.StringIO()
    segno.make(text, micro=False).terminal(out=drawn, border=2, compact=True)
    return drawn.getvalue()
