"""A limit on requests that send their bodies at the same time.

A slow one holds a thread, and others need threads too.
"""

from __future__ import annotations

from contextlib import ExitStack

from flask import Flask, g, request

from occ_app.web import callers, heads
from occ_app.web.shares import Shares

_BODIES, _WAITERS, _OF_MACHINE = 112, 32, 8
_MAX_STRANGERS, _MAX_STRANGERS_PER_ADDRESS, _STRANGER_SECONDS = 16, 4, 10.0
THREADS = _BODIES + _WAITERS + _MAX_STRANGERS  # that wait for bodies at once


def limit_bodies(app: Flask) -> None:
    """Give each request with a body a place until it is answered.

    A caller without a valid key gets a place of another kind.
    """
    known = "Too many bodies are being sent already; a key may send half of them."
    unknown = "Too many bodies are being sent already; an address may send a few of them before it shows a key."
    places = Shares(_BODIES, _BODIES // 2, known, _WAITERS)
    strangers = Shares(_MAX_STRANGERS, _MAX_STRANGERS_PER_ADDRESS, unknown)

    def take() -> ExitStack:
        sender = callers.caller()
        if not sender.known:
            heads.hurry(_STRANGER_SECONDS)
            return strangers.place(request.remote_addr or "")
        if sender.machine:
            machine = (request.view_args or {}).get("agent_id", request.remote_addr)
            return places.place(f"machine {machine}", _OF_MACHINE)
        return places.place(sender.key_id)

    @app.before_request
    def enter() -> None:
        if request.content_length or request.headers.get("Transfer-Encoding"):
            g.body_place = take()

    @app.teardown_request
    def leave(_: object) -> None:
        place = g.pop("body_place", None)
        if place is not None:
            place.close()
