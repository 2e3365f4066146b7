"""The manifest and the service worker, which let a browser install the pages."""

from __future__ import annotations

import json

from flask import Blueprint, Response, current_app

bp = Blueprint("app_files", __name__)

_MANIFEST = {
    "name": "OCC",
    "short_name": "OCC",
    "description": "Your machines that run Claude Code.",
    "id": "/",
    "start_url": "/",
    "scope": "/",
    "display": "standalone",
    "background_color": "#f5f6f8",
    "theme_color": "#16305e",
    "icons": [
        {"src": "/static/icon.svg", "sizes": "any", "type": "image/svg+xml"},
        {"src": "/static/icon-192.png", "sizes": "192x192", "type": "image/png"},
        {"src": "/static/icon-512.png", "sizes": "512x512", "type": "image/png"},
        {"src": "/static/icon-full-512.png", "sizes": "512x512", "type": "image/png", "purpose": "maskable"},
    ],
}


@bp.get("/manifest.webmanifest")
def manifest() -> Response:
    """Describe the app to a browser, which asks for it without a cookie."""
    return Response(json.dumps(_MANIFEST), content_type="application/manifest+json")


@bp.get("/service-worker.js")
def service_worker() -> Response:
    """Send the script that shows notifications.

    Its address is at the root, because a service worker controls only the pages below its address.
    """
    return Response(current_app.extensions["occ_static"]["service-worker.js"], content_type="text/javascript")
