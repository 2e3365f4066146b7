"""The page of machines: state, load, versions and last errors.

Admins can drain, resume, remove and add machines on it.
"""

from __future__ import annotations

from flask import Blueprint, Response, g, render_template, request

from occ_app.api.services import services
from occ_app.errors import ConfigError, InvalidRequest
from occ_app.executions import queries as executions
from occ_app.executions.records import Execution
from occ_app.home import daemon
from occ_app.hub import agent_lists, api, keys, projects
from occ_app.hub.agents import Agent
from occ_app.hub.pages import login as door
from occ_app.hub.pages.devices import device_name
from occ_app.hub.services import hub_services
from occ_app.web import callers

bp = Blueprint("machines", __name__, url_prefix="/machines")

_MAX_MACHINES, _MAX_ERRORS = 100, 3


@bp.get("")
def show() -> str:
    """Show all machines, by name."""
    return _page()


@bp.get("/list")
def fragment() -> str:
    """Return the machines alone, for the script."""
    return render_template("_machines.html", **_machines())


@bp.post("/<agent_id>/drain")
def drain(agent_id: str) -> Response:
    """Place no more runs on a machine."""
    api.drain(agent_id=agent_id)
    return door.go("/machines")


@bp.post("/<agent_id>/resume")
def resume(agent_id: str) -> Response:
    """Place runs on a machine again."""
    api.resume(agent_id=agent_id)
    return door.go("/machines")


@bp.get("/<agent_id>/remove")
def ask(agent_id: str) -> str:
    """Ask whether to remove a machine."""
    callers.require_admin()
    return render_template("remove_machine.html", machine=hub_services().agents.named(agent_id))


@bp.post("/<agent_id>/remove")
def remove(agent_id: str) -> Response:
    """Remove a machine."""
    api.remove(agent_id=agent_id)
    return door.go("/machines")


@bp.post("/add")
def add() -> Response:
    """Create a key for a new machine, and show the command that uses it, once.

    The key belongs to the caller's owner.
    """
    callers.require_admin()
    name = device_name(request.form.get("name", "")) or "machine"
    try:
        key, secret = keys.create(services().db, name, "agent", owner=g.login.owner_id)
    except ConfigError as error:
        raise InvalidRequest(str(error)) from None
    return Response(_page(added=key, secret=secret))


def join() -> dict[str, str | None]:
    """Return this hub's address and the pin for a new machine's `occ start`."""
    running = daemon.find(services().config)
    public = running.public_url if running else None
    return {"hub_url": public or request.host_url.rstrip("/"), "hub_pin": running.pin if running else None}


def _page(**added: object) -> str:
    return render_template("machines.html", **_machines(), **join(), **added)


def _machines() -> dict[str, object]:
    agents, visible_to = hub_services().agents, callers.caller().visible_to
    listed, following = agent_lists.page(agents, _MAX_MACHINES)
    via = hub_services().calls.via
    return {
        "machines": sorted(listed, key=lambda each: (each.state == "offline", each.name)),
        "more": following is not None,
        "via": {machine.agent_id: via(machine) for machine in listed},
        "projects": projects.by_agent(services().db, visible_to, [machine.agent_id for machine in listed]),
        "failures": {machine.agent_id: _failures(machine, visible_to) for machine in listed},
    }


def _failures(machine: Agent, visible_to: str | None) -> list[Execution]:
    """Return the last failed runs of a machine that the caller may see."""
    rows, _ = executions.listing(
        services().db, agent_id=machine.agent_id, state="failed", owner_id=visible_to, limit=_MAX_ERRORS
    )
    return rows
