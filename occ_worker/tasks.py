"""The jobs on the two queues, a line or two each.

The modules they call do the work.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from huey import Huey

from occ_app.errors import OCCError
from occ_app.queue import task_of

if TYPE_CHECKING:
    from occ_worker.control.agent import Control
    from occ_worker.control.hub import HubControl
    from occ_worker.control.upkeep import Upkeep


def executions(queue: Huey, run_next: Callable[[], object]) -> Callable[[str], None]:
    """Define the job of the `executions` queue.

    `run_next` runs the oldest execution that can run.
    """

    return task_of(queue, "execute", lambda _: run_next())


def control(queue: Huey, services: Callable[[], Control]) -> Callable[[int], None]:
    """Define the jobs of the `control` queue; `services` returns their object."""

    @queue.periodic_task(lambda _: services().heartbeat_due(), name="heartbeat", expires=25)  # type: ignore[untyped-decorator]  # huey is untyped
    def heartbeat() -> None:
        services().heartbeat()

    @queue.periodic_task(_every(1, lambda: services().sharing_due()), name="share", expires=2)  # type: ignore[untyped-decorator]  # huey is untyped
    def share() -> None:
        services().share()

    @queue.periodic_task(_every(2, lambda: services().under_way()), name="reap", expires=2)  # type: ignore[untyped-decorator]  # huey is untyped
    def reap() -> None:
        services().reap()

    _upkeep(queue, services)

    @queue.periodic_task(_every(60), name="probe_cli", expires=60)  # type: ignore[untyped-decorator]  # huey is untyped
    def probe_cli() -> None:
        services().probe_cli()

    return task_of(queue, "unpack_upload", lambda number: services().unpack_upload(number))


def hub_control(queue: Huey, services: Callable[[], HubControl]) -> Callable[[int], None]:
    """Define the jobs of a hub's `control` queue; `services` returns their object."""

    @queue.periodic_task(_every(2, lambda: services().under_way()), name="reap", expires=2)  # type: ignore[untyped-decorator]  # huey is untyped
    def reap() -> None:
        services().reap()

    @queue.periodic_task(_every(2, lambda: services().to_be_reached()), name="reach", expires=2)  # type: ignore[untyped-decorator]  # huey is untyped
    def reach() -> None:
        services().reach()

    enqueue_delivery = task_of(queue, "deliver", lambda number: services().deliveries.deliver(number, enqueue_delivery))

    def due() -> bool:
        return services().deliveries.due()

    @queue.periodic_task(_every(2, due), name="deliver_due", expires=2)  # type: ignore[untyped-decorator]  # huey is untyped
    def deliver_due() -> None:
        services().deliveries.put_due(enqueue_delivery)

    _upkeep(queue, services)
    return task_of(queue, "unpack_upload", lambda number: services().unpack_upload(number))


def _upkeep(queue: Huey, services: Callable[[], Upkeep]) -> None:
    """Define the jobs that agents and hubs have in common."""

    @queue.periodic_task(_every(5, lambda: services().log_is_long()), name="checkpoint", expires=5)  # type: ignore[untyped-decorator]  # huey is untyped
    def checkpoint() -> None:
        services().checkpoint()

    @queue.periodic_task(_every(2, lambda: services().unindexed()), name="index", expires=2)  # type: ignore[untyped-decorator]  # huey is untyped
    def index() -> None:
        services().index()

    @queue.periodic_task(_every(60), name="forget", expires=60)  # type: ignore[untyped-decorator]  # huey is untyped
    def forget() -> None:
        services().forget()


def _every(seconds: float, wanted: Callable[[], bool] = lambda: True) -> Callable[[object], bool]:
    """Return a schedule that is due at the first check and then every `seconds`.

    It is due only if it is `wanted`. Huey's own crontab has minutes only.
    """
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
