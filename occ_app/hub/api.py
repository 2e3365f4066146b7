"""The hub's HTTP API beyond an agent's.

It has the registrations and heartbeats of agents, and the management of machines and keys.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from flask import Blueprint, Response, current_app, g, request

from occ_app import __version__, errors
from occ_app.api.services import services
from occ_app.executions import queries as executions
from occ_app.hub import agent_lists, agent_schemas, client_schemas, keys, projects, registrations
from occ_app.hub.agents import PROTOCOL, Agent
from occ_app.hub.links import LINK_ENDPOINT
from occ_app.hub.services import hub_services
from occ_app.streams import tail
from occ_app.system.timestamps import iso_now
from occ_app.web import callers, schemas
from occ_app.web import requests as web
from occ_app.web.contracts import contract, contract_of
from occ_app.web.fields import schema_of

bp = Blueprint("hub", __name__)

FROM_AGENTS = "/api/agents/"
_LARGEST_BODY = 1 << 20
_CANCEL_SECONDS = 3.0  # for cancellations to reach a removed machine over its link


def _agent_key() -> None:
    """Require an agent key, and store it for the view. Raises UNAUTHORIZED."""
    key = keys.find(services().db, callers.bearer(), "agent")
    if key is None:
        callers.slow_down()
        raise callers.unauthorized(
            "The key is wrong, expired or revoked, or is not an agent key. Create one with"
            " `occ hub keys create NAME --for agent`."
        )
    g.agent_key = key


def _key_proof() -> None:
    """Require a proof of an agent key, and store the hub's proof for the view.

    Raises UNAUTHORIZED.
    """
    found = keys.find_proven(services().db, request.headers.get("Authorization", ""))
    if found is None:
        callers.slow_down()
        raise callers.unauthorized(
            "The proof is not from a valid agent key. Create one with `occ hub keys create NAME --for agent`."
        )
    g.proof = found[1]


def agent_token(agent_id: str) -> None:
    """Require the token of a registered agent. Raises UNAUTHORIZED."""
    if not hub_services().agents.holds(agent_id, callers.bearer()):
        _end_link(agent_id)
        callers.slow_down()
        raise not_registered()


@bp.get("/api/agents/challenge")
@contract(authenticate=_key_proof, reply=agent_schemas.Challenge)
def challenge() -> Any:
    """Prove that the hub knows the caller's key, and issue a nonce to sign."""
    nonce = hub_services().nonces.issue()
    return {"hub_id": registrations.hub_id(services().db), "nonce": nonce, "proof": g.proof}


@bp.post("/api/agents/register")
@contract(
    authenticate=_agent_key,
    body=agent_schemas.Registration,
    body_bytes=_LARGEST_BODY,
    reply=agent_schemas.Registered,
    status=201,
)
def register(body: dict[str, Any]) -> Any:
    """Register an agent, or a known agent again, with a new token."""
    key: keys.Key = g.agent_key
    services().refuse_when_stopping()
    said = body
    if said["protocol"] != PROTOCOL:
        raise errors.RequestError(
            "PROTOCOL_UNSUPPORTED",
            f"This hub ({__version__}) speaks protocol {PROTOCOL} and the agent ({said['version']}) speaks"
            f" {said['protocol']}; install versions of OCC that match.",
            {"protocol": PROTOCOL},
        )
    if said["machine"] is not None and not hub_services().nonces.redeem(said["machine"]["nonce"]):
        raise errors.Conflict("NONCE_EXPIRED", "The nonce is unknown or expired; request another one.")
    agent = registrations.register(
        hub_services().agents, key, request.remote_addr or "", said, hub_services().calls.answers
    )
    _note_projects(agent.agent_id, agent.token, said["projects"])
    _look_for_work()
    answer = {"agent_id": agent.agent_id, "token": agent.token, "name": agent.name}
    interval = hub_services().config.heartbeat_seconds
    return {**answer, "heartbeat_interval_seconds": interval}


