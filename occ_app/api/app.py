"""The agent's HTTP API: one module a resource, put together here from parts that arrive as arguments."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from flask import Flask, Request, current_app
from marshmallow import Schema

from occ_app.api.measures import Measure, Refusals, common
from occ_app.config.config import Config
from occ_app.database.database import Database
from occ_app.errors import Unavailable
from occ_app.executions import records
from occ_app.home import daemon
from occ_app.streams.doorbell import Ringer
from occ_app.streams.followers import Streams
from occ_app.streams.tail import Tail
from occ_app.web import callers, schemas
from occ_app.web import requests as web
from occ_app.workspaces.workspace import Workspace

_FORM_OVERHEAD = 1 << 20


@dataclass(frozen=True)
class Parts:
    """What the views work with, an agent's or a hub's.

    `readers` and `workers` ring whoever follows or runs executions; `execute` and `make_workspace` put a job onto its
    queue; `pack` writes a workspace as it is now as a zip; `delete_workspace` removes one, of the given key if any;
    `admit` looks at an execution before it is accepted; `measures` give what only an agent or only a hub can tell.
    `contracts` describes the endpoints that are not every API's, as api/openapi.py does, and `title` the whole.
    """

    config: Config
    db: Database
    tail: Tail
    readers: Ringer
    workers: Ringer
    streams: Streams
    identify: Callable[[str], callers.Caller | None]
    execute: Callable[[str], None]
    make_workspace: Callable[[int], None]
    health: Callable[[], dict[str, Any]]
    pack: Callable[[Workspace, IO[bytes]], None]
    delete_workspace: Callable[[str, str | None], None]
    execute_body: type[Schema] = schemas.ExecuteBody
    admit: Callable[[sqlite3.Connection, records.Request], None] = lambda _connection, _request: None
    measures: tuple[Measure, ...] = ()
    title: str = "OCC agent"
    contracts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def refuse_when_stopping(self) -> None:
        """Raises Unavailable once `occ stop` has begun, with --drain too."""
        if not daemon.takes_work(self.config):
            raise Unavailable(
                "STOPPING", "It takes no new work, as it is stopping or being drained; send this again when it is back."
            )


class _Application(Flask):
    def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        """Every view as it is: none is asynchronous, and Flask would ask that of each anew at every request."""
        return func


def create_app(parts: Parts) -> Flask:
    """The WSGI application of one agent, and what a hub's begins with."""
    from occ_app.api import executions, health, metrics, openapi, search, usage, workspaces

    app = _Application("occ_app", static_folder=None)
    config = parts.config
    # An upload is the largest body; a JSON body is held to the prompt's limit where it is read.
    app.config["MAX_CONTENT_LENGTH"] = max(config.max_upload_bytes, 6 * config.max_prompt_bytes) + _FORM_OVERHEAD
    app.config["MAX_FORM_MEMORY_SIZE"] = 1 << 20
    app.config["MAX_FORM_PARTS"] = 20
    app.url_map.strict_slashes = False
    app.url_map.merge_slashes = False
    app.extensions["occ"] = parts
    app.request_class = _request_class(config.run / "uploads")
    callers.guard(app, callers.own_hosts(config.public_url, config.allowed_hosts), parts.identify)
    web.limit_bodies(app)
    web.answer_errors(app)
    refusals = Refusals()
    metrics.count_refusals(app, refusals)
    app.extensions["occ_measures"] = (common(parts.db, parts.streams, refusals), *parts.measures)
    for module in (health, workspaces, executions, search, usage, metrics, openapi):
        app.register_blueprint(module.bp)
    executions.add_websocket(app)
    return app


def parts() -> Parts:
    """The parts of the application that answers this request."""
    found: Parts = current_app.extensions["occ"]
    return found


def measures() -> tuple[Measure, ...]:
    """What can be measured of the application that answers this request."""
    found: tuple[Measure, ...] = current_app.extensions["occ_measures"]
    return found


def _request_class(uploads: Path) -> type[Request]:
    class UploadRequest(Request):
        """A request whose file parts go straight to the agent's own disk, and are gone when the request is."""

        def _get_file_stream(self, *_: Any, **__: Any) -> IO[bytes]:
            return tempfile.NamedTemporaryFile(dir=uploads, prefix="upload-", suffix=".zip")

    return UploadRequest
