"""GET /proof: an agent proves to a caller that holds its token that it holds the token, too."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response, g, request
from marshmallow import Schema, fields

from occ_app.system import proofs
from occ_app.web import requests as web
from occ_app.web import schemas
from occ_app.web.callers import Caller

bp = Blueprint("proof", __name__)


class Proof(Schema):
    """The agent's proof, an HMAC in hexadecimal."""

    proof = fields.String()


CONTRACTS: dict[str, dict[str, Any]] = {"proof.show": {"reply": Proof}}


def identify(token: str) -> Caller | None:
    """Return the caller of GET /proof, who proves with the request that it holds the token; None for others."""
    nonce = proofs.asked(request.headers.get("Authorization", ""), token)
    if nonce is None:
        return None
    g.proof = proofs.of_agent(token, nonce)
    return Caller()


@bp.get(proofs.PATH)
def show() -> Response:
    """Prove that this agent holds the token with which the caller signed its nonce."""
    web.query(schemas.NoQuery)
    return web.json_response({"proof": g.proof})
