"""The objects and functions that the views of an agent or a hub use."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, Any

from flask import current_app
from marshmallow import Schema

from occ_app.api.measures import Measure
from occ_app.config.config import Config
from occ_app.database.database import Database
from occ_app.errors import Unavailable
from occ_app.executions import records
from occ_app.executions.inputs import Input
from occ_app.executions.lifecycle import Admission
from occ_app.home import daemon
from occ_app.streams.doorbell import Ringer
from occ_app.streams.followers import StreamLimit
from occ_app.streams.tail import Tail
from occ_app.web import callers, schemas
from occ_app.web.shares import Shares, file_reads
from occ_app.workspaces.workspace import Workspace


@dataclass(frozen=True)
class Services:
    """The objects and functions that the views of an agent or a hub use.

    `readers` and `workers` ring the processes that follow or run executions. `wake_worker` and `enqueue_upload` put
    a job onto their queue. `pack` writes a workspace as a zip; `delete_workspace` removes one, only if it is the given
    owner's and has the given generation, where these are given, and returns the numbers of the executions it ended.
    `files` are those of its workspaces, as occ_app/api/files.py describes, and `approvals` those of its executions, as
    occ_app/api/approvals.py describes. `admit` checks an execution before it is
    accepted, and `resolve_workspace` returns the id of the workspace that its request names. `measures` are those that
    only an agent or only a hub has. `open_to_viewers` are the endpoints that a viewer may POST to. `title` is the API's
    name. `send_input` sends a text for an execution to the machine that runs it; None for an agent, whose worker does
    that. `file_reads` are the places for requests that read files of workspaces.
    """

    config: Config
    db: Database
    tail: Tail
    readers: Ringer
    workers: Ringer
    streams: StreamLimit
    identify: Callable[[str], callers.Caller | None]
    wake_worker: Callable[[], None]
    enqueue_upload: Callable[[int], None]
    health: Callable[[], dict[str, Any]]
    pack: Callable[[Workspace, IO[bytes]], None]
    delete_workspace: Callable[[str, str | None, int | None], list[int]]
    files: Any
    approvals: Any
    execute_body: type[Schema] = schemas.ExecuteBody
    resolve_workspace: Callable[[sqlite3.Connection, str], str] = lambda _connection, workspace_id: workspace_id
    admit: Callable[[sqlite3.Connection, records.Request], Admission] = lambda _connection, _request: Admission()
    measures: tuple[Measure, ...] = ()
    open_to_viewers: frozenset[str] = frozenset()
    title: str = "OCC agent"
    send_input: Callable[[Input], Input] | None = None
    file_reads: Shares = field(default_factory=file_reads)

    def refuse_when_stopping(self) -> None:
        """Raise Unavailable once `occ stop` has begun, with --drain too."""
        if not daemon.takes_work(self.config):
            raise Unavailable("STOPPING", "It accepts no new work while it stops or drains; try again when it is back.")


def services() -> Services:
    """Return the services of the application that answers this request."""
    existing: Services = current_app.extensions["occ"]
    return existing


def measures() -> tuple[Measure, ...]:
    """Return the measures of the application that answers this request."""
    existing: tuple[Measure, ...] = current_app.extensions["occ_measures"]
    return existing
