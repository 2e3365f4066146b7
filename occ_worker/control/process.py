"""An agent's control process: its queue, its heartbeat and its link."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

from occ_app.config import child_processes
from occ_app.config.config import Config
from occ_app.database import database as db
from occ_app.errors import OCCError
from occ_app.home import daemon, machine
from occ_app.home import notes as agent
from occ_app.queue import open_queue, waker
from occ_app.snapshots.store import snapshots_of
from occ_app.streams.doorbell import Ringer
from occ_worker import tasks
from occ_worker.consumers import CONTROL_THREADS, ControlConsumer
from occ_worker.control.agent import Control
from occ_worker.control.heartbeat import Heartbeat
from occ_worker.control.local_sharing import LocalSharing

if TYPE_CHECKING:
    from occ_app.client.hub_client import HubClient
    from occ_worker.control.link import LinkClient

LINK_SECONDS = 9.0  # for other processes to send their last data over the link; the supervisor's limit is shorter


def run_control(config: Config) -> None:
    """Consume the control queue until SIGTERM, then send the last heartbeat."""
    if child_processes.inherited_socket() is None:  # otherwise the supervisor has done it
        machine.begin_instance(config)
    database = db.Database(config.database)
    queue = open_queue(config, "control")
    executions_queue = open_queue(config, "executions")
    wake_worker = waker(config)
    port = child_processes.listening_port()
    link = _link(config, database, port)
    renew = link.renew if link else _nothing
    control = Control(
        config,
        database,
        Ringer(config.run / "tail"),
        Heartbeat(config, database, port, lambda url, seconds: _hub(config, url, seconds), renew),
        queued=executions_queue.pending_count,
        ring=wake_worker,
        snapshots=snapshots_of(config),
        sharing=LocalSharing(config, database, lambda url, seconds: _hub(config, url, seconds)),
    )
    tasks.control(queue, lambda: control)
    control.make_room_for_log()
    control.reconcile_uploads()
    consumer = ControlConsumer(
        queue, workers=CONTROL_THREADS, worker_type="thread", graceful_signal="TERM", shutdown_timeout=1
    )
    if link:
        sys.setswitchinterval(0.001)  # otherwise unpacking blocks the link's thread for 5 ms at a time
        link.start()
    consumer.run()
    control.close()
    control.last_heartbeat()
    if link:
        link.stop(LINK_SECONDS)
    database.close()


def _link(config: Config, database: db.Database, port: int) -> LinkClient | None:
    """Return the link with the hub; None for a standalone agent.

    A standalone agent does not load the WebSocket library, which saves memory.
    """
    if config.remote_url is None:
        return None
    from occ_worker.control.link import LinkClient

    def note(connected: bool) -> None:
        with contextlib.suppress(OCCError):  # a locked database; the next change is recorded
            agent.note(database, "link", {"connected": connected})

    local_address = (daemon.local_host(config.bind_address), port)
    instance = machine.instance(config)
    return LinkClient(config.remote_urls, config.state, local_address, note, config.remote_pin, instance=instance)


def _nothing() -> None:
    """Ignore a registration."""


def _hub(config: Config, url: str, seconds: float) -> HubClient:
    from occ_app.client.hub_client import HubClient

    return HubClient(url, seconds, config.remote_pin)
