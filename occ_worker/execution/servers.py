"""The operator's MCP servers in one run.

Which of them the CLI gets, and which did not answer.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from occ_app.claude import mcp_servers
from occ_app.claude.mcp_servers import Server
from occ_app.config.config import Config
from occ_app.errors import OCCError
from occ_app.executions.records import Execution
from occ_app.home import notes
from occ_worker.execution import verdicts
from occ_worker.execution.context import ExecutionContext

log = logging.getLogger("occ.servers")


@dataclass(frozen=True)
class Servers:
    """The servers of a run, and the file that names them to the CLI; None without any."""

    context: ExecutionContext
    chosen: tuple[Server, ...] = ()
    file: Path | None = None

    def note(self, init: Mapping[str, Any] | None) -> None:
        """Note which servers answered, as the CLI's `init` line lists them."""
        if not self.chosen:
            return
        with contextlib.suppress(OCCError):  # a held database: the next run notes it
            before = notes.noted(self.context.db, mcp_servers.NOTE)
            after = mcp_servers.failures_after(self.chosen, init, before, time.time())
            if after != before:
                notes.note(self.context.db, mcp_servers.NOTE, after)


@contextlib.contextmanager
def given(context: ExecutionContext, execution: Execution) -> Iterator[Servers]:
    """Choose the servers for an execution, and write their file while it runs.

    One that lately did not answer is left out. Without a readable configuration the run has none.
    """
    chosen = tuple(_chosen(context, execution))
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(mcp_servers.given(context.config, execution.number, chosen))
        except OSError as error:
            log.error("execution %s has no MCP servers: %s", execution.execution_id, error)
            chosen, file = (), None
        yield Servers(context, chosen, file)


def secrets(config: Config) -> dict[str, str]:
    """Return the variables whose secrets a run could show.

    They are those of the CLI and of the servers.
    """
    return {**config.cli_environment, **mcp_servers.secrets(config)}


def _chosen(context: ExecutionContext, execution: Execution) -> list[Server]:
    config = context.config
    try:
        known = mcp_servers.load(config)
        if not known:
            return []
        chosen = mcp_servers.chosen(known, verdicts.level(config, execution), config.rules)
        failures = notes.noted(context.db, mcp_servers.NOTE)
    except OCCError as error:
        log.error("execution %s has no MCP servers: %s", execution.execution_id, error)
        return []
    answering = mcp_servers.answering(chosen, failures, time.time())
    for server in chosen:
        if server not in answering:
            log.warning("execution %s goes without the MCP server %s", execution.execution_id, server.name)
    return answering
