"""The agent's two consumer processes: `python -m occ_worker.agent executions` and `… control`."""

from __future__ import annotations

import contextlib
import gc
import logging
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from huey import Huey

from occ_app.config import child_processes
from occ_app.config import config as configuration
from occ_app.config.config import Config
from occ_app.database import database as db
from occ_app.database import schema
from occ_app.errors import OCCError
from occ_app.home import daemon, machine
from occ_app.home import notes as agent
from occ_app.queue import open_queue, waker
from occ_app.snapshots.store import snapshots_of
from occ_app.streams.doorbell import Doorbell, Ringer
from occ_app.system.inheritance import prepare_daemon
from occ_app.system.kernel import become_subreaper
from occ_app.system.logs import log_to_stderr
from occ_app.system.process_identity import own_identity
from occ_worker import tasks
from occ_worker.consumers import ControlConsumer, ProcessesConsumer
from occ_worker.control.agent import Control
from occ_worker.control.heartbeat import Heartbeat
from occ_worker.control.local_sharing import LocalSharing
from occ_worker.execution import command as claude
from occ_worker.execution import runner
from occ_worker.execution.child import Launcher
from occ_worker.execution.context import ExecutionContext
from occ_worker.execution.driver import GRACE_SECONDS
from occ_worker.execution.spares import Spares

if TYPE_CHECKING:
    from occ_app.client.hub_client import HubClient
    from occ_worker.control.link import LinkClient

log = logging.getLogger("occ.worker")

CONTROL_THREADS = 4
LINK_SECONDS = 9.0  # for the other parts to say their last over the link; who stops the daemon waits less


def run_executions(config: Config) -> None:
    """Consume the executions queue with as many processes as executions may run at once, until SIGTERM."""
    queue = open_queue(config, "executions")
    contexts: list[ExecutionContext] = []
    put = tasks.executions(queue, lambda: runner.run_next(contexts[0]))

    @queue.on_startup()  # type: ignore[untyped-decorator]  # huey is untyped
    def open_context() -> None:
        contexts.append(_context(config, queue, lambda: put("")))

    @queue.on_shutdown()  # type: ignore[untyped-decorator]  # huey is untyped
    def close_context() -> None:
        contexts[0].spares.close()
        contexts[0].launcher.close()
        contexts[0].bell.close()

    consumer = ProcessesConsumer(
        queue,
        workers=config.workers,
        worker_type="process",
        periodic=False,
        scheduler_interval=60,
        health_check_interval=1,
        graceful_signal="TERM",
        shutdown_timeout=GRACE_SECONDS,
    )
    become_subreaper()
    gc.freeze()  # existing objects are shared by all workers, as long as no collection writes to them
    consumer.run()


def _context(config: Config, queue: Huey, ring_queue: Callable[[], None]) -> ExecutionContext:
    """Open the objects of a forked worker: nothing that holds a file or a lock crosses the fork."""
    become_subreaper()
    environment = claude.environment(config)
    launcher = Launcher(environment)
    launcher.prepare()
    database = db.Database(config.database)
    with contextlib.suppress(OCCError):  # a held database; the first execution opens them then
        database.prepare()
    spares = Spares(config, database, launcher, environment, lambda: queue.stop.set)
    queue.storage.idle = _never_failing(spares.keep)
    return ExecutionContext(
        config=config,
        db=database,
        identity=own_identity(),
        readers=Ringer(config.run / "tail"),
        bell=Doorbell(config.run / "worker"),
        launcher=launcher,
        spares=spares,
        wake=queue.stop.descriptor,
        stopping=lambda: queue.stop.set,
        ring_queue=ring_queue,
        snapshots=snapshots_of(config),
    )


def _never_failing(keep: Callable[[], bool]) -> Callable[[], bool]:
    """Return `keep` without its errors: a worker without a spare process works as well."""

    def idle() -> bool:
        try:
            return keep()
        except Exception:
            log.exception("the spare process cannot be looked after")
            return False

    return idle


def run_control(config: Config) -> None:
    """Consume the control queue until SIGTERM, then send the last heartbeat."""
    if child_processes.inherited_socket() is None:  # else the supervisor has done it
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
        sys.setswitchinterval(0.001)  # else unpacking an upload keeps the link's thread waiting for 5 ms at a time
        link.start()
    consumer.run()
    control.close()
    control.last_heartbeat()
    if link:
        link.stop(LINK_SECONDS)


def _link(config: Config, database: db.Database, port: int) -> LinkClient | None:
    """The link with the hub; None for a standalone agent, which does without the memory of WebSockets."""
    if config.remote_url is None:
        return None
    from occ_worker.control.link import LinkClient

    def note(connected: bool) -> None:
        with contextlib.suppress(OCCError):  # a held database; the next change is recorded
            agent.note(database, "link", {"connected": connected})

    local_address = (daemon.local_host(config.bind_address), port)
    instance = machine.instance(config)
    return LinkClient(config.remote_urls, config.state, local_address, note, config.remote_pin, instance=instance)


def _nothing() -> None:
    """Nobody waits for a registration."""


def _hub(config: Config, url: str, seconds: float) -> HubClient:
    from occ_app.client.hub_client import HubClient

    return HubClient(url, seconds, config.remote_pin)


def main() -> None:
    prepare_daemon()
    config = configuration.load()
    part = {"executions": "worker"}.get(sys.argv[1], sys.argv[1])
    log_to_stderr(part, config.log_format, config.logs / f"{part}.log")
    logging.getLogger("huey").setLevel(logging.WARNING)
    config.make_folders()
    schema.prepare_schema(config)
    {"executions": run_executions, "control": run_control}[sys.argv[1]](config)


if __name__ == "__main__":
    main()
