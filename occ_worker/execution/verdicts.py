"""The decision on a tool call before a person is asked.

The rules decide first, then the permissions of the run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from occ_app.config.config import DEFAULT_TOOLS, Config
from occ_app.config.permission_rules import Rule, decide
from occ_app.database.database import Database
from occ_app.executions import ceilings, rules
from occ_app.executions.records import Execution

_LEFT_TO_CLI = ("AskUserQuestion", "ExitPlanMode")  # it asks about them itself
_DENIED = "The rule {} of this machine denies this call. Nobody can allow it."
_DENIED_LINE = (
    "The rule {} of this machine denies this call: a part of the line is that command, or cannot be read for certain."
    " Use plain words, without substitutions, here-documents and groups, and without that command."
)
_NOBODY_ASKED = "This run asks nobody, and no rule of its machine allows this call. Continue without it."


@dataclass(frozen=True)
class Verdict:
    """A decision on a call.

    `allow`, `deny` with a message for the model, `ask` for a person, or `cli` for the CLI's own decision.
    """

    decision: str
    message: str = ""


def of(db: Database, config: Config, execution: Execution, tool: str, given: Any) -> Verdict:
    """Return the verdict on a call of an execution.

    Raises OCCError when the rules cannot be read.
    """
    stored = rules.for_execution(db, execution.number)
    return judged(level(config, execution), (*config.rules, *stored), config, tool, given)


def level(config: Config, execution: Execution, ceiling: str | None = None) -> str:
    """Return the permissions of an execution under the present ceilings.

    Those of agent and workspace may be lower than at acceptance. `ceiling` is the workspace's, None for none.
    """
    return ceilings.lowest(execution.permissions, config.ceiling, ceiling)


def hooked(db: Database, config: Config, execution: Execution) -> bool:
    """Return whether OCC is asked about the calls of an execution.

    The permission `edit` without any rule needs no hook.
    """
    return execution.permissions != "edit" or bool(config.rules) or bool(rules.for_execution(db, execution.number))


def judged(permissions: str, known: Iterable[Rule], config: Config, tool: str, given: Any) -> Verdict:
    """Return the verdict on a call of a run with these permissions.

    The rules of people allow something only where people are asked: the operator's ceiling comes first.
    """
    asking = permissions in ("ask", "full")
    counting = [rule for rule in known if asking or rule.decision != "allow" or rule in config.rules]
    found = decide(counting, tool, given if isinstance(given, Mapping) else {})
    if found is not None and found.decision == "deny":
        return Verdict("deny", (_DENIED_LINE if tool == "Bash" and found.pattern else _DENIED).format(found.text))
    if permissions == "plan" or tool in _LEFT_TO_CLI:
        return Verdict("cli")
    if found is not None and (found.decision == "allow" or asking):
        return Verdict(found.decision)
    if found is None and tool in DEFAULT_TOOLS:
        return Verdict("cli")
    if permissions == "full":
        return Verdict("allow")
    return Verdict("ask") if permissions == "ask" else Verdict("deny", _NOBODY_ASKED)
