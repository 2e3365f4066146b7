"""GET /proof: an agent proves that it holds the caller's token.

The caller proves it with the request.
"""

from __future__ import annotations

from typing import Any

from flask import Blueprint, g, request
from marshmallow import Schema, fields

from occ_app.api.services import services
from occ_app.home import machine
from occ_app.system import proofs
from occ_app.web.callers import Caller
from occ_app.web.contracts import contract

bp = Blueprint("proof", __name__)


class Proof(Schema):
    """The agent's proof, an HMAC in hexadecimal, and the id of this start."""

    proof = fields.String()
    instance = fields.String()


def identify(token: str) -> Caller | None:
    """Return the caller of GET /proof; None for a caller without a valid proof.

    The request proves that its sender holds the token.
    """
    nonce = proofs.asked(request.headers.get("Authorization", ""), token)
    if nonce is None:
        return None
    g.proof = proofs.of_agent(token, nonce)
    return Caller()


@bp.get(proofs.PATH)
@contract(reply=Proof)
def show() -> Any:
    """Prove that this agent holds the token with which the caller signed its nonce."""
    return {"proof": g.proof, "instance": machine.instance(services().config)}