@bp.post("/api/agents/<agent_id>/heartbeat")
@contract(authenticate=agent_token, body=agent_schemas.Heartbeat, body_bytes=_LARGEST_BODY, reply=agent_schemas.Heard)
def heartbeat(agent_id: str, body: dict[str, Any]) -> Response:
    """Record an agent's heartbeat."""
    said = body
    if not hub_services().agents.beat(agent_id, callers.bearer(), said):
        raise not_registered()
    if said["projects"] is not None:  # None from an agent whose database was locked, or an older one
        _note_projects(agent_id, callers.bearer(), said["projects"])
    room = (said["status"], said["workers"].get("busy"))
    if hub_services().room.get(agent_id) != room:
        hub_services().room[agent_id] = room
        _look_for_work()
    agent = hub_services().agents.find(agent_id)
    via = None if agent is None else hub_services().calls.via(agent)
    return web.json_response(schema_of(agent_schemas.Heard).dump({"via": via}))


@bp.post("/api/agents/<agent_id>/echo")
@contract(authenticate=agent_token, body=agent_schemas.EchoBody, reply=agent_schemas.EchoReply)
def echo(agent_id: str, body: dict[str, Any]) -> Any:  # noqa: ARG001 - its body is empty
    """Call the requesting agent back, as an execution would."""
    agent = hub_services().agents.find(agent_id)
    if agent is None:
        raise not_registered()
    begun = time.monotonic()
    instance, problem = None, None
    try:
        instance = hub_services().calls.echo(agent)
    except errors.OCCError as error:
        problem = str(error)
    return {
        "via": hub_services().calls.via(agent),
        "milliseconds": round((time.monotonic() - begun) * 1000, 1),
        "instance": instance,
        "problem": problem,
        "version": __version__,
        "time": iso_now(),
    }


@bp.get("/agents")
@contract(query=agent_schemas.AgentQuery, reply=agent_schemas.AgentList)
def listing(query: dict[str, Any]) -> Any:
    """List machines by name, without forgotten ones."""
    rows, following = agent_lists.page(hub_services().agents, **query)
    return {"agents": _records(rows), "next": following}


@bp.get("/agents/<agent_id>")
@contract(reply=agent_schemas.AgentRecord)
def show(agent_id: str) -> Any:
    """Show one machine, by its id or name."""
    return _record(hub_services().agents.named(agent_id))


@bp.post("/agents/<agent_id>/drain")
@contract(reply=agent_schemas.AgentRecord, admin=True)
def drain(agent_id: str) -> Any:
    """Place no more executions on a machine; current ones continue."""
    return _set_draining(agent_id, draining=True)


@bp.post("/agents/<agent_id>/resume")
@contract(reply=agent_schemas.AgentRecord, admin=True)
def resume(agent_id: str) -> Any:
    """Place executions on a machine again."""
    return _set_draining(agent_id, draining=False)


@bp.delete("/agents/<agent_id>")
@contract(reply=schemas.Deleted, admin=True)
def remove(agent_id: str) -> Response:
    """Remove a machine; its executions are lost, its workspaces placed elsewhere."""
    agent = hub_services().agents.named(agent_id)
    _ring_ended(hub_services().agents.remove(agent.agent_id))
    services().workers.ring(agent.agent_id)
    hub_services().links.drop(agent.agent_id, _CANCEL_SECONDS)
    _look_for_work()
    return web.json_response({"status": "success"})


@bp.get("/keys")
@contract(reply=client_schemas.KeyList, admin=True)
def list_keys() -> Any:
    """List all keys. Secrets are not shown."""
    return {"keys": keys.listing(services().db)}


