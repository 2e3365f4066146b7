"""The objects that one worker process works with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from occ_app.config.config import Config
from occ_app.database.database import Database
from occ_app.snapshots.store import Snapshots
from occ_app.streams.doorbell import Doorbell, Ringer
from occ_app.system.process_identity import ProcessIdentity
from occ_worker.execution.child import Launcher
from occ_worker.execution.spares import Spares


@dataclass(frozen=True)
class ExecutionContext:
    """The objects that one worker process works with.

    `stopping` returns whether the daemon stops; `wake` is readable from then on.
    """

    config: Config
    db: Database
    identity: ProcessIdentity
    readers: Ringer
    bell: Doorbell
    launcher: Launcher
    spares: Spares
    wake: int
    stopping: Callable[[], bool]
    ring_queue: Callable[[], None]
    snapshots: Snapshots
