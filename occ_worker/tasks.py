"""The jobs on the two queues, a line or two each: what they do is in the modules they call."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from huey import Huey

from occ_app.database.database import translated
from occ_app.errors import OCCError

if TYPE_CHECKING:
    from occ_worker.control.agent import Control
    from occ_worker.control.hub import HubControl
    from occ_worker.control.upkeep import Upkeep


def executions(queue: Huey, run_next: Callable[[], object]) -> Callable[[str], None]:
    """Define the job of the `executions` queue; `run_next` runs the oldest execution that can run."""

    @queue.task(name="execute")  # type: ignore[untyped-decorator]  # huey is untyped
    def execute(_: str) -> None:
        """Run the oldest execution that can run, whichever one rang."""
        run_next()

    return _putter(queue, execute)


def elsewhere() -> NoReturn:
    """In a process that puts jobs in and runs none."""
    raise RuntimeError("this process puts jobs in and runs none")


def control(queue: Huey, parts: Callable[[], Control]) -> Callable[[int], None]:
    """Define the jobs of the `control` queue; `parts` gives what they work with."""

    @queue.task(name="make_workspace")  # type: ignore[untyped-decorator]  # huey is untyped
    def make_workspace(number: int) -> None:
        parts().make_workspace(number)

    @queue.periodic_task(lambda _: parts().heartbeat_due(), name="heartbeat", expires=25)  # type: ignore[untyped-decorator]  # huey is untyped
    def heartbeat() -> None:
        parts().heartbeat()

    @queue.periodic_task(_every(2, lambda: parts().under_way()), name="reap", expires=2)  # type: ignore[untyped-decorator]  # huey is untyped
    def reap() -> None:
        parts().reap()

    _upkeep(queue, parts)

    @queue.periodic_task(_every(60), name="probe_cli", expires=60)  # type: ignore[untyped-decorator]  # huey is untyped
    def probe_cli() -> None:
        parts().probe_cli()

    return _putter(queue, make_workspace)


def hub_control(queue: Huey, parts: Callable[[], HubControl]) -> Callable[[int], None]:
    """Define the jobs of a hub's `control` queue; `parts` gives what they work with."""

    @queue.task(name="make_workspace")  # type: ignore[untyped-decorator]  # huey is untyped
    def make_workspace(number: int) -> None:
        parts().make_workspace(number)

    @queue.periodic_task(_every(2, lambda: parts().under_way()), name="reap", expires=2)  # type: ignore[untyped-decorator]  # huey is untyped
    def reap() -> None:
        parts().reap()

    @queue.periodic_task(_every(2, lambda: parts().to_be_reached()), name="reach", expires=2)  # type: ignore[untyped-decorator]  # huey is untyped
    def reach() -> None:
        parts().reach()

    @queue.task(name="deliver")  # type: ignore[untyped-decorator]  # huey is untyped
    def deliver(number: int) -> None:
        parts().deliveries.deliver(number, _putter(queue, deliver))

    def due() -> bool:
        return parts().deliveries.due()

    @queue.periodic_task(_every(2, due), name="deliver_due", expires=2)  # type: ignore[untyped-decorator]  # huey is untyped
    def deliver_due() -> None:
        parts().deliveries.put_due(_putter(queue, deliver))

    _upkeep(queue, parts)
    return _putter(queue, make_workspace)


def _upkeep(queue: Huey, parts: Callable[[], Upkeep]) -> None:
    """Define the jobs that agents and hubs have in common."""

    @queue.periodic_task(_every(5, lambda: parts().log_is_long()), name="checkpoint", expires=5)  # type: ignore[untyped-decorator]  # huey is untyped
    def checkpoint() -> None:
        parts().checkpoint()

    @queue.periodic_task(_every(2, lambda: parts().unindexed()), name="index", expires=2)  # type: ignore[untyped-decorator]  # huey is untyped
    def index() -> None:
        parts().index()

    @queue.periodic_task(_every(60), name="forget", expires=60)  # type: ignore[untyped-decorator]  # huey is untyped
    def forget() -> None:
        parts().forget()


def _putter(queue: Huey, task: Any) -> Callable[[Any], None]:
    def put(argument: Any) -> None:
        """Put one in. Raises what a failing database means to a caller."""
        try:
            queue.enqueue(task.s(argument))
        except sqlite3.DatabaseError as error:
            raise translated(error) from error

    return put


def _every(seconds: float, wanted: Callable[[], bool] = lambda: True) -> Callable[[object], bool]:
    """Due at the first look and then every `seconds`, if it is `wanted`; huey's own crontab knows minutes only."""
    due = 0.0

    def is_due(_: object) -> bool:
        nonlocal due
        now = time.monotonic()
        if now < due - 0.5:  # the scheduler looks once a second, give or take
            return False
        due = max(due + seconds, now)
        try:
            return wanted()
        except OCCError:
            return True  # a held database; the job itself waits for it, where the scheduler must not die of it

    return is_due
