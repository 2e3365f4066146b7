"""The permissions that each machine allows, as it said when it registered: its ceiling, and whether it knows levels."""

from __future__ import annotations

from collections.abc import Sequence

from occ_app.config.settings import PERMISSIONS
from occ_app.errors import RequestError
from occ_app.hub.agents import Agent

CAPABILITY = "permissions"
DEFAULT = "edit"
_NAMED = 5


def allows(agent: Agent, permissions: str) -> bool:
    """Return whether an agent takes an execution with these permissions; one of an older OCC only edits."""
    if CAPABILITY not in agent.capabilities:
        return permissions == DEFAULT
    if permissions not in PERMISSIONS or agent.permissions not in PERMISSIONS:
        return False
    return PERMISSIONS.index(permissions) <= PERMISSIONS.index(agent.permissions)


def level(suitable: Sequence[Agent], permissions: str, *, named: bool) -> str:
    """Return the permissions that a request gets on the machines that it may run on.

    Those that it names, or else at most `permissions`: the highest that one of these machines allows.
    """
    known = _known(suitable)
    if named or not known or permissions not in PERMISSIONS:  # a damaged row waits for ever, and stops nobody
        return permissions
    lower = reversed(PERMISSIONS[: PERMISSIONS.index(permissions) + 1])
    return next((each for each in lower if any(allows(agent, each) for agent in known)), permissions)


def check(suitable: Sequence[Agent], permissions: str) -> None:
    """Raise RequestError unless one of the machines that a request may run on allows these permissions.

    A request without any known machine waits for one.
    """
    known = _known(suitable)
    if not known or any(allows(agent, permissions) for agent in known):
        return
    named = ", ".join(f"{agent.name} allows {_ceiling(agent)}" for agent in known[:_NAMED])
    more = f" and {len(known) - _NAMED} more less" if len(known) > _NAMED else ""
    which = "online machine" if known[0].online else "machine"
    raise RequestError(
        "PERMISSION_CEILING",
        f"No {which} that this could run on allows {permissions}: {named}{more}. Ask for other permissions,"
        f" or start the machine with OCC_PERMISSIONS={permissions}.",
        {"permissions": permissions, "ceiling": max((_ceiling(agent) for agent in known), key=PERMISSIONS.index)},
    )


def _known(suitable: Sequence[Agent]) -> Sequence[Agent]:
    """Return the machines that count: those that are offline only while all are."""
    return [agent for agent in suitable if agent.online] or suitable


def _ceiling(agent: Agent) -> str:
    return next((level for level in reversed(PERMISSIONS) if allows(agent, level)), PERMISSIONS[0])
