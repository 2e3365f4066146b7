"""Logging in to the hub's pages with a client's key, the cookie that stands for it, and logging out."""

from __future__ import annotations

import re
from urllib.parse import urlencode

from flask import Blueprint, Response, g, redirect, render_template, request
from werkzeug.wrappers import Response as AnyResponse

from occ_app import errors
from occ_app.api.services import parts
from occ_app.database.database import Database
from occ_app.hub import keys, logins
from occ_app.hub.logins import Login
from occ_app.web import callers
from occ_app.web.callers import Caller

bp = Blueprint("door", __name__)

OPEN = frozenset({"pages.static", "pages.door.show", "pages.door.log_in"})
"""The endpoints of pages that ask for no login."""

LEAD_BACK = frozenset({"pages.home.show", "pages.runs.show"})
"""Those from which one is sent to log in, and back afterwards."""

_NEXT = r"/(runs/[A-Za-z0-9._-]+)?(\?[A-Za-z0-9._=&-]*)?"
_FORM_BYTES = 10_000


def visitor(db: Database) -> Caller | None:
    """Who asks for a page, by the cookie; None without a valid one. Where none is needed: somebody without rights."""
    if request.endpoint in OPEN:
        return Caller(key_id="", admin=False)
    login = logins.find(db, request.cookies.get(_cookie(), ""))
    if login is None:
        return None
    g.login = login
    return Caller(login.key_id, login.admin)


def check_csrf() -> None:
    """Raises Forbidden unless the form carries the token of this login."""
    login: Login = g.login
    if not callers.same_secret(request.form.get("csrf", ""), login.csrf):
        raise errors.Forbidden("This form is not of your present login. Go back, reload the page and send it again.")


def go_and_log_in() -> Response:
    """To the log-in page, and from there back to what was asked for."""
    asked = request.full_path.rstrip("?")
    back = f"?{urlencode({'next': asked})}" if asked != "/" and re.fullmatch(_NEXT, asked) else ""
    return go(f"/login{back}")


@bp.get("/login")
def show() -> str:
    """Ask for a key."""
    return render_template("login.html", next=request.args.get("next", "/"))


@bp.post("/login")
def log_in() -> Response:
    """Take a key and give the cookie for it."""
    request.max_content_length = _FORM_BYTES  # nobody has shown a key yet
    after = request.form.get("next", "/")
    key = keys.find(parts().db, request.form.get("key", "").strip(), "client")
    if key is None:
        callers.slow_down()
        problem = "This is not a valid client key."
        return Response(render_template("login.html", next=after, problem=problem), 401)
    response = go(after if re.fullmatch(_NEXT, after) else "/")
    response.set_cookie(
        _cookie(),
        logins.begin(parts().db, key),
        max_age=logins.DAYS * 86400,
        secure=_secure(),
        httponly=True,
        samesite="Lax",  # so that a link somebody sent leads to the page; forms have their token
    )
    return response


@bp.get("/logout")
def stay() -> Response:
    """Logging out is a form; whoever comes by a link stays."""
    return go("/")


@bp.post("/logout")
def log_out() -> Response:
    """End this login."""
    logins.end(parts().db, request.cookies.get(_cookie(), ""))
    response = go("/login")
    response.delete_cookie(_cookie(), secure=_secure(), httponly=True, samesite="Lax")
    return response


def go(address: str) -> Response:
    """Send the browser to a page, whatever the method was."""
    found: AnyResponse = redirect(address, 303, Response)
    assert isinstance(found, Response)  # noqa: S101 - it was asked for
    return found


def _secure() -> bool:
    return request.is_secure or (parts().config.public_url or "").startswith("https:")


def _cookie() -> str:
    # With the prefix a browser takes it from this very host and over TLS alone.
    return "__Host-occ" if _secure() else "occ"
