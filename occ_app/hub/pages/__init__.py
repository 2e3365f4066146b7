"""The hub's pages for people with a browser, rendered on the server.

The pages work without their scripts, which only save reloads. Pages have their own addresses and require a cookie that
opens nothing else; the API accepts no cookie.
"""

from __future__ import annotations

import mimetypes
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flask import Blueprint, Flask, Response, current_app, g, render_template, request
from werkzeug.exceptions import NotFound

from occ_app import __version__
from occ_app.api.services import services
from occ_app.hub.pages import (
    app_files,
    changes,
    costs,
    folders,
    home,
    machines,
    notifications,
    pairing,
    runs,
    search,
    seen,
    settings,
    slack,
    terminal,
)
from occ_app.hub.pages import filters as shown
from occ_app.hub.pages import login as door
from occ_app.hub.pages.compiled import CompiledTemplates
from occ_app.system import foreign_text
from occ_app.system.timestamps import iso_now
from occ_app.web import refusals

_STATIC = Path(__file__).parents[1] / "static"

bp = Blueprint("pages", __name__, template_folder="../templates")
for room in (
    *(app_files, door, pairing, home, runs, seen, notifications),
    *(changes, folders, search, costs, machines, settings, slack),
):
    bp.register_blueprint(room.bp)
bp.register_blueprint(folders.archives)

_HEADERS = {
    # Only the hub's own scripts and styles, nothing from other hosts, and no framing.
    "Content-Security-Policy": "default-src 'self'; worker-src 'self'; manifest-src 'self'; object-src 'none';"
    " base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    # Not `no-referrer`: with it browsers send `Origin: null` even to the page's own host, and Origin is checked.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_MAX_KEPT_BYTES = 100_000
_TITLES = {401: "Please log in", 403: "Not allowed", 404: "Nothing here", 413: "Too large", 503: "Not right now"}
_SENTENCES = {
    "UNAUTHORIZED": "You are not logged in any more. Log in, then go back and try again.",
    "NOT_FOUND": "There is no page at this address.",
    "METHOD_NOT_ALLOWED": "This address does not accept that request.",
    "EXECUTION_NOT_FOUND": "There is no such run, or it belongs to another owner.",
    "FILE_NOT_FOUND": "There is no such file or folder here, or it was removed.",
    "INTERNAL": "Internal error. See logs/web.log on the hub's machine.",
    "WRONG_HOST": "This hub does not answer to that host name; use its address, or start it with --allowed-host.",
}


def add_pages(app: Flask) -> None:
    """Serve the pages."""
    app.register_blueprint(bp)
    for function in (shown.ago, shown.moment, shown.duration, shown.money, shown.amount, shown.size, shown.beginning):
        app.add_template_filter(function)
    app.add_template_filter(terminal.plain, "plain")
    app.add_template_filter(foreign_text.revealed, "revealed")
    refusals.answer_errors(app, _refusal_outside)
    app.jinja_env.bytecode_cache = CompiledTemplates()
    # Read now, because an upgrade replaces these files while this version is running.
    for name in app.jinja_env.list_templates():
        app.jinja_env.get_template(name)
    files = {path.name: path.read_bytes() for path in _STATIC.iterdir() if path.is_file()}
    app.extensions["occ_static"] = files


def asked_for() -> bool:
    """Return whether the request is for a page, and so authenticates with a cookie."""
    return bp.name in request.blueprints


@bp.before_request
def check_form() -> None:
    """Refuse a form that was not made for this login."""
    if request.method == "POST" and request.endpoint not in (*door.OPEN, door.KEEP_TEXT):
        door.check_csrf()


@bp.after_request
def add_headers(response: Response) -> Response:
    response.headers.update(_HEADERS)
    static = request.endpoint == f"{bp.name}.static"
    response.headers["Cache-Control"] = "no-cache" if static else "no-store"
    return response


@bp.app_context_processor
def common() -> dict[str, object]:
    """Return the variables of every page."""
    return {"login": g.get("login"), "version": __version__, "here": request.path, "now": iso_now()}


@bp.get("/static/<filename>", endpoint="static")
def static_file(filename: str) -> Response:
    """Send a style, a script or an icon, as it was when the hub started."""
    content = current_app.extensions["occ_static"].get(filename)
    if content is None:
        raise NotFound
    response = Response(content, content_type=mimetypes.guess_type(filename)[0])
    response.add_etag()
    return response.make_conditional(request)  # type: ignore[return-value]  # it returns itself


@bp.route("/runs/<path:_>", methods=["GET", "POST"])
def nowhere(_: str) -> Response:
    """Answer 404 at an address that looks like a run's and is not."""
    return error_page("NOT_FOUND", "")


def error_page(code: str, message: str, _: object = None, status: int | None = None) -> Response:
    """Return an error as a page.

    A visitor without a login who requests a whole page is redirected to the log-in page. A prompt that was sent
    without a login is shown again, so that it is not lost.
    """
    g.refusal = code  # for the metrics
    status = status or refusals.status_of(code)
    if code == "UNAUTHORIZED" and request.endpoint in door.LEAD_BACK:
        return door.go_and_log_in()
    title = _TITLES.get(status, "That did not work")
    kept = _written() if code == "UNAUTHORIZED" and request.endpoint == door.KEEP_TEXT else None
    page = render_template("error.html", title=title, message=_SENTENCES.get(code, message), code=code, kept=kept)
    response = Response(page, status)
    if status in refusals.RETRY_AFTER_SECONDS:
        response.headers["Retry-After"] = str(refusals.RETRY_AFTER_SECONDS[status])
    return response


def _written() -> str | None:
    """Return the prompt of a form that was sent without a login.

    Returns None when the request is longer than _MAX_KEPT_BYTES: a client that has not authenticated cannot make the
    hub read more.
    """
    if (request.content_length or 0) > _MAX_KEPT_BYTES:
        return None
    return request.form.get("prompt")


def _refusal_outside(
    code: str, message: str, details: Mapping[str, Any] | None = None, status: int | None = None
) -> Response:
    """Return an error for a request that is not for a page.

    The error has the API's form, except for a browser at an address that does not exist: that gets a page.
    """
    if request.endpoint is not None or "text/html" not in request.headers.get("Accept", ""):
        return refusals.error_response(code, message, details, status)
    door.visitor(
        services().db
    )  # sets the login: with one the page links to the first page, otherwise to the log-in page
    return add_headers(error_page("NOT_FOUND" if code == "UNAUTHORIZED" else code, message))


refusals.answer_errors(bp, error_page)
