"""The address of a hub that other machines and people are given."""

from __future__ import annotations

import socket

from occ_app.home import daemon


def address(running: daemon.Daemon) -> str:
    return shown_url(running.url, running.host, running.public_url)


def shown_url(url: str, host: str, public_url: str | None) -> str:
    """The address to give to other machines: the public one, or one that this machine has on a network."""
    if public_url:
        return public_url
    if host not in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
        return url
    import psutil

    addresses = (address for interface in psutil.net_if_addrs().values() for address in interface)
    outward = [a.address for a in addresses if a.family == socket.AF_INET and not a.address.startswith("127.")]
    return url.replace("127.0.0.1", outward[0]).replace("[::1]", outward[0]) if outward else url
