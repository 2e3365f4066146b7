"""The files with which a browser installs the pages as an app: the manifest and the service worker."""

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
    """The script that shows notifications; at the root, so that it belongs to all pages."""
    return Response(current_app.extensions["occ_static"]["service-worker.js"], content_type="text/javascript")
