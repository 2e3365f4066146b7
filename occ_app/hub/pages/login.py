"""Login to the hub's pages with a client's key, the session cookie, and logout."""

from __future__ import annotations

import re
import time
from urllib.parse import urlencode, urlsplit

from flask import Blueprint, Response, current_app, g, redirect, render_template, request
from werkzeug.wrappers import Response as AnyResponse

from occ_app import errors
from occ_app.api.services import services
from occ_app.database.database import Database
from occ_app.hub import keys, logins, session_api
from occ_app.hub.logins import Login
from occ_app.hub.pages.devices import device_of
from occ_app.system.timestamps import iso_now
from occ_app.web import callers
from occ_app.web.callers import Caller

bp = Blueprint("door", __name__)

OPEN = frozenset(
    f"pages.{name}"
    for name in (
        *("static", "app_files.manifest", "app_files.service_worker"),
        *("door.show", "door.log_in", "pairing.show", "pairing.redeem"),
    )
)
"""The endpoints that require no login."""

OPEN_TO_VIEWERS = frozenset({"pages.door.log_out", "pages.seen.report"})

KEEP_TEXT = "pages.home.start"
"""The endpoint that checks its form itself, so that an error page can show the person's text again."""

LEAD_BACK = frozenset(
    f"pages.{name}"
    for name in (
        *("home.show", "runs.show", "changes.show", "changes.conversation", "changes.whole", "changes.ask"),
        *("folders.show", "folders.view", "search.show", "costs.show", "machines.show", "settings.show"),
        "notifications.show",
    )
)
"""The endpoints that redirect to the log-in page, which leads back to them."""

_NEXT = (
    r"/((runs|conversations|files)/[A-Za-z0-9._-]+(/[a-z]+)?|find|costs|machines|settings|notifications)?"
    r"(\?[A-Za-z0-9._=&%+/-]*)?"
)
FORM_BYTES = 10_000
_BOUND = "__Host-"
_RETURN_SECONDS, _RECENT = 30.0, 500
_NO_COOKIE = (
    "The key is right, but your browser did not send the login cookie back. Allow cookies for this address. Behind a"
    " proxy, check that it passes cookies on and that the hub's --public-url is the address in your browser."
)


def visitor(db: Database) -> Caller | None:
    """Return the caller that the cookie identifies; None without a valid cookie.

    At an endpoint that needs no login, return a caller without rights.
    """
    if request.endpoint in OPEN:
        return Caller(key_id="", admin=False, known=False)
    login = next((login for name in _names() if (login := logins.find(db, request.cookies.get(name, "")))), None)
    if login is None:
        return None
    g.login = login
    ended = session_api.ended_sessions()
    return Caller(
        *(login.key_id, login.owner_id, login.admin, login.viewer),
        refused=lambda: iso_now() >= login.expires_at or login.session_id in ended,
    )


def check_csrf() -> None:
    """Raise Forbidden unless the form has the CSRF token of this login."""
    login: Login = g.login
    if not callers.same_secret(request.form.get("csrf", ""), login.csrf):
        raise errors.Forbidden(
            "You have logged in again since this page was opened. Your text is still here: send it again, or reload the"
            " page."
        )


def go_and_log_in() -> Response:
    """Redirect to the log-in page, which leads back to the requested page."""
    path = request.full_path.rstrip("?")
    query = {"next": path} if path != "/" and re.fullmatch(_NEXT, path) else {}
    if _has_just_logged_in():
        query["cookie"] = "missing"
    return go(f"/login?{urlencode(query)}" if query else "/login")


def _has_just_logged_in() -> bool:
    """Return whether the request follows a login, so that a cookie was expected."""
    moment = _recent().get(request.remote_addr or "", 0.0)
    from_login = urlsplit(request.headers.get("Referer", "")).path == "/login"
    return from_login and time.monotonic() < moment + _RETURN_SECONDS


def _recent() -> dict[str, float]:
    """Return the time of each address's last login, on the monotonic clock.

    Only the last _RECENT are kept.
    """
    logins_of_app: dict[str, float] = current_app.extensions.setdefault("occ_recent_logins", {})
    while len(logins_of_app) > _RECENT:
        logins_of_app.pop(next(iter(logins_of_app)), None)
    return logins_of_app


@bp.get("/login")
def show() -> str:
    """Ask for a key."""
    problem = _NO_COOKIE if request.args.get("cookie") == "missing" else None
    return render_template("login.html", next=request.args.get("next", "/"), problem=problem)


@bp.post("/login")
def log_in() -> Response:
    """Check a key and set the session cookie."""
    request.max_content_length = FORM_BYTES  # the client has not authenticated yet
    after = request.form.get("next", "/")
    key = keys.find(services().db, request.form.get("key", "").strip(), "client")
    if key is None:
        callers.slow_down()
        problem = "This is not a valid client key."
        return Response(render_template("login.html", next=after, problem=problem), 401)
    device = device_of(request.headers.get("User-Agent", ""))
    return logged_in(logins.begin(services().db, key, device), after if re.fullmatch(_NEXT, after) else "/")


def logged_in(cookie: str, after: str) -> Response:
    """Redirect a browser that has just logged in, and set its session cookie."""
    _recent()[request.remote_addr or ""] = time.monotonic()
    response = go(after)
    response.set_cookie(
        _name(secure=_secure()),
        cookie,
        max_age=logins.DAYS * 86400,
        secure=_secure(),
        httponly=True,
        samesite="Lax",  # links from elsewhere open the page; forms carry a CSRF token
    )
    return response


@bp.get("/logout")
def stay() -> Response:
    """Redirect to the first page: only the form logs out, a link does not."""
    return go("/")


@bp.post("/logout")
def log_out() -> Response:
    """End this login."""
    response = go("/login")
    session_api.ended_sessions().add(g.login.session_id)
    for name in _names():
        if name in request.cookies:
            logins.end(services().db, request.cookies[name])
            secure = name.startswith(_BOUND)
            response.delete_cookie(name, secure=secure, httponly=True, samesite="Lax")
    return response


def go(address: str) -> Response:
    """Redirect the browser to a page with GET."""
    response: AnyResponse = redirect(address, 303, Response)
    assert isinstance(response, Response)  # noqa: S101 - the class requested above
    return response


def _secure() -> bool:
    """Return whether the browser uses TLS.

    The page's own origin decides; without it, the request and the public URL.
    """
    origin = request.headers.get("Origin", "")
    if origin.startswith(("http:", "https:")):
        return origin.startswith("https:")
    public = urlsplit(services().config.public_url or "")
    is_public = public.scheme == "https" and public.netloc.lower() == request.host.lower()
    return request.is_secure or is_public


def _name(*, secure: bool) -> str:
    name: str = current_app.extensions.setdefault("occ_cookie", "") or logins.cookie_name(services().db)
    current_app.extensions["occ_cookie"] = name
    # A browser accepts a cookie with the prefix from this host only, and only over TLS.
    return f"{_BOUND}{name}" if secure else name


def _names() -> list[str]:
    """Return the cookies that may carry the login, in order of preference.

    Where the browser uses TLS, the names have the prefix that keeps other hosts from setting them.
    """
    bound = [_name(secure=True), f"{_BOUND}occ"]  # the second is from versions that had one name for all hubs
    return bound if _secure() else [*bound, _name(secure=False), "occ"]
