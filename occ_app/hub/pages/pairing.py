"""The page that turns a one-time code into a session on the device that opens it."""

from __future__ import annotations

from flask import Blueprint, Response, render_template, request

from occ_app.api.services import services
from occ_app.hub import pairings
from occ_app.hub.pages import login as door
from occ_app.hub.pages.devices import device_name, device_of
from occ_app.web import callers

bp = Blueprint("pairing", __name__)

_WRONG = (
    "This code is wrong, was used before, or is over 10 minutes old. Get another one with `occ hub pair` on the hub's"
    " machine, or on the page Settings of a device that is logged in."
)


@bp.get("/pair")
def show() -> str:
    """Ask for the code; opening the page redeems nothing.

    The script reads the code from the fragment of the address.
    """
    return _page(None)


@bp.post("/pair")
def redeem() -> Response:
    """Open a session with the code, and set its cookie."""
    request.max_content_length = door.FORM_BYTES  # the client has not authenticated yet
    device = device_name(request.form.get("device", "")) or device_of(request.headers.get("User-Agent", ""))
    cookie = pairings.redeem(services().db, request.form.get("code", ""), device)
    if cookie is None:
        callers.slow_down()
        return Response(_page(_WRONG), 401)
    return door.logged_in(cookie, "/")


def _page(problem: str | None) -> str:
    device = device_of(request.headers.get("User-Agent", ""))
    return render_template("pair.html", device=device, problem=problem)
