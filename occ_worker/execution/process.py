"""An agent's executions process and the workers that it forks.

Each worker runs one execution at a time.
"""

from __future__ import annotations

import contextlib
import gc
import logging
from collections.abc import Callable

from huey import Huey

from occ_app.config.config import Config
from occ_app.database import database as db
from occ_app.errors import OCCError
from occ_app.queue import open_queue
from occ_app.snapshots.store import snapshots_of
from occ_app.streams.doorbell import Doorbell, Ringer
from occ_app.system.kernel import become_subreaper
from occ_app.system.process_identity import own_identity
from occ_worker import tasks
from occ_worker.consumers import ProcessesConsumer
from occ_worker.execution import child, runner
from occ_worker.execution import command as claude
from occ_worker.execution.child import Launcher
from occ_worker.execution.context import ExecutionContext
from occ_worker.execution.driver import GRACE_SECONDS
from occ_worker.execution.kept import Kept
from occ_worker.execution.spares import Spares

log = logging.getLogger("occ.worker")


def run_executions(config: Config) -> None:
    """Consume the executions queue until SIGTERM.

    There are as many processes as executions may run at once.
    """
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
    child.find_setpriv()  # once for all workers
    gc.freeze()  # existing objects are shared by all workers, as long as no collection writes to them
    consumer.run()


def _context(config: Config, queue: Huey, ring_queue: Callable[[], None]) -> ExecutionContext:
    """Open the objects of a forked worker.

    Nothing that holds a file or a lock crosses the fork.
    """
    become_subreaper()
    environment = claude.environment(config)
    launcher = Launcher(environment)
    launcher.prepare()
    database = db.Database(config.database)
    with contextlib.suppress(OCCError):  # a held database; the first execution opens them then
        database.prepare()
    identity, workers, bell = own_identity(), Ringer(config.run / "worker"), Doorbell(config.run / "worker")
    kept = Kept(config, database, identity, lambda: workers.ring("kept"), lambda: queue.stop.set)
    spares = Spares(config, database, launcher, environment, kept, lambda: queue.stop.set)
    queue.storage.idle = _never_failing(spares.keep)
    context = ExecutionContext(
        config=config,
        db=database,
        identity=identity,
        readers=Ringer(config.run / "tail"),
        bell=bell,
        launcher=launcher,
        spares=spares,
        wake=queue.stop.descriptor,
        stopping=lambda: queue.stop.set,
        ring_queue=ring_queue,
        snapshots=snapshots_of(config),
    )
    queue.storage.called = (bell.fileno(), lambda: runner.run_called(context))
    return context


def _never_failing(keep: Callable[[], bool]) -> Callable[[], bool]:
    """Return `keep` without its errors.

    A worker without a spare process works as well.
    """

    def idle() -> bool:
        try:
            return keep()
        except Exception:
            log.exception("the spare process cannot be looked after")
            return False

    return idle
