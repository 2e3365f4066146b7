"""The certificate that an address shows, looked at before anything is sent to it."""

from __future__ import annotations

import hashlib
import socket
import ssl
from dataclasses import dataclass
from urllib.parse import urlsplit

from occ_app.errors import Unreachable

_SECONDS = 10.0


@dataclass(frozen=True)
class Presented:
    """A certificate: its SHA-256 as AA:BB:…, and why this machine does not trust it.

    The reason is None when it does.
    """

    fingerprint: str
    distrust: str | None


def presented(url: str) -> Presented:
    """Return the certificate that an https:// address shows. Raises Unreachable."""
    try:
        return Presented(_fingerprint(url, ssl.create_default_context()), None)
    except ssl.SSLCertVerificationError as error:
        reason = error.verify_message or "it cannot be verified"
    except OSError as error:
        raise _unreachable(url, error) from None
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # nothing is sent: only the certificate is looked at
    try:
        return Presented(_fingerprint(url, context), reason)
    except OSError as error:
        raise _unreachable(url, error) from None


def _fingerprint(url: str, context: ssl.SSLContext) -> str:
    parts = urlsplit(url)
    host = parts.hostname or ""
    with (
        socket.create_connection((host, parts.port or 443), timeout=_SECONDS) as connection,
        context.wrap_socket(connection, server_hostname=host) as secured,
    ):
        certificate = secured.getpeercert(binary_form=True) or b""
    return hashlib.sha256(certificate).digest().hex(":").upper()


def _unreachable(url: str, error: OSError) -> Unreachable:
    if isinstance(error, ssl.SSLError):
        return Unreachable(f"{url} does not speak TLS; check whether it is an http:// address.")
    reason = "no answer in time" if isinstance(error, TimeoutError) else (error.strerror or str(error)).lower()
    return Unreachable(f"{url} does not answer ({reason}); check that it runs there.")
