"""The web process, wired top to bottom: the only module of occ_app that knows occ_worker.

`python -m occ_app.wsgi` serves on the socket the supervisor bound, or on the configured address by itself.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from flask import Flask

from occ_app import config as configuration
from occ_app import daemon, db, state, streams, tls
from occ_app.api import Parts, create_app
from occ_app.config import Config
from occ_app.doorbell import Ringer
from occ_app.logs import log_to_stderr
from occ_app.server import Application
from occ_app.state import TokenFile
from occ_app.tail import Tail
from occ_worker import tasks
from occ_worker.queues import open_queue

if TYPE_CHECKING:
    from occ_worker.control import Control


def make_app(config: Config) -> Flask:
    """The agent's application with everything it works with, tailing and ready to serve."""
    database = db.Database(config.database)
    tail = Tail(database, config.run / "tail")
    tail.start()
    app = create_app(
        Parts(
            config=config,
            db=database,
            tail=tail,
            readers=Ringer(config.run / "tail"),
            workers=Ringer(config.run / "worker"),
            streams=streams.Streams(config.max_streams),
            token=TokenFile(config.state).current,
            execute=tasks.executions(open_queue(config, "executions"), _no_worker),
            make_workspace=tasks.control(open_queue(config, "control"), _no_control),
        )
    )
    app.occ_on_stop = tail.close  # type: ignore[attr-defined]  # the server calls it when it is told to stop,
    app.occ_on_end = tail.join_thread  # type: ignore[attr-defined]  # and this one when it is about to leave
    return app


def _no_worker() -> None:
    raise RuntimeError("the web process puts executions in and runs none")


def _no_control() -> Control:
    raise RuntimeError("the web process puts control jobs in and runs none")


def main() -> None:
    config = configuration.load()
    log_to_stderr()
    logging.getLogger("huey").setLevel(logging.WARNING)
    config.make_folders()
    db.ensure_schema(config.database, config.home / "lock" / "migrate")
    descriptor = configuration.inherited_socket()
    if descriptor is None:
        state.ensure(config.state)
        daemon.take_work(config)
    bind = f"fd://{descriptor}" if descriptor is not None else f"{config.bind_address}:{config.http_port}"
    Application(lambda: make_app(config), bind, config.max_streams, tls.certificate(config)).run()


if __name__ == "__main__":
    main()
