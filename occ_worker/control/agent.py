"""An agent's control process: uploads, heartbeats and lost workers' executions."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

from occ_app.claude import program as claude_cli
from occ_app.claude import projects, transcripts
from occ_app.config.config import Config
from occ_app.database.database import Database
from occ_app.executions import approvals, holding, lifecycle, parking, process_marks, retention
from occ_app.executions import changes as rows
from occ_app.executions import queries as executions
from occ_app.executions.records import Execution, Outcome
from occ_app.home import notes as agent
from occ_app.snapshots.store import Snapshots
from occ_app.streams import tail
from occ_app.streams.doorbell import Ringer
from occ_app.system.process_identity import boot_id
from occ_app.system.strays import sweep_marked
from occ_app.workspaces import archives, restores, unfinished, upload_jobs, uploads
from occ_app.workspaces import workspace as workspaces
from occ_worker import changes
from occ_worker.control.heartbeat import Heartbeat
from occ_worker.control.local_sharing import LocalSharing
from occ_worker.control.snapshot_upkeep import SnapshotUpkeep
from occ_worker.control.upkeep import Upkeep

log = logging.getLogger("occ.control")

_OVERDUE_SECONDS = 30.0  # past its limit and grace, before a worker counts as stuck
_CANCEL_OVERDUE_SECONDS = 20.0  # the same after a cancel


class Control(Upkeep):
    """The jobs of an agent's control process.

    `queued` counts the wake-ups on the executions queue; `ring` adds one.
    `now` is the monotonic clock, in seconds, which decides when a worker counts as stuck.
    """

    def __init__(
        self,
        config: Config,
        db: Database,
        readers: Ringer,
        heartbeat: Heartbeat,
        queued: Callable[[], int],
        ring: Callable[[], None],
        snapshots: Snapshots,
        sharing: LocalSharing,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(config, db)
        self._snapshots = snapshots
        self._snapshot_upkeep = SnapshotUpkeep(config, db, snapshots)
        self._recording = threading.Lock()
        self._readers = readers
        self._heartbeat = heartbeat
        self._sharing = sharing
        self._queued = queued
        self._ring = ring
        self._now = now
        self._reaping = threading.Lock()
        self._cancels_seen: dict[int, float] = {}  # monotonic times, by the execution's number

    def reconcile_uploads(self) -> None:
        """Undo the unfinished work of a killed predecessor, and wake its callers."""
        for number in upload_jobs.abandon_running(self._db):
            self._readers.ring(tail.job_key(number))
        unfinished.undo(self._db, self._config.workspaces)

    def _unpack(self, number: int) -> None:
        limits = archives.Limits(self._config.max_unpacked_bytes, self._config.max_files, self._config.trust_workspaces)
        claude = projects.claude_folder(self._config.cli_environment)
        uploads.run(self._db, number, self._config.workspaces, limits, claude, self._snapshots)
        self._readers.ring(tail.job_key(number))

    def heartbeat_due(self) -> bool:
        return self._heartbeat.due()

    def heartbeat(self) -> None:
        self._heartbeat.beat()

    def sharing_due(self) -> bool:
        return self._sharing.due()

    def share(self) -> None:
        self._sharing.share()

    def last_heartbeat(self) -> None:
        self._heartbeat.last()

    def probe_cli(self) -> None:
        """Record the installed CLI, which `/health` shows."""
        cli = claude_cli.probe(self._config)
        problem = claude_cli.missing(self._config) if cli.path is None else None
        file = [] if cli.path is None else claude_cli.file_identity(cli.path)
        agent.note(self._db, "claude", {"path": cli.path, "version": cli.version, "problem": problem, "file": file})

    def under_way(self) -> bool:
        """Return whether `reap` may have anything to do.

        That is the case while an execution runs, can start, or still holds its workspace.
        """
        return any(executions.counts(self._db)) or rows.held(self._db) or executions.claimable(self._db) > 0

    def forget(self) -> None:
        super().forget()
        self._snapshot_upkeep.keep()

    def forget_aged(self) -> None:
        self._expire_parked()
        rows.forget_aged(self._db, retention.older_than(self._config.retention_days))

    def _expire_parked(self) -> None:
        """End executions that waited too long for a person.

        Called only while the clock is trusted.
        """
        for execution in parking.overdue(self._db):
            if lifecycle.expire(self._db, execution.number):
                log.info("execution %s: nobody answered in time", execution.execution_id)
                self._readers.ring(tail.execution_key(execution.number))
                self._ring()

    def reap(self) -> None:
        """Finish executions of dead workers, kill stuck workers, and wake idle ones."""
        if not self._reaping.acquire(blocking=False):
            return
        try:
            running = executions.running(self._db)
            self._cancels_seen = {
                x.number: self._cancels_seen[x.number] for x in running if x.number in self._cancels_seen
            }
            for execution in running:
                self._reconcile(execution)
            idle = self._config.workers - len(running)
            if idle > 0 and self._queued() == 0:
                for _ in range(min(idle, executions.claimable(self._db))):
                    self._ring()
        finally:
            self._reaping.release()
        self._record_lost()

    def _record_lost(self) -> None:
        """Record the changes of executions that were lost with their worker.

        A later `reap` does not wait for it.
        """
        if not self._recording.acquire(blocking=False):
            return
        try:
            for sentence in restores.recover(self._db, self._snapshots):
                log.warning("%s", sentence)
            changes.record_lost(
                self._db, self._snapshots, lambda execution: self._readers.ring(tail.execution_key(execution.number))
            )
        finally:
            self._recording.release()

    def _is_overdue(self, execution: Execution) -> bool:
        """Return whether its worker should have ended it by now.

        It should have at the time limit, and after a cancel.
        """
        now = self._now()
        if execution.cancel_code is None:
            return now > (execution.deadline or 0) + _OVERDUE_SECONDS
        seen_at = self._cancels_seen.setdefault(execution.number, now)
        return now > seen_at + _CANCEL_OVERDUE_SECONDS

    def _reconcile(self, execution: Execution) -> None:
        owner = execution.claimed_by
        if owner is not None and owner.alive():
            if owner.boot_id == boot_id() and self._is_overdue(execution):
                log.error("execution %s: worker %d is stuck and is killed", execution.execution_id, owner.pid)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(owner.pid, signal.SIGKILL)
            return
        # None of its processes may outlive its end.
        for mark in (execution.execution_id, *process_marks.of(self._db, execution.number)):
            sweep_marked(mark, self._config.home)
        if self._was_held(execution):
            holding.confirm(self._db, execution.number)
        if parking.park(self._db, execution.number, None, self._config.approval_seconds):
            log.warning("execution %s: its process died before it had an answer; it is parked", execution.execution_id)
            self._readers.ring(tail.execution_key(execution.number))
            return
        outcome = parking.spent(self._db, execution.number).with_outcome(self._lost(execution))
        if execution.cancel_code is not None:
            outcome = Outcome.failure(execution.cancel_code, "The execution was cancelled.")
        if lifecycle.finish(self._db, execution.number, outcome):
            log.warning("execution %s was lost with its worker", execution.execution_id)
            self._readers.ring(tail.execution_key(execution.number))

    def _was_held(self, execution: Execution) -> bool:
        """Return whether another process can continue a call that the dead one held.

        It can while the session still waits for that call: the model is then asked again, and no call runs twice.
        """
        call, workspace = holding.held(self._db, execution.number), None
        if call is not None:
            workspace = workspaces.numbered(self._db, execution.workspace_generation)
        if call is None or workspace is None or execution.session_id is None:
            return False
        claude = projects.claude_folder(self._config.cli_environment)
        return transcripts.waits_for(claude, Path(workspace.path), execution.session_id, call)

    def _lost(self, execution: Execution) -> Outcome:
        tool = approvals.delivered_tool(self._db, execution.number)
        ran = "" if tool is None else f" A person had allowed {tool}, so that tool may have run."
        return Outcome.failure(
            "WORKER_LOST",
            f"The process that ran this died, so it was ended and not run again.{ran} Send it again if you need it.",
        )
