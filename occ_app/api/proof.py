"""GET /proof: an agent proves to a caller that holds its token that it holds the token, too."""

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
    """The agent's proof, an HMAC in hexadecimal, and the id of this start of its daemon."""

    proof = fields.String()
    instance = fields.String()


def identify(token: str) -> Caller | None:
    """Return the caller of GET /proof, who proves with the request that it holds the token; None for others."""
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
