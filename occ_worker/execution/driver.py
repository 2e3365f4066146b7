"""Drive one CLI process until it is gone.

The loop reads the CLI's new output, stores it in one transaction, rings, and looks at the clock. It never waits
for a reader of the events: nothing downstream can slow the CLI or make it lose output.
"""

from __future__ import annotations

import contextlib
import logging
import select
import selectors
import signal
import time
from dataclasses import replace
from typing import Any

from occ_app.errors import OCCError
from occ_app.executions import queries as executions
from occ_app.executions.events import NewEvent
from occ_app.executions.records import Execution, Outcome
from occ_app.executions.spent import Spent
from occ_app.streams import tail
from occ_app.system.strays import sweep_children
from occ_worker.execution import outcome as verdict
from occ_worker.execution import servers, steering, verdicts
from occ_worker.execution.child import READ_BYTES, read
from occ_worker.execution.child_input import ChildInput, first_lines
from occ_worker.execution.context import ExecutionContext
from occ_worker.execution.deferral import Deferral, Suspension
from occ_worker.execution.limits import Limits
from occ_worker.execution.permissions import Permissions
from occ_worker.execution.resumable import Resumable
from occ_worker.execution.starting import Process
from occ_worker.execution.steering import Steering
from occ_worker.execution.termination import Termination
from occ_worker.execution.translator import Translator
from occ_worker.recorder import RETRY_SECONDS, Recorder

log = logging.getLogger("occ.driver")

GRACE_SECONDS = 5.0  # for the CLI to leave after its result, or after it closed its output
PARK_SECONDS = 1.5  # of a stop, for a call that waits for a person to be parked

_BURST_BYTES = 1 << 18
_LOOK_SECONDS = 2.0  # how often a running execution's row is read even if nobody rang
_STDERR_KEPT = 2048
_CONTROL = b'{"type":"control_'
_REPORTS = (_CONTROL, steering.LINE)


