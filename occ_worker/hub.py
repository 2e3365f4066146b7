"""The hub's two consumer processes: `python -m occ_worker.hub executions` and `… control`.

As on an agent one consumes `executions` and one `control`. A relay waits for the network and computes nothing, so
relays are threads of one process; each is started by a job, which ends when there is nothing that could be started.
"""

from __future__ import annotations

import logging
import os
import sys
from functools import partial

from occ_app.config import config as configuration
from occ_app.config.config import HubConfig
from occ_app.database import database as db
from occ_app.database import schema
from occ_app.executions import queries as executions
from occ_app.hub.agent_clients import Calls
from occ_app.hub.agents import Agents
from occ_app.queue import open_queue, waker
from occ_app.streams.doorbell import Ringer
from occ_app.system.inheritance import prepare_daemon
from occ_app.system.kernel import allow_many_files
from occ_app.system.logs import log_to_stderr
from occ_worker import tasks
from occ_worker.consumers import CONTROL_THREADS, ControlConsumer, ThreadsConsumer
from occ_worker.control.deliveries import MAX_DELIVERIES_AT_ONCE, Deliveries
from occ_worker.control.delivery import PATIENCE, Patience
from occ_worker.control.hub import HubControl
from occ_worker.notify.sending import notify
from occ_worker.relay.relay_pool import RelayPool

log = logging.getLogger("occ.relay")


def run_executions(config: HubConfig) -> None:
    """Consume the executions queue until SIGTERM; the next process takes over its relays."""
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
    logging.shutdown()
    os._exit(0)  # a relay that waits for its agent would be waited for; every row is as it should be


def run_control(config: HubConfig, patience: Patience = PATIENCE) -> None:
    """Consume the control queue until SIGTERM; `patience` is the one with the receivers of webhooks."""
    database = db.Database(config.database)
    queue = open_queue(config, "control")
    executions_queue = open_queue(config, "executions")
    wake_worker = waker(config)
    agents = Agents(database, config.heartbeat_seconds, config.forget_agents_days)
    control = HubControl(
        config,
        database,
        agents,
        Calls(agents, config.run / "links"),
        Ringer(config.run / "tail"),
        Deliveries(database, patience, partial(notify, config, database, patience.seconds)),
        queued=executions_queue.pending_count,
        ring=wake_worker,
    )
    tasks.hub_control(queue, lambda: control)
    control.make_room_for_log()
    control.reconcile_uploads()
    consumer = ControlConsumer(
        queue,
        workers=CONTROL_THREADS + MAX_DELIVERIES_AT_ONCE,
        worker_type="thread",
        graceful_signal="TERM",
        shutdown_timeout=1,
    )
    consumer.run()
    control.close()


def main() -> None:
    prepare_daemon()
    config = configuration.load_hub()
    part = {"executions": "worker"}.get(sys.argv[1], sys.argv[1])
    log_to_stderr(part, config.log_format, config.logs / f"{part}.log")
    allow_many_files()  # each relay has a connection
    logging.getLogger("huey").setLevel(logging.WARNING)
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # the caller reports errors of a reply
    config.make_folders()
    schema.prepare_schema(config)
    {"executions": run_executions, "control": run_control}[sys.argv[1]](config)


if __name__ == "__main__":
    main()
