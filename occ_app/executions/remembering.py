"""Rules that "always" stores, and the check of an edited input."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

from occ_app.config import permission_rules
from occ_app.config.permission_rules import Rule
from occ_app.errors import InvalidRequest, RequestError
from occ_app.executions import rules
from occ_app.system.compact_json import to_json

REMEMBER = ("once", "conversation", "workspace")
MAX_INPUT_BYTES = 256 * 1024  # of a call's input as JSON, which a person is shown


def always(kind: str, tool: str, given: Any, *, shown_whole: bool) -> list[Rule]:
    """Return the rules that "always" stores for a call.

    None for a question, a plan, or an input with hidden parts.
    """
    return permission_rules.remembered(tool, given) if kind == "tool" and shown_whole else []


def check_scope(remember: str | None, found: Sequence[Rule]) -> None:
    """Raise InvalidRequest for an answer that is to be remembered and cannot be."""
    if remember not in (None, "once") and not found:
        message = (
            "This cannot be allowed always: only commands of plain words, sites, and tools whose calls are all alike"
            " can. Answer without `remember`."
        )
        raise InvalidRequest(message, {"remember": ["Not for this call."]})


def check_edited(
    connection: sqlite3.Connection, execution: int, tool: str, edited: Mapping[str, Any] | None, own: Sequence[Rule]
) -> None:
    """Check an edited input as if the call had been made with it.

    `own` are the operator's rules. Raises InvalidRequest for one that is too large to be shown, and RequestError for
    one that a rule denies.
    """
    if edited is None:
        return
    if len(to_json(edited).encode()) > MAX_INPUT_BYTES:
        message = f"`updatedInput` has more than {MAX_INPUT_BYTES} bytes; make it shorter."
        raise InvalidRequest(message, {"updatedInput": ["Too large."]})
    found = permission_rules.decide([*own, *rules.of(connection, execution)], tool, edited)
    if found is not None and found.decision == "deny":
        raise RequestError(
            "RULE_DENIES",
            f"The rule {found.text} denies this input; edit it again, or deny the call. `occ rules list` lists them.",
            {"rule": found.text},
        )


def remember(
    connection: sqlite3.Connection, execution: int, scope: str | None, found: Sequence[Rule], actor: str
) -> None:
    """Store the rules of an answer that is to be remembered.

    Raises Conflict when there are too many.
    """
    if scope not in (None, "once"):
        place = rules.place_of(connection, execution, str(scope))
        for rule in found:
            rules.add(connection, place, rule, actor)
