"""The hub's executions process, which relays the executions of its machines.

As on an agent one process consumes `executions` and one `control`. A relay waits for the network and computes nothing,
so relays are threads of one process; each is started by a job, which ends when there is nothing that could be started.
"""

from __future__ import annotations

import logging
import os

from occ_app.config.config import HubConfig
from occ_app.database import database as db
from occ_app.executions import queries as executions
from occ_app.queue import open_queue
from occ_worker import tasks
from occ_worker.consumers import ThreadsConsumer
from occ_worker.relay.relay_pool import RelayPool


def run_executions(config: HubConfig) -> None:
    """Consume the executions queue until SIGTERM.

    The next process takes over its relays.
    """
    database = db.Database(config.database)
    queue = open_queue(config, "executions")
    relays = RelayPool(config, database)
    put = tasks.executions(queue, relays.start_due)
    relays.start(lambda: put(""))
    if any(executions.counts(database)):
        put("")
    consumer = ThreadsConsumer(
        queue, workers=1, worker_type="thread", periodic=False, graceful_signal="TERM", shutdown_timeout=1
    )
    consumer.run()
    relays.stop()
    database.close()
    logging.shutdown()
    os._exit(0)  # a relay that waits for its agent would be waited for; every row is as it should be