@bp.post("/keys")
@contract(body=client_schemas.KeyBody, reply=client_schemas.KeyMade, status=201, admin=True)
def create_key(body: dict[str, Any]) -> Any:
    """Create a key; the secret is shown only in this reply."""
    admin = body.pop("admin")
    role = body.setdefault("role", "admin" if admin else "owner")
    if admin not in (None, role == "admin"):
        raise errors.InvalidRequest("`admin` and `role` differ; send only `role`.", {"role": ["Not admin."]})
    if role != "owner" and body["kind"] == "agent":
        message = "Only a client's key can be an admin's or a viewer's."
        raise errors.InvalidRequest(message, {"admin" if role == "admin" else "role": ["Not for an agent."]})
    try:
        key, secret = keys.create(services().db, body.pop("name"), body.pop("kind"), **body)
    except errors.ConfigError as error:
        raise errors.InvalidRequest(
            str(error), {"name": ["In use; choose another, or revoke that key first."]}
        ) from None
    return _with_secret(key, secret)


@bp.post("/keys/<name>/rotate")
@contract(body=client_schemas.KeyRotation, reply=client_schemas.KeyMade, admin=True)
def rotate_key(name: str, body: dict[str, Any]) -> Any:
    """Replace the secret of a key, which keeps everything it owns."""
    key, secret = keys.rotate(services().db, name, **body)
    end_streams(key.key_id)
    return _with_secret(key, secret)


@bp.post("/keys/<name>/revoke")
@contract(reply=client_schemas.KeyRecord, admin=True)
def revoke_key(name: str) -> Any:
    """Revoke a key, and disconnect the machines registered with it."""
    key = keys.revoke(services().db, name)
    end_streams(key.key_id)
    for agent_id in agent_lists.of_key(hub_services().agents, key.key_id):
        hub_services().links.drop(agent_id)
    return key


def end_streams(key_id: str) -> None:
    """End the streams opened with a key and with the sessions that it paired."""
    for each in (key_id, *keys.paired(services().db, key_id)):
        services().streams.refuse(each)


def _end_link(agent_id: str) -> None:
    """End the link of an agent whose token is right but whose key is not valid."""
    agent = hub_services().agents.find(agent_id)
    if agent is not None and callers.same_secret(callers.bearer(), agent.token):
        hub_services().links.drop(agent_id)


def authenticates_agents() -> bool:
    """Return whether the endpoint checks an agent's credentials itself.

    All other endpoints require a client's credentials.
    """
    agreed = contract_of(current_app.view_functions.get(request.endpoint or "", services))
    return request.endpoint == LINK_ENDPOINT or (agreed is not None and agreed.authenticate is not None)


def not_registered() -> errors.RequestError:
    return callers.unauthorized("This agent is not registered with this token; register again.")


def _set_draining(agent_id: str, *, draining: bool) -> Any:
    agent = hub_services().agents.named(agent_id)
    hub_services().agents.set_draining(agent.agent_id, draining=draining)
    _look_for_work()
    return _record(hub_services().agents.named(agent.agent_id))


def _look_for_work() -> None:
    """Wake a relay when a waiting execution may now find an agent."""
    if executions.counts(services().db)[1]:
        services().wake_worker()


def _note_projects(agent_id: str, token: str, reported: Sequence[Mapping[str, Any]]) -> None:
    _ring_ended(projects.update(services().db, agent_id, token, reported))


def _ring_ended(numbers: Iterable[int]) -> None:
    """Wake the followers of executions that ended because their project was removed."""
    for number in numbers:
        services().readers.ring(tail.execution_key(number))


def _record(agent: Agent) -> dict[str, object]:
    return _records([agent])[0]


def _records(agents: Sequence[Agent]) -> list[dict[str, object]]:
    ids = [agent.agent_id for agent in agents]
    on_each = projects.by_agent(services().db, callers.caller().visible_to, ids)
    via = hub_services().calls.via
    return [agent_schemas.agent_record(agent, via(agent), on_each.get(agent.agent_id, ())) for agent in agents]


def _with_secret(key: keys.Key, secret: str) -> dict[str, object]:
    return {**asdict(key), "role": key.role, "key": secret}
