"""Slack's signed requests to a hub with a public address.

They are events, commands, clicks and dialogs. Each is stored as the same row as a Socket Mode message, before Slack
receives the reply.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from typing import Any
from urllib.parse import parse_qsl

from flask import Blueprint, Response, current_app, request

from occ_app import errors
from occ_app.api.services import services
from occ_app.slack import inbox, incoming, manifest, tokens
from occ_app.streams.doorbell import Ringer
from occ_app.web import callers

bp = Blueprint("slack_requests", __name__)

OPEN = frozenset({"slack_requests.receive"})
"""The endpoint that checks a signature instead of a key."""
WINDOW_SECONDS = 300
_MAX_BYTES = 1 << 20


@bp.post(manifest.REQUESTS)
def receive() -> Response:
    """Store a request of Slack's.

    A repeated request is already stored and has no second effect.
    """
    connected = tokens.load(services().config)
    if connected is None or connected.signing_secret is None:
        raise errors.NotFound(
            "NOT_FOUND", "This hub does not accept requests from Slack. Use `occ hub slack connect --http`."
        )
    if (request.content_length or 0) > _MAX_BYTES:
        raise errors.TooLarge(f"The body is over {_MAX_BYTES} bytes.")
    body = request.get_data(parse_form_data=False)
    if not is_signed(connected.signing_secret, body, dict(request.headers), time.time()):
        callers.slow_down()
        raise errors.RequestError("UNAUTHORIZED", "The signature is wrong, or older than five minutes.")
    kind, payload = parsed(request.mimetype, body)
    if payload.get("type") == "url_verification":
        return Response(str(payload.get("challenge") or ""), content_type="text/plain; charset=utf-8")
    inbox.store(services().db, incoming.key_of(kind, payload, hashlib.sha256(body).hexdigest()), kind, payload)
    ringer().ring("slack")
    return Response("", 200)


def is_signed(secret: str, body: bytes, headers: dict[str, str], now: float) -> bool:
    """Return whether a body has a valid signature of Slack's, version v0.

    It must have been made within WINDOW_SECONDS of `now`, in seconds since 1970.
    """
    given = {name.lower(): value for name, value in headers.items()}
    moment, signature = given.get("x-slack-request-timestamp", ""), given.get("x-slack-signature", "")
    if not (moment.isascii() and moment.isdecimal() and len(moment) < 16 and signature.isascii()):
        return False
    expected = "v0=" + hmac.new(secret.encode(), b"v0:%b:%b" % (moment.encode(), body), hashlib.sha256).hexdigest()
    return hmac.compare_digest(expected, signature) and abs(now - int(moment)) <= WINDOW_SECONDS


def parsed(mimetype: str, body: bytes) -> tuple[str, dict[str, Any]]:
    """Return a payload and its kind, as Socket Mode names it.

    Raises InvalidRequest.
    """
    try:
        if mimetype == "application/json":
            return "events_api", _object(json.loads(body))
        form = dict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=100))
        return ("interactive", _object(json.loads(form["payload"]))) if "payload" in form else ("slash_commands", form)
    except (ValueError, RecursionError):
        raise errors.InvalidRequest("This is not a payload from Slack.") from None


def _object(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("a payload is an object")
    return value


def ringer() -> Ringer:
    """Return the doorbell of the Slack process."""
    found: Ringer = current_app.extensions["occ_slack"]
    return found
