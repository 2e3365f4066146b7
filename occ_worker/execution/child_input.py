"""The lines that OCC writes to a CLI, which takes them when it reads."""

from __future__ import annotations

import contextlib
import os
import selectors

from occ_app.executions import attachments
from occ_app.executions.records import Execution
from occ_worker.execution import command as claude
from occ_worker.execution import permissions
from occ_worker.execution.child import Child
from occ_worker.execution.context import ExecutionContext
from occ_worker.execution.resumable import Resumable

_WRITE_BYTES = 1 << 18


class ChildInput:
    """The standard input of one CLI, which begins with the lines `first`.

    Only the driver's thread uses it.
    """

    def __init__(self, child: Child, first: bytes) -> None:
        self._pipe = child.stdin
        self._rest = memoryview(first)
        self._selector: selectors.BaseSelector | None = None

    @property
    def is_written(self) -> bool:
        """Return whether the pipe has taken every line."""
        return not self._rest

    @property
    def closed(self) -> bool:
        return self._pipe.closed

    def attach(self, selector: selectors.BaseSelector) -> None:
        """Have `selector` call `write` when the pipe accepts more and lines are left."""
        self._selector = selector
        selector.register(self._pipe, selectors.EVENT_WRITE, self.write)

    def write(self) -> None:
        """Write as much as the pipe takes now."""
        try:
            self._rest = self._rest[os.write(self._pipe.fileno(), self._rest[:_WRITE_BYTES]) :]
        except BlockingIOError:
            return
        except OSError:
            self._rest = self._rest[:0]  # it does not read any more; its exit will tell why
        if not self._rest:
            # Not closed: at the end of its input the CLI exits without flushing its output.
            self._detach()

    def send(self, line: bytes) -> None:
        """Write a line, after those that the CLI has not read yet."""
        if self._pipe.closed:
            return
        if not self._rest and self._selector is not None:
            self._selector.register(self._pipe, selectors.EVENT_WRITE, self.write)
        self._rest = memoryview(bytes(self._rest) + line)
        self.write()

    def close(self) -> None:
        """End the input, which makes the CLI leave after its current turn."""
        self._detach()
        self._pipe.close()

    def _detach(self) -> None:
        if self._selector is not None:
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(self._pipe)


def first_lines(context: ExecutionContext, execution: Execution, resumable: Resumable, *, initialize: bool) -> bytes:
    """Return the first input of the CLI.

    It is the request to ask about calls, and the prompt unless a call is resumed.
    """
    first = permissions.initialize_line() if initialize else b""
    if resumable.parked is not None:
        return first
    files = attachments.of_execution(context.db, execution.number) if execution.attachments else ()
    return first + claude.prompt_line(execution.prompt or "", attachments=files)
