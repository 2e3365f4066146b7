"""Proof that two sides hold one token, without sending it: an HMAC-SHA256 over a nonce of the caller.

The caller proves itself with its question, so an agent answers nobody who does not hold the token.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets

SCHEME = "OCC-Proof"
PATH = "/proof"


def new_nonce() -> str:
    return secrets.token_hex(16)


def of_caller(token: str, nonce: str) -> str:
    """Return the proof of the side that asks, in hexadecimal."""
    return _mac(token, "caller", nonce)


def of_agent(token: str, nonce: str) -> str:
    """Return the proof of the side that answers, in hexadecimal."""
    return _mac(token, "agent", nonce)


def question(token: str, nonce: str) -> str:
    """Return the Authorization header of a caller that asks for a proof."""
    return f"{SCHEME} {nonce}.{of_caller(token, nonce)}"


def asked(header: str, token: str) -> str | None:
    """Return the nonce of such a header; None unless its sender holds the token."""
    match = re.fullmatch(rf"{SCHEME} ([0-9a-f]{{32}})\.([0-9a-f]{{64}})", header)
    if match is None or not hmac.compare_digest(match[2], of_caller(token, match[1])):
        return None
    return match[1]


def _mac(token: str, side: str, nonce: str) -> str:
    return hmac.new(token.encode(), f"occ-proof.1 {side} {nonce}".encode(), hashlib.sha256).hexdigest()
