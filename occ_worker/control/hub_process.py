"""The hub's control process: its queue, webhooks, and calls to the machines."""

from __future__ import annotations

from functools import partial

from occ_app.config.config import HubConfig
from occ_app.database import database as db
from occ_app.hub.agent_clients import Calls
from occ_app.hub.agents import Agents
from occ_app.queue import open_queue, waker
from occ_app.streams.doorbell import Ringer
from occ_worker import tasks
from occ_worker.consumers import CONTROL_THREADS, ControlConsumer
from occ_worker.control.deliveries import MAX_DELIVERIES_AT_ONCE, Deliveries
from occ_worker.control.delivery import PATIENCE, Patience
from occ_worker.control.hub import HubControl
from occ_worker.notify.sending import notify


def run_control(config: HubConfig, patience: Patience = PATIENCE) -> None:
    """Consume the control queue until SIGTERM.

    `patience` is the one with the receivers of webhooks.
    """
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
    database.close()
