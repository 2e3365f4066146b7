"""Proofs that two sides hold one secret, without sending it.

A proof is an HMAC-SHA256 over a nonce of the other side. The caller proves itself with its request, so an agent or a
hub answers only callers that hold the secret. A machine proves to a hub that it is the one that registered before: the
hub knows a value that the machine derives from its secret and the hub's id, and never the secret.
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


def of_key(api_key: str) -> str:
    """Return the secret that both sides of an API key know.

    It is the key's SHA-256, because a hub stores no more than that.
    """
    return hashlib.sha256(api_key.encode()).hexdigest()


def verifier(secret: str, hub_id: str) -> str:
    """Return the value by which one hub knows a machine.

    Another hub's differs, and `secret` cannot be derived from it.
    """
    return _hmac(secret, f"occ-machine.1 hub {hub_id}")


def machine_id(verifier: str) -> str:
    """Return the id of a machine on the hub of this verifier.

    It reveals nothing of the verifier.
    """
    return _hmac(verifier, "occ-machine.1 id")[:32]


def of_machine(verifier: str, nonce: str, instance: str) -> str:
    """Return a machine's proof for registering as this instance.

    It covers the hub's nonce.
    """
    return _hmac(verifier, f"occ-machine.1 register {nonce} {instance}")


def of_former(token: str, nonce: str) -> str:
    """Return the proof that a machine holds the token of an earlier registration.

    It covers the hub's nonce.
    """
    return _hmac(token, f"occ-machine.1 former {nonce}")


def same(given: str, right: str) -> bool:
    """Return whether two proofs are equal.

    The time taken does not depend on where they differ.
    """
    return hmac.compare_digest(given.encode(), right.encode())


def _mac(token: str, side: str, nonce: str) -> str:
    return _hmac(token, f"occ-proof.1 {side} {nonce}")


def _hmac(secret: str, text: str) -> str:
    return hmac.new(secret.encode(), text.encode(), hashlib.sha256).hexdigest()