class Driver:
    """One CLI process: its prompt, its output, its limits and its end.

    `resumable` may name a parked call: then there is no prompt, and the CLI asks about that call again.
    """

    def __init__(self, context: ExecutionContext, execution: Execution, process: Process, resumable: Resumable) -> None:
        self._context, self._execution, self._process = context, execution, process
        self._lines, child = process.lines, process.child
        self._child = child
        self._resumable = resumable
        self._translator = Translator(resumed=resumable.parked is not None)
        key = tail.execution_key(execution.number)
        self._recorder = Recorder(
            context.db, execution, context.config.max_output_bytes, lambda news: context.readers.ring(key, news)
        )
        self._stderr = b""
        hooked = resumable.parked is not None or verdicts.hooked(context.db, context.config, execution)
        initialize = hooked and not process.is_kept
        self._input = ChildInput(child, first_lines(context, execution, resumable, initialize=initialize))
        send = self._input.send
        self._steering = Steering(context, execution, self._translator, send, self._store)
        self._deferral = Deferral(context, execution, resumable, send, self._is_alone, self._spent_in_all)
        self._permissions = Permissions(context, execution, self._deferral, send, self._store) if hooked else None
        self._termination = Termination(child, self._input, self._deferral)
        self._leaving_since: float | None = None  # since its result, or since it closed its output
        self._overstayed = False
        self._exited = self._kept = False
        self._limits = Limits(execution, resumable.spent.seconds)
        self._stop_seen: float | None = None
        self._looked = time.monotonic()
        self._selector = selectors.DefaultSelector()
        self._input.attach(self._selector)
        self._selector.register(child.stdout, selectors.EVENT_READ, self._read_output)
        self._selector.register(child.stderr, selectors.EVENT_READ, self._read_stderr)
        self._selector.register(child.exited, selectors.EVENT_READ, self._note_exit)
        self._selector.register(context.bell, selectors.EVENT_READ, self._look)
        self._selector.register(context.wake, selectors.EVENT_READ, self._wake)

    @property
    def init(self) -> dict[str, Any] | None:
        """The CLI's first line; None when there was none."""
        return self._translator.init

    def run(self) -> Outcome | Suspension:
        """Run the CLI's turn and store its events; returns how it ended or is parked."""
        with self._selector:
            self._input.write()  # before anything else: the CLI may have loaded, and wait for its prompt
            while not (self._exited or self._kept):
                for key, _ in self._selector.select(self._patience()):
                    key.data()
                self._check_clock()
            if not self._kept:
                # The rest of the pipe is the CLI's last output; once strays are swept no process adds to it.
                sweep_children(self._context.spares.processes)
                while self._read_output():
                    pass
            self._read_stderr()
            self._store(self._translator.events(self._lines.rest()))
            self._steering.end()
            while self._recorder.retry_at is not None and not self._context.stopping():
                select.select([self._context.wake], [], [], RETRY_SECONDS)
                self._store([])
        returncode = 0 if self._kept else self._child.returncode()
        assert returncode is not None  # noqa: S101 - the loop above ends only then
        if self._translator.unreadable:
            log.warning("execution %s: %d unreadable lines", self._execution.execution_id, self._translator.unreadable)
        suspension = self._suspension()
        if suspension is not None:
            return suspension
        outcome = replace(self._outcome(returncode), last_message=self._translator.last_message)
        return self._resumable.spent.with_outcome(outcome)

    def _suspension(self) -> Suspension | None:
        """Return the figures so far of an execution that is to be parked, else None."""
        result, code = self._translator.result, self._termination.code
        if code not in (None, "DAEMON_STOPPED"):
            return None
        if result is not None and self._deferral.is_done(result):
            return Suspension(self._resumable.spent.plus(verdict.spent(result, self._spent())))
        return Suspension(None) if code and result is None and self._deferral.undelivered else None

    def _is_alone(self, tool_use_id: str) -> bool:
        """Return whether only this call keeps the turn open: no other call, no text."""
        return self._translator.is_alone(tool_use_id) and not self._steering.unconfirmed

    def _spent(self) -> Spent:
        """Return the running time, and the requests to the model, of this process."""
        return Spent(seconds=self._limits.running_seconds, turns=self._translator.messages)

    def _spent_in_all(self) -> Spent:
        return self._resumable.spent.plus(self._spent())

    def _outcome(self, returncode: int) -> Outcome:
        if self._termination.reason is not None:
            return Outcome.failure(*self._termination.reason, **verdict.how(returncode))
        result = self._translator.outcome()
        if result is not None:
            return result
        secrets = servers.secrets(self._context.config)
        return verdict.without_result(returncode, self._overstayed, verdict.redacted(self._stderr, secrets))

    # -- handlers of the selector

    def _read_output(self) -> bool:
        """Store one burst of output. False when there was no more."""
        events: list[NewEvent] = []
        taken = 0
        while taken < _BURST_BYTES:
            data = read(self._child.stdout.fileno())
            if data is None:
                break
            if not data:
                self._forget(self._child.stdout)
                self._leaving_since = self._leaving_since or time.monotonic()
                break
            taken += len(data)
            for line in self._lines.feed(data):
                if line.startswith(_REPORTS) and self._is_report(line):
                    self._store(events)  # those before it come first
                    events = []
                    self._take_report(line)
                else:
                    events += self._translator.events(line)
            if len(data) < READ_BYTES:
                break  # that was all; asking would say so, and costs a call for each line
        if taken:
            self._limits.note_output()
        self._store(events)
        self._steering.withdraw_missed()
        if self._lines.too_long:
            self._begin_termination("OUTPUT_LIMIT", "Claude Code printed a line of over 16 MiB.")
        if self._translator.result is not None and not self._input.closed:
            self._leaving_since = self._leaving_since or time.monotonic()
            if self._steering.unconfirmed:
                return taken > 0  # the CLI says whether it begins another turn
            left = (self._termination.reason, self._recorder.overflow, self._lines.rest(), not self._input.is_written)
            self._kept = not any(left) and self._process.keep(self._translator.outcome(), self._translator.tools)
            if not self._kept:
                self._input.close()
        return taken > 0

    def _is_report(self, line: bytes) -> bool:
        """Return whether a line is no event, but for permissions or steering."""
        if line.startswith(_CONTROL):
            return self._permissions is not None
        return self._steering.unconfirmed

    def _take_report(self, line: bytes) -> None:
        if line.startswith(_CONTROL) and self._permissions is not None:
            self._permissions.take(line)
            return
        self._steering.take(line)
        if self._translator.result is None:
            self._leaving_since = None  # it has begun another turn

    def _read_stderr(self) -> None:
        while data := read(self._child.stderr.fileno()):
            self._stderr = (self._stderr + data)[-_STDERR_KEPT:]
        if data == b"":
            self._forget(self._child.stderr)

    def _note_exit(self) -> None:
        self._exited = self._child.returncode() is not None

    def _wake(self) -> None:
        self._selector.unregister(self._context.wake)  # it stays readable; _check_clock sees that the daemon stops

    def _look(self) -> None:
        self._context.bell.hush()
        self._looked = time.monotonic()
        self._context.spares.spare_memory()
        code = None
        with contextlib.suppress(OCCError):  # a held database is looked at again
            code = executions.cancel_code(self._context.db, self._execution.number)
        if code is not None:
            self._begin_termination(code, "The execution was cancelled.")
        if self._permissions is not None:
            with contextlib.suppress(OCCError):
                self._permissions.look()
        if self._termination.reason is None:
            with contextlib.suppress(OCCError):
                self._steering.look()

    def _store(self, events: list[NewEvent]) -> None:
        self._recorder.store(events)
        if self._recorder.overflow is not None:
            self._begin_termination(*self._recorder.overflow)

    # -- the clock

    def _patience(self) -> float:
        now = time.monotonic()
        until = [self._looked + _LOOK_SECONDS]
        if self._recorder.retry_at is not None:
            until.append(self._recorder.retry_at)
        if self._termination.reason is not None:
            until.append(self._termination.next_step)
        elif self._permissions is not None and self._permissions.next_expiry is not None:
            until.append(self._permissions.next_expiry)
            until += [] if self._stop_seen is None else [self._stop_seen + PARK_SECONDS]
        elif self._translator.result is None:
            until.append(self._limits.next)
        if self._leaving_since is not None:
            until.append(self._leaving_since + GRACE_SECONDS)
        return max(0.0, min(until) - now)

    def _check_clock(self) -> None:
        now = time.monotonic()
        waits = self._permissions is not None and self._permissions.waiting
        self._limits.tick(now, counts=not waits)
        if self._permissions is not None and waits:
            with contextlib.suppress(OCCError):
                self._permissions.expire(now)
        if self._context.stopping() and not self._parks(now):
            self._begin_termination(
                "DAEMON_STOPPED", "OCC was stopped on the agent's machine; run it again when it is back."
            )
        if now >= self._looked + _LOOK_SECONDS:
            self._look()
        if self._recorder.retry_at is not None and now >= self._recorder.retry_at:
            self._store([])
        if self._leaving_since is not None and now >= self._leaving_since + GRACE_SECONDS:
            self._overstayed = True
            self._child.signal_group(signal.SIGKILL)
        elif self._termination.reason is None and self._translator.result is None:
            exceeded = self._limits.exceeded(now)
            if exceeded is not None:
                self._begin_termination(*exceeded)
        if self._termination.reason is not None:
            self._termination.press(now)

    def _parks(self, now: float) -> bool:
        """Return whether the stop can wait for a call that is on its way to be parked."""
        self._stop_seen = self._stop_seen or now
        if self._permissions is None or now >= self._stop_seen + PARK_SECONDS or self._termination.reason is not None:
            return False
        with contextlib.suppress(OCCError):
            return self._permissions.park()
        return False

    def _begin_termination(self, code: str, message: str) -> None:
        """Begin to terminate the CLI for a reason of OCC, unless it has a result."""
        if self._translator.result is None:
            self._termination.begin(code, message)

    def _forget(self, pipe: object) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(pipe)  # type: ignore[arg-type]  # any of the registered pipes
