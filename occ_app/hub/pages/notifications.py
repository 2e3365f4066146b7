"""The page of notifications: subscribing a browser, and the owner's channels.

Channels can be removed and tested on it.
"""

from __future__ import annotations

from flask import Blueprint, Response, current_app, g, render_template, request

from occ_app import errors
from occ_app.api.services import services
from occ_app.config.config import HubConfig
from occ_app.hub import channels, deliveries, push
from occ_app.hub.pages import devices
from occ_app.hub.pages import login as door

bp = Blueprint("notifications", __name__, url_prefix="/notifications")

_LOGGED = 20


@bp.get("")
def show() -> str:
    """List the owner's channels and their latest notifications.

    The page also offers to subscribe this browser.
    """
    owned = channels.listing(services().db, g.login.owner_id)
    ids = {one.channel_id: one.name for one in owned}
    sent = [one for one in deliveries.log(services().db, 1000, of_channels=True) if one.webhook_id in ids]
    key, missing = "", ""
    try:
        key = push.public_key(_config())
    except errors.ConfigError as error:
        missing = str(error)
    return render_template(
        "notifications.html", channels=owned, names=ids, sent=sent[:_LOGGED], key=key, missing=missing
    )


@bp.post("/browsers")
def subscribe() -> Response:
    """Subscribe the browser that sent this form to notifications."""
    form = request.form
    address = push.checked_subscription(
        _config(), form.get("endpoint", ""), form.get("p256dh", ""), form.get("auth", "")
    )
    name = devices.device_of(request.headers.get("User-Agent", ""))
    channels.subscribe(services().db, name, {**address, "keyId": g.login.key_id}, g.login.owner_id)
    return door.go("/notifications")


@bp.post("/<channel_id>/remove")
def remove(channel_id: str) -> Response:
    """Remove a channel of the owner."""
    channels.remove(services().db, channel_id, g.login.owner_id)
    return door.go("/notifications")


@bp.post("/<channel_id>/test")
def test(channel_id: str) -> Response:
    """Send a test notification through a channel of the owner."""
    deliveries.add_test(services().db, channel_id, g.login.owner_id)
    return door.go("/notifications")


def _config() -> HubConfig:
    config: HubConfig = current_app.extensions["occ_hub"].config
    return config
