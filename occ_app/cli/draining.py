"""Draining an agent: it refuses new runs, and the current ones are waited for."""

from __future__ import annotations

import select
from contextlib import closing

from occ_app.cli import output, transcript
from occ_app.config.config import Config
from occ_app.database import schema
from occ_app.database.database import Database
from occ_app.errors import OCCError
from occ_app.executions import queries as executions
from occ_app.home import daemon
from occ_app.streams.doorbell import Doorbell


def drain(config: Config) -> None:
    """Refuse new work and wait until nothing runs.

    Queued executions stay for the next start. An interruption accepts work again.
    """
    try:
        daemon.refuse_work(config)  # in here: an interruption may come at once
        with closing(Doorbell(config.run / "tail")) as bell, transcript.Waiting("Waiting for current runs"):
            database = schema.opened(config.database)
            while not is_idle(database) and daemon.find(config):
                select.select([bell], [], [], 1.0)
                bell.hush()
    except BaseException:
        daemon.take_work(config)
        output.echo("occ: not stopped; it takes work again.", err=True)
        raise


def is_idle(database: Database) -> bool:
    """Return whether nothing runs; False while the database is held.

    Once work is refused, nothing will run afterwards either. A worker that asked before the refusal may begin its
    run just now.
    """
    try:
        database.await_writers()
    except OCCError:
        return False
    return not executions.running(database)
