"""The permissions that each machine allows, from its registration.

A machine has a ceiling, and an older one does not know levels of permissions.
"""

from __future__ import annotations

from collections.abc import Sequence

from occ_app.config.settings import PERMISSIONS
from occ_app.errors import RequestError
from occ_app.hub.agents import Agent

CAPABILITY = "permissions"
DEFAULT = "edit"
_NAMED = 5


def allows(agent: Agent, permissions: str) -> bool:
    """Return whether an agent accepts an execution with these permissions.

    An agent with an older OCC allows only `edit`.
    """
    if CAPABILITY not in agent.capabilities:
        return permissions == DEFAULT
    if permissions not in PERMISSIONS or agent.permissions not in PERMISSIONS:
        return False
    return PERMISSIONS.index(permissions) <= PERMISSIONS.index(agent.permissions)


def level(suitable: Sequence[Agent], permissions: str, *, named: bool) -> str:
    """Return the permissions of a request on the machines that may run it.

    With `named` they are the requested ones. Otherwise they are the highest level, up to `permissions`, that one of
    these machines allows.
    """
    known = _known(suitable)
    if named or not known or permissions not in PERMISSIONS:  # a damaged row waits forever and blocks no other
        return permissions
    lower = reversed(PERMISSIONS[: PERMISSIONS.index(permissions) + 1])
    return next((each for each in lower if any(allows(agent, each) for agent in known)), permissions)


def check(suitable: Sequence[Agent], permissions: str) -> None:
    """Raise RequestError unless a suitable machine allows these permissions.

    A request without any known machine passes, and waits for one.
    """
    known = _known(suitable)
    if not known or any(allows(agent, permissions) for agent in known):
        return
    named = ", ".join(f"{agent.name} allows {_ceiling(agent)}" for agent in known[:_NAMED])
    more = f" and {len(known) - _NAMED} more that allow less" if len(known) > _NAMED else ""
    which = "online machine" if known[0].online else "machine"
    raise RequestError(
        "PERMISSION_CEILING",
        f"No {which} that this could run on allows {permissions}: {named}{more}. Ask for other permissions,"
        f" or start the machine with OCC_PERMISSIONS={permissions}.",
        {"permissions": permissions, "ceiling": max((_ceiling(agent) for agent in known), key=PERMISSIONS.index)},
    )


def _known(suitable: Sequence[Agent]) -> Sequence[Agent]:
    """Return the machines to consider: the online ones, or all if none is online."""
    return [agent for agent in suitable if agent.online] or suitable


def _ceiling(agent: Agent) -> str:
    return next((level for level in reversed(PERMISSIONS) if allows(agent, level)), PERMISSIONS[0])
