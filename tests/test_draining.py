"""A drain waits for every run, also for one that a worker was just about to begin."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from occ_app.cli import draining
from occ_app.database.database import Database
from occ_app.executions import lifecycle, queries
from occ_app.executions.records import Outcome
from occ_app.system.process_identity import own_identity
from tests.test_conversations import accept, rows

__all__ = ["rows"]  # the fixture


def test_a_run_that_a_worker_may_still_begin_is_waited_for(rows: Database) -> None:
    accept(rows, "first", "alpha")
    asked, go_on = threading.Event(), threading.Event()

    def may() -> bool:
        asked.set()
        return go_on.wait(60)  # the refusal of work comes now

    with ThreadPoolExecutor(2) as pool:
        claim = pool.submit(lifecycle.claim, rows, own_identity(), may)
        try:
            assert asked.wait(60)
            assert queries.running(rows) == []  # a look at the rows alone would end the drain
            idle = pool.submit(draining.is_idle, rows)
        finally:
            go_on.set()
        assert idle.result() is False
        claimed = claim.result()
    assert claimed is not None
    lifecycle.finish(rows, claimed.number, Outcome("succeeded", "complete", {}))
    assert draining.is_idle(rows)


def test_nothing_is_claimed_once_work_is_refused(rows: Database) -> None:
    accept(rows, "first", "alpha")
    assert lifecycle.claim(rows, own_identity(), lambda: False) is None
    assert queries.get(rows, "first").state == "queued"
