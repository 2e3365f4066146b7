"""The choice of a machine for a waiting execution."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from occ_app.executions.records import Execution
from occ_app.executions.waiting import FREE_WORKER
from occ_app.hub import ceilings
from occ_app.hub.agents import Agent


def choose(
    execution: Execution,
    home: str | None,
    agents: Sequence[Agent],
    foreign: dict[str, int],
    reached: Callable[[Agent], bool] = lambda _: True,
) -> Agent | str:
    """Return the agent to run an execution on, or the reason why it waits.

    `home` is the id of the agent that has its workspace. `foreign` counts, by agent id, the executions that others
    placed there.
    """
    if home is not None:
        suitable = [agent for agent in agents if agent.agent_id == home]
        what = f"agent {suitable[0].name}, where its workspace is," if suitable else "its workspace's agent"
    else:
        suitable = [agent for agent in agents if suits(agent, execution.wanted_agent, execution.wanted_labels)]
        what = "an agent"
        if execution.wanted_agent:
            wanted = next((agent.name for agent in agents if suits(agent, execution.wanted_agent, ())), None)
            what = f"agent {wanted or execution.wanted_agent}"
            if not suitable and wanted is not None:
                return f"{what} to have the labels {', '.join(execution.wanted_labels)}"
        elif execution.wanted_labels:
            what = f"an agent with the labels {', '.join(execution.wanted_labels)}"
    permissions = ceilings.level(suitable, execution.permissions, named=execution.permissions_named)
    allowing = [agent for agent in suitable if ceilings.allows(agent, permissions)]
    if suitable and not allowing:
        return f"{what} to allow {permissions} (OCC_PERMISSIONS there)"
    what += f" that allows {permissions}" if len(allowing) < len(suitable) else ""
    ready = [agent for agent in allowing if agent.online and not agent.draining]
    if not ready:
        drained = any(agent.online for agent in allowing)
        return f"{what} to resume (it is draining)" if drained else f"{what} to be online"
    ready = [agent for agent in ready if reached(agent)]
    if not ready:
        return f"{what} to be reached by the hub (it is online, but its link is not connected)"
    best = max(ready, key=lambda agent: free(agent, foreign))
    return best if free(best, foreign) > 0 else f"{what} {FREE_WORKER}"


def suits(agent: Agent, wanted: str | None, labels: Sequence[str]) -> bool:
    return wanted in (None, agent.agent_id, agent.name) and set(labels) <= set(agent.labels)


def free(agent: Agent, foreign: dict[str, int]) -> int:
    return agent.workers - agent.placed - foreign.get(agent.agent_id, 0)
