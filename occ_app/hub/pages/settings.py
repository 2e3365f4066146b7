"""The page of settings: logged-in devices.

Admins also see keys, owners and webhooks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from flask import Blueprint, Response, g, render_template, request
from markupsafe import Markup

from occ_app.api.services import services
from occ_app.config.settings import is_loopback
from occ_app.errors import ConfigError, Forbidden, InvalidRequest
from occ_app.home import daemon
from occ_app.hub import api, keys, logins, session_api, webhooks
from occ_app.hub import deliveries as outgoing
from occ_app.hub.keys import ROLES, Key
from occ_app.hub.pages import login as door
from occ_app.hub.pages.devices import device_name
from occ_app.hub.pages.machines import join
from occ_app.web import callers

bp = Blueprint("settings", __name__, url_prefix="/settings")

_LOGGED = 10


@bp.get("")
def show() -> str:
    """Show all sections that the visitor may see."""
    return _page()


@bp.post("/pair")
def pair() -> Response:
    """Create a one-time code for another device, and show it as a link and QR code."""
    if not g.login.may_pair:
        raise Forbidden("This session may not open sessions on other devices; ask an admin, or use `occ hub pair`.")
    role = request.form.get("role", "owner")
    pairing = session_api.new_pairing(role if role in ROLES else "owner", None)
    link = f"{join()['hub_url']}{pairing.path}"
    only_here = is_loopback(urlsplit(link).hostname or "")
    return Response(_page(pairing=pairing, qr=_qr(link), only_here=only_here))


@bp.post("/sessions/<session_id>/revoke")
def revoke_session(session_id: str) -> Response:
    """Log a device out."""
    session_api.end_session(session_id)
    return door.go("/settings" if session_id != g.login.session_id else "/login")


@bp.post("/keys")
def create_key() -> Response:
    """Create a key, and show it once."""
    callers.require_admin()
    form = request.form
    kind, role = form.get("for", "client"), form.get("role", "owner")
    if kind not in ("agent", "client") or role not in ROLES:
        raise InvalidRequest("Reload the page and choose again.")
    try:
        days = float(form["days"]) if form.get("days") else None
        key, secret = keys.create(
            services().db,
            device_name(form.get("name", "")) or "key",
            kind,
            role=role if kind == "client" else "owner",
            owner=form.get("owner") or None,
            days=days,
        )
    except (ConfigError, ValueError) as error:
        raise InvalidRequest(str(error)) from None
    return Response(_page(made=key, secret=secret))


@bp.post("/keys/<key_id>/rotate")
def rotate_key(key_id: str) -> Response:
    """Replace the secret of a key, and show the new one once."""
    callers.require_admin()
    key, secret = keys.rotate(services().db, key_id)
    api.end_streams(key.key_id)
    return Response(_page(made=key, secret=secret)) if key.key_id != g.login.key_id else door.go("/login")


@bp.post("/keys/<key_id>/revoke")
def revoke_key(key_id: str) -> Response:
    """Revoke a key."""
    api.revoke_key(name=key_id)
    return door.go("/settings#keys")


@bp.post("/webhooks")
def add_webhook() -> Response:
    """Add a webhook for the chosen events, and show its signing secret once."""
    callers.require_admin()
    form = request.form
    events = [event for event in webhooks.EVENTS if event in form.getlist("event")] or [webhooks.FINISHED]
    try:
        webhook, secret = webhooks.add(services().db, form.get("url", "").strip(), form.get("key") or None, events)
    except ConfigError as error:
        raise InvalidRequest(str(error)) from None
    return Response(_page(webhook=webhook, secret=secret))


@bp.post("/webhooks/<webhook_id>/remove")
def remove_webhook(webhook_id: str) -> Response:
    """Remove a webhook."""
    callers.require_admin()
    webhooks.remove(services().db, webhook_id)
    return door.go("/settings#webhooks")


def _page(**shown: Any) -> str:
    caller, db = callers.caller(), services().db
    known = [key for key in keys.listing(db) if key.revoked_at is None] if caller.admin else []
    running = daemon.find(services().config)
    return render_template(
        "settings.html",
        sessions=logins.listing(db, caller.visible_to),
        keys=known,
        owners=_owners(known),
        webhooks=webhooks.listing(db) if caller.admin else [],
        deliveries=outgoing.log(db, _LOGGED) if caller.admin else [],
        events=webhooks.EVENTS,
        roles=ROLES,
        secure=request.is_secure or (running is not None and (running.public_url or "").startswith("https://")),
        self_signed=running is not None and running.pin is not None,
        **join(),
        **shown,
    )


def _owners(known: Sequence[Key]) -> list[dict[str, Any]]:
    """Return each owner that has a valid key, with the names of the keys."""
    found = dict[str, dict[str, Any]]()
    for key in known:
        found.setdefault(key.owner_id, {"name": key.owner, "keys": []})["keys"].append(key.name)
    return sorted(found.values(), key=lambda owner: str(owner["name"]))


def _qr(link: str) -> Markup:
    """Return a QR code as SVG that the stylesheet scales."""
    import segno

    made = segno.make(link, micro=False).svg_inline(scale=1, border=2, omitsize=True)
    return Markup(made)  # noqa: S704 - made by segno from paths and numbers only
