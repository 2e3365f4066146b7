"""The agent's HTTP API: one module for each resource, wired to the services here."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from flask import Flask, Request, Response, request

from occ_app.api.measures import Refusals, common
from occ_app.api.services import Services
from occ_app.config.config import Config
from occ_app.config.homes import AGENT
from occ_app.errors import Unavailable
from occ_app.home import daemon
from occ_app.system import logs
from occ_app.web import callers, refusals
from occ_app.web.bodies import limit_bodies
from occ_app.web.proxies import forwarded
from occ_app.web.requests import PROMPT_BODY_BYTES

_FORM_OVERHEAD = 1 << 20
_BESIDE_PROMPT = 1 << 20  # bytes of the other fields of a JSON body


class _Application(Flask):
    def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        """Return the view unchanged.

        No view is asynchronous, and Flask would check that at every request.
        """
        return func


def create_app(services: Services) -> Flask:
    """Return the WSGI application of an agent, which a hub's extends."""
    from occ_app.api import (
        approvals,
        conversations,
        executions,
        files,
        follow_ups,
        health,
        inputs,
        metrics,
        openapi,
        rules,
        search,
        usage,
        workspaces,
    )

    app = _Application("occ_app", static_folder=None)
    config = services.config
    # An upload is the largest body; a JSON body is held to the prompt's limit where it is read.
    app.config["MAX_CONTENT_LENGTH"] = max(config.max_upload_bytes, 6 * config.max_prompt_bytes) + _FORM_OVERHEAD
    app.config[PROMPT_BODY_BYTES] = 6 * config.max_prompt_bytes + _BESIDE_PROMPT
    app.config["MAX_FORM_MEMORY_SIZE"] = 1 << 20
    app.config["MAX_FORM_PARTS"] = 20
    app.url_map.strict_slashes = False
    app.url_map.merge_slashes = False
    app.extensions["occ"] = services
    app.request_class = _request_class(config.run / "uploads")
    app.wsgi_app = forwarded(app.wsgi_app, config.trusted_proxies)  # type: ignore[method-assign, assignment]
    hosts = callers.own_hosts(config.public_url, config.allowed_hosts)
    callers.guard(app, hosts, config.public_url, services.identify, services.open_to_viewers)
    limit_bodies(app)
    refusals.answer_errors(app)
    counted = Refusals()
    metrics.count_refusals(app, counted)
    app.extensions["occ_measures"] = (common(services.db, services.streams, counted), *services.measures)
    work = (health, workspaces, files, executions, follow_ups, inputs, approvals, conversations)
    for module in (*work, search, usage, metrics, openapi):
        app.register_blueprint(module.bp)
    if config.program is AGENT:  # a hub runs nothing itself
        app.register_blueprint(rules.bp)
    executions.add_websocket(app)
    app.before_request(_name_execution)
    app.before_request(lambda: _refuse_while_held(config))
    app.after_request(_for_browsers)
    return app


def _name_execution() -> None:
    """Name the request's execution in the log records of its thread.

    The name stays until the thread's next request.
    """
    logs.set_execution((request.view_args or {}).get("execution_id"))


def _refuse_while_held(config: Config) -> None:
    """Refuse every change while an upgrade may still go back to the former version."""
    if request.method not in ("GET", "HEAD", "OPTIONS") and not daemon.takes_work(config) and daemon.is_held(config):
        raise Unavailable("STOPPING", "It is being upgraded and accepts nothing yet; try again in a moment.")


def _for_browsers(response: Response) -> Response:
    """Keep browsers from guessing a type and other sites from embedding a reply."""
    response.headers.update(refusals.BROWSER_HEADERS)
    return response


def _request_class(uploads: Path) -> type[Request]:
    class UploadRequest(Request):
        """A request whose file parts are stored on the agent's own disk.

        They are deleted with the request.
        """

        def _get_file_stream(self, *_: Any, **__: Any) -> IO[bytes]:
            uploads.mkdir(mode=0o700, parents=True, exist_ok=True)  # something may have cleaned up
            return tempfile.NamedTemporaryFile(dir=uploads, prefix="upload-", suffix=".zip")

    return UploadRequest
