"""The agent's web process, wired top to bottom.

`python -m occ_app.wsgi` serves on the socket the supervisor bound, or on the configured address by itself.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import IO

from flask import Flask, request

from occ_app import errors
from occ_app.api import measures as metrics
from occ_app.api import proof
from occ_app.api.app import create_app
from occ_app.api.local_approvals import LocalApprovals
from occ_app.api.local_files import LocalFiles
from occ_app.api.services import Services
from occ_app.claude import projects
from occ_app.config import config as configuration
from occ_app.config.config import Config
from occ_app.database import database as db
from occ_app.executions import lifecycle, queries
from occ_app.executions.records import Request
from occ_app.home import health
from occ_app.home.state import TokenFile
from occ_app.queue import upload_enqueuer, waker
from occ_app.snapshots.store import snapshots_of
from occ_app.streams import followers as streams
from occ_app.streams.doorbell import Ringer
from occ_app.streams.tail import Tail
from occ_app.system.inheritance import prepare_daemon
from occ_app.system.kernel import max_open_files
from occ_app.system.leaving import leave
from occ_app.web import requests as web
from occ_app.web.callers import Caller, same_secret
from occ_app.web.serve import serve
from occ_app.workspaces import origin as origins
from occ_app.workspaces import snapshots
from occ_app.workspaces import workspace as workspaces
from occ_app.workspaces.workspace import Workspace


def make_app(config: Config) -> Flask:
    """Return the agent's application, ready to serve.

    Its tail runs.
    """
    database = db.Database(config.database)
    tail = Tail(database, config.run / "tail")
    tail.start()

    def end() -> None:
        tail.join_thread()
        database.close()  # SQLite empties the log when the last process closes the database

    workers = Ringer(config.run / "worker")
    app = create_app(
        Services(
            config=config,
            db=database,
            tail=tail,
            readers=Ringer(config.run / "tail"),
            workers=workers,
            streams=streams.StreamLimit(min(config.max_streams, max_open_files() // 2)),
            identify=_holder_of(TokenFile(config.state)),
            wake_worker=waker(config),
            enqueue_upload=upload_enqueuer(config),
            health=lambda: health.health(config, database),
            pack=_pack,
            delete_workspace=lambda workspace_id, _, generation: _delete(config, database, workspace_id, generation),
            admit=lambda connection, asked: _admit(config, connection, asked),
            approvals=LocalApprovals(database, workers, config.rules),
            files=LocalFiles(config, database, snapshots_of(config)),
            measures=(metrics.of_agent(config, database),),
        )
    )
    app.register_blueprint(proof.bp)
    app.occ_on_stop = tail.close  # type: ignore[attr-defined]  # the server calls it when it stops,
    app.occ_on_end = end  # type: ignore[attr-defined]  # and this one when it is about to leave
    return app


def _holder_of(token: TokenFile) -> Callable[[str], Caller | None]:
    def identify(secret: str) -> Caller | None:
        right = token.current()
        if right is not None and request.endpoint == "proof.show":
            return proof.identify(right)
        if right is None or not same_secret(secret, right):
            return None
        return Caller(refused=lambda: token.recent() != right)

    return identify


def _admit(config: Config, connection: sqlite3.Connection, asked: Request) -> lifecycle.Admission:
    """Refuse a hub's execution in a workspace of another hub or key."""
    held = workspaces.origin_of(connection, asked.workspace_id)
    origins.refuse_execution(asked.workspace_id, held, web.origin())
    return lifecycle.Admission(free_workers=config.workers - queries.running_count(connection))


def _delete(config: Config, database: db.Database, workspace_id: str, generation: int | None) -> list[int]:
    """Remove a workspace, its files and its snapshots.

    Returns the numbers of the executions that it ended.
    """
    number = workspaces.get(database, workspace_id, generation=generation).generation
    cli = projects.cli_folders(config.cli_environment)
    ended = workspaces.delete(database, workspace_id, config.workspaces, lifecycle.end_waiting, number, cli)
    snapshots_of(config).remove(number)  # the control process removes the rest after a kill
    return ended


def _pack(workspace: Workspace, output: IO[bytes]) -> None:
    try:
        snapshots.pack_instant(Path(workspace.path), output)
    except FileNotFoundError:
        raise errors.NotFound(
            "WORKSPACE_NOT_FOUND",
            f"The folder of workspace {workspace.workspace_id} is gone from the agent's disk; upload it again.",
        ) from None


def main() -> None:
    prepare_daemon()
    config = configuration.load()
    serve(config, lambda: make_app(config))
    leave()


if __name__ == "__main__":
    main()
