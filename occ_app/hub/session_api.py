"""The hub's API of sessions of its pages.

It lists and ends sessions, and creates one-time codes that open one.
"""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response, current_app

from occ_app import errors
from occ_app.api.services import services
from occ_app.hub import client_schemas, logins, pairings
from occ_app.hub.pairings import Pairing
from occ_app.web import callers, schemas
from occ_app.web import requests as web
from occ_app.web.contracts import contract

bp = Blueprint("sessions", __name__)


@bp.get("/sessions")
@contract(reply=client_schemas.SessionList)
def listing() -> Any:
    """List the valid sessions of the caller's owner; an admin sees all."""
    return {"sessions": logins.listing(services().db, callers.caller().visible_to)}


@bp.delete("/sessions/<session_id>")
@contract(reply=schemas.Deleted)
def revoke(session_id: str) -> Response:
    """End a session, and the sessions that it paired."""
    end_session(session_id)
    return web.json_response({"status": "success"})


@bp.post("/pairings")
@contract(body=client_schemas.PairingBody, reply=client_schemas.PairingMade, status=201)
def pair(body: dict[str, Any]) -> Any:
    """Create a code that opens one session on the hub's page /pair."""
    return new_pairing(body["role"], body["owner"])


def new_pairing(role: str, owner: str | None) -> Pairing:
    """Create a code for the caller.

    Raises Forbidden when the session would have more rights than the caller.
    """
    caller = callers.caller()
    if not caller.admin:
        if role == "admin":
            raise errors.Forbidden("Only an admin can open an admin's session. Choose the role owner or viewer.")
        if owner not in (None, caller.owner_id):
            raise errors.Forbidden("Only an admin can open a session for another owner. Leave out `owner`.")
        owner = caller.owner_id
    return pairings.create(services().db, role, owner or caller.owner_id, caller.key_id)


def end_session(session_id: str) -> None:
    """End a session that the caller may see, and its streams. Raises NotFound."""
    ended = logins.revoke(services().db, session_id, callers.caller().visible_to)
    ended_sessions().add(session_id)
    for key_id in ended:
        services().streams.refuse(key_id)


def ended_sessions() -> set[str]:
    """Return the ids of the sessions ended since this process started.

    Their streams end, too.
    """
    ended: set[str] = current_app.extensions.setdefault("occ_ended_sessions", set())
    return ended
