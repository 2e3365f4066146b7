"""The page on which an owner confirms that a Slack user is theirs.

Opening it redeems nothing.
"""

from __future__ import annotations

from flask import Blueprint, Response, g, render_template, request

from occ_app.api.services import services
from occ_app.slack import people, tokens
from occ_app.slack.people import Asked
from occ_app.web import callers

bp = Blueprint("slack", __name__, url_prefix="/slack/link")

_WRONG = (
    "This code is wrong, was used before, or is over 10 minutes old. Ask for another one in Slack with `/occ login`."
)


@bp.get("")
def show() -> str:
    """Ask for the code; the script reads it from the fragment of the address."""
    return _page()


@bp.post("")
def look() -> Response:
    """Show which Slack user the code would link, and ask for confirmation."""
    code = request.form.get("code", "")
    asked = people.asked_with(services().db, code)
    if asked is None:
        return _wrong()
    return Response(_page(asked=asked, code=code))


@bp.post("/confirm")
def confirm() -> Response:
    """Link the Slack user to the owner who is logged in."""
    asked = people.link(services().db, request.form.get("code", ""), g.login.key_id)
    return _wrong() if asked is None else Response(_page(linked=asked))


def _wrong() -> Response:
    callers.slow_down()
    return Response(_page(problem=_WRONG), 401)


def _page(problem: str | None = None, asked: Asked | None = None, linked: Asked | None = None, code: str = "") -> str:
    connected = tokens.load(services().config)
    team = None if connected is None else connected.team
    return render_template("slack.html", problem=problem, asked=asked, linked=linked, code=code, team=team)
