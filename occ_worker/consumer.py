"""The two consumer processes: `python -m occ_worker.consumer executions` and `… control`.

Huey starts, watches and replaces the workers. What is changed here: children die with their parent, a stop is heard
at once, and periodic jobs are looked at each second.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huey.consumer import Consumer, ForkSafeFlag, ProcessEnvironment, Scheduler, ThreadEnvironment, WorkerRecycle
from huey.consumer import Worker as HueyWorker

from occ_app import config as configuration
from occ_app import db
from occ_app.config import Config
from occ_app.doorbell import Doorbell, Ringer
from occ_app.identity import own_identity
from occ_app.kernel import become_subreaper, die_with_parent
from occ_app.logs import log_to_stderr
from occ_worker import claude, runner, tasks
from occ_worker.control import Control
from occ_worker.heartbeat import Heartbeat
from occ_worker.listener import GRACE_SECONDS, Worker
from occ_worker.process import Launcher
from occ_worker.queues import open_queue

if TYPE_CHECKING:
    from occ_app.hub_client import HubClient

CONTROL_THREADS = 4


class _Stop:
    """Set by SIGTERM in a worker; `descriptor` becomes readable, so that whatever waits wakes."""

    def __init__(self) -> None:
        self.descriptor, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.set = False

    def __call__(self, *_: Any) -> None:
        if not self.set:
            self.set = True
            os.write(self._write, b"\0")


class _WorkerEnvironment(ProcessEnvironment):
    """Forked workers that die with the consumer and take SIGTERM as "end your execution and leave"."""

    def __init__(self, *signals: Any) -> None:
        super().__init__(*signals)
        self._parent = os.getpid()

    def init_child(self, process: Any) -> None:
        die_with_parent(self._parent)
        stop = _Stop()
        process.huey.stop = stop
        process.huey.storage.wake = stop.descriptor
        signal.signal(signal.SIGTERM, stop)
        for ignored in (signal.SIGINT, signal.SIGHUP):  # a terminal's signals are the supervisor's to handle
            signal.signal(ignored, signal.SIG_IGN)

    def create_process(self, runnable: Any, name: str) -> Any:
        return _NoProcess() if name == "Scheduler" else super().create_process(runnable, name)

    def is_alive(self, process: Any) -> bool:
        return isinstance(process, _NoProcess) or super().is_alive(process)


class _NoProcess:
    """Stands where Huey has a process for jobs that are due later: this queue has none of them, and memory is dear."""

    pid = None

    def start(self) -> None: ...

    def join(self, timeout: float | None = None) -> None: ...

    def is_alive(self) -> bool:
        return False


class _OneUntilTold(HueyWorker):
    """A worker process's loop, which ends when that process is told to."""

    def loop(self, now: Any = None) -> None:
        super().loop(now)
        if self.huey.stop.set:
            raise WorkerRecycle


class _StoppedAtOnce(Consumer):
    """Huey looks now and then whether a signal came; here the signal also wakes whoever waits for the stop."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._stop_flag_timeout = 1.0  # between looks at the workers' health

    def _handle_signal(self, signum: int, frame: Any) -> None:
        super()._handle_signal(signum, frame)
        self.stop_flag.set()


class _ExecutionsConsumer(_StoppedAtOnce):
    worker_class = _OneUntilTold

    def get_environment(self, _: str) -> _WorkerEnvironment:
        return _WorkerEnvironment(self._graceful_sig, self._interrupt_sig)


class _EachSecond(Scheduler):
    periodic_task_seconds = 1


class _ControlEnvironment(ThreadEnvironment):
    def get_stop_flag(self) -> ForkSafeFlag:
        """A pipe: unlike a lock, a signal's handler may set it whatever it interrupts."""
        return ForkSafeFlag()


class _ControlConsumer(_StoppedAtOnce):
    scheduler_class = _EachSecond

    def get_environment(self, _: str) -> _ControlEnvironment:
        return _ControlEnvironment(self._graceful_sig, self._interrupt_sig)

    def start(self) -> None:
        self.huey.storage.wake = self.stop_flag._r  # those that wait for a job hear of the stop, too
        super().start()


def run_executions(config: Config) -> None:
    """Consume the executions queue with as many processes as executions may run at once, until SIGTERM."""
    queue = open_queue(config, "executions")
    parts: list[Worker] = []
    put = tasks.executions(queue, lambda: runner.run_next(parts[0]))

    @queue.on_startup()  # type: ignore[untyped-decorator]  # huey is untyped
    def open_parts() -> None:
        """In the forked worker: nothing that holds a file or a lock crosses the fork."""
        become_subreaper()
        launcher = Launcher(claude.environment(config))
        launcher.prepare()
        parts.append(
            Worker(
                config=config,
                db=db.Database(config.database),
                identity=own_identity(),
                readers=Ringer(config.run / "tail"),
                bell=Doorbell(config.run / "worker"),
                launcher=launcher,
                wake=queue.stop.descriptor,
                stopping=lambda: queue.stop.set,
                ring_queue=lambda: put(""),
            )
        )

    @queue.on_shutdown()  # type: ignore[untyped-decorator]  # huey is untyped
    def close_parts() -> None:
        parts[0].launcher.close()
        parts[0].bell.close()

    consumer = _ExecutionsConsumer(
        queue,
        workers=config.workers,
        worker_type="process",
        periodic=False,
        scheduler_interval=60,
        health_check_interval=1,
        graceful_signal="TERM",
        shutdown_timeout=GRACE_SECONDS,
    )
    gc.freeze()  # what is there now is shared by all workers, as long as no collection writes to it
    consumer.run()


def run_control(config: Config) -> None:
    """Consume the control queue until SIGTERM, then send the last heartbeat."""
    database = db.Database(config.database)
    queue = open_queue(config, "control")
    executions_queue = open_queue(config, "executions")
    put = tasks.executions(executions_queue, _nobody)
    control = Control(
        config,
        database,
        Ringer(config.run / "tail"),
        Heartbeat(config, database, configuration.listening_port(), lambda seconds: _hub(config, seconds)),
        queued=executions_queue.pending_count,
        ring=lambda: put(""),
    )
    tasks.control(queue, lambda: control)
    control.settle_uploads()
    consumer = _ControlConsumer(
        queue, workers=CONTROL_THREADS, worker_type="thread", graceful_signal="TERM", shutdown_timeout=1
    )
    consumer.run()
    control.last_heartbeat()


def _hub(config: Config, seconds: float) -> HubClient:
    from occ_app.hub_client import HubClient

    assert config.remote_url is not None  # noqa: S101 - only an agent with a hub has heartbeats
    return HubClient(config.remote_url, seconds)


def _nobody() -> None:
    raise RuntimeError("the control process puts executions in and runs none")


def main() -> None:
    config = configuration.load()
    log_to_stderr()
    logging.getLogger("huey").setLevel(logging.WARNING)
    config.make_folders()
    db.ensure_schema(config.database, Path(config.home / "lock" / "migrate"))
    {"executions": run_executions, "control": run_control}[sys.argv[1]](config)


if __name__ == "__main__":
    main()
