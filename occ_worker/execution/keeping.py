"""Which executions can have a process that is kept, and on which terms."""

from __future__ import annotations

import contextlib
from dataclasses import replace

from occ_app.claude import operator_files
from occ_app.claude import program as claude_cli
from occ_app.config.config import DEFAULT_TOOLS
from occ_app.errors import OCCError
from occ_app.executions import rules
from occ_app.executions.records import Execution
from occ_app.executions.spent import Spent
from occ_worker.execution import command, verdicts, versions
from occ_worker.execution.context import ExecutionContext
from occ_worker.execution.kept import Terms
from occ_worker.execution.program import Program

# Bash keeps the folder to which a command changed, and sub-agents and lists of tasks have state, too.
STATELESS_TOOLS = frozenset((*DEFAULT_TOOLS, "AskUserQuestion"))


def terms(context: ExecutionContext, execution: Execution, program: Program) -> Terms | None:
    """Return the terms of a process for an execution.

    None when the process serves nothing else. Only a new process can have limits, a sandbox, MCP servers, a plan, a
    fork, or an earlier turn to return to, read the settings of its workspace, resume a parked call, and run the hooks
    and plugins of the operator's.
    """
    config = context.config
    limited = execution.max_turns is not None or execution.max_budget_usd is not None
    alone = execution.fork or execution.rewind_to is not None or execution.permissions == "plan"
    bound = program.trusted or program.servers is not None
    resumed = program.resumable.parked is not None or program.resumable.spent != Spent()
    if not context.spares.kept.enabled or limited or alone or bound or resumed:
        return None
    if not claude_cli.waits_for_claim(versions.noted(context.db, program.path)):
        return None
    if operator_files.run_more_at_start(config.cli_environment):
        return None
    with contextlib.suppress(OCCError, OSError, ValueError):
        return Terms(
            execution.permissions,
            tuple(command.command(program.path, replace(execution, resume_session_id=None), None, config)),
            tuple(claude_cli.file_identity(program.path)),
            operator_files.state_of(config.cli_environment),
            "" if program.memory is None else program.memory.read_text(),
            tuple(rules.for_execution(context.db, execution.number)),
            verdicts.hooked(context.db, config, execution),
            execution.owner_id,
            execution.key_id,
        )
    return None
