"""Huey's consumers as OCC runs them.

Children die with their parent, a stop takes effect at once, and periodic jobs are checked each second. Huey itself
starts, watches and replaces the workers.
"""

from __future__ import annotations

import os
import signal
from typing import Any

from huey.consumer import Consumer, ForkSafeFlag, ProcessEnvironment, Scheduler, ThreadEnvironment, WorkerRecycle
from huey.consumer import Worker as HueyWorker

from occ_app.system.kernel import die_with_parent
from occ_app.system.strays import sweep_children

CONTROL_THREADS = 4  # of the control process of an agent or a hub


class _Stop:
    """A flag set by SIGTERM in a worker.

    `descriptor` becomes readable, so that every waiter wakes.
    """

    def __init__(self) -> None:
        self.descriptor, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.set = False

    def __call__(self, *_: Any) -> None:
        if not self.set:
            self.set = True
            os.write(self._write, b"\0")


class _WorkerEnvironment(ProcessEnvironment):
    """Forked workers that die with the consumer and end their execution at SIGTERM."""

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
            signal.signal(ignored, lambda *_: None)  # not SIG_IGN, which the CLI would inherit

    def create_process(self, runnable: Any, name: str) -> Any:
        return _NoProcess() if name == "Scheduler" else super().create_process(runnable, name)

    def is_alive(self, process: Any) -> bool:
        return process.is_alive() if isinstance(process, _NoProcess) else super().is_alive(process)


class _NoProcess:
    """A replacement for Huey's scheduler process.

    This queue has no scheduled jobs, and memory is scarce.
    """

    pid = None

    def __init__(self) -> None:
        self._alive = True  # until it is waited for: Huey restarts dead workers, and at the end counts live ones

    def start(self) -> None: ...

    def join(self, timeout: float | None = None) -> None:  # noqa: ARG002 - Huey's shape
        self._alive = False

    def is_alive(self) -> bool:
        return self._alive


class _OneUntilTold(HueyWorker):
    """The loop of a worker process, which ends at SIGTERM."""

    def loop(self, now: Any = None) -> None:
        super().loop(now)
        if self.huey.stop.set:
            raise WorkerRecycle


class _StoppedAtOnce(Consumer):
    """A consumer whose stop takes effect at once.

    Huey checks now and then whether a signal came; here the signal also wakes the waiters of the stop.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._stop_flag_timeout = 1.0  # between looks at the workers' health

    def _handle_signal(self, signum: int, frame: Any) -> None:
        super()._handle_signal(signum, frame)
        self.stop_flag.set()


class ProcessesConsumer(_StoppedAtOnce):
    """A consumer whose workers are processes, which die with it."""

    worker_class = _OneUntilTold

    def check_worker_health(self) -> Any:
        healthy = super().check_worker_health()
        if not healthy:  # a worker died; its children are now children of this process
            sweep_children({process.pid for _, process in self.worker_threads})
        return healthy

    def get_environment(self, _: str) -> _WorkerEnvironment:
        return _WorkerEnvironment(self._graceful_sig, self._interrupt_sig)


class _EachSecond(Scheduler):
    periodic_task_seconds = 1


class _ThreadsEnvironment(ThreadEnvironment):
    def get_stop_flag(self) -> ForkSafeFlag:
        """Make a pipe: unlike a lock, a signal handler may write to it at any point."""
        return ForkSafeFlag()


class ThreadsConsumer(_StoppedAtOnce):
    """A consumer whose workers are threads."""

    def get_environment(self, _: str) -> _ThreadsEnvironment:
        return _ThreadsEnvironment(self._graceful_sig, self._interrupt_sig)

    def start(self) -> None:
        self.huey.storage.wake = self.stop_flag._r  # those that wait for a job hear of the stop, too
        super().start()


class ControlConsumer(ThreadsConsumer):
    """A consumer that checks periodic jobs each second; Huey's own checks each minute."""

    scheduler_class = _EachSecond
