"""The protocol of systemd's notify socket: one datagram for each change of state."""

from __future__ import annotations

import contextlib
import socket

READY, STOPPING = "READY=1", "STOPPING=1"


def notify(address: str | None, state: str) -> None:
    """Report a state to the service manager at `address`.

    Without an address, or when nothing listens there, nothing is sent.
    """
    if not address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.sendto(state.encode(), f"\0{address[1:]}" if address.startswith("@") else address)
