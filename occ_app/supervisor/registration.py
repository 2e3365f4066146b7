"""Registration of an agent with its hub at the start."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from occ_app import __version__
from occ_app.claude import program as claude_cli
from occ_app.claude.program import Cli
from occ_app.config.config import Config
from occ_app.config.settings import CAPABILITIES, SHARES_LOCAL, is_loopback
from occ_app.database.database import Database
from occ_app.errors import Refused, Unreachable
from occ_app.home import certificate as tls
from occ_app.home import machine, state
from occ_app.home import notes as agent
from occ_app.system import proofs

if TYPE_CHECKING:  # a standalone agent does without the memory of the HTTP client
    from occ_app.client.hub_client import Challenge, HubClient

PROTOCOL = 1
_ATTEMPTS = 4
_UNAUTHORIZED = 401
_WITHOUT_PROOFS = (_UNAUTHORIZED, 404, 405, 501)  # a server's answers to an address that it does not know
_COPIED = "This home is a copy of a machine that goes on with this execution, so it was not run here."


@dataclass(frozen=True)
class Registered:
    """A registration.

    `copy_of` is the agent's former id when this home is a copy of that machine's, which runs.
    """

    state: state.State
    copy_of: str | None = None


def register_or_warn(config: Config, database: Database, port: int) -> list[str]:
    """Register with the hub, or ensure a token without one; returns warnings.

    A hub that cannot be reached is a warning: the control process keeps trying. Raises Refused when the hub refuses
    this agent: a wrong key, or a version it cannot speak to.
    """
    warnings = []
    cli = claude_cli.probe(config) if config.remote_url else claude_cli.Cli(claude_cli.find(config), None)
    if cli.path is None:
        warnings.append(claude_cli.missing(config))
    registration: dict[str, Any] = {"registered": False, "standalone": not config.remote_url}
    if config.remote_url:
        from occ_app.client.hub_client import HubClient
        from occ_app.workspaces import projects

        try:
            registered, hub = register_at_any(
                config, lambda url: HubClient(url, pin=config.remote_pin), port, cli, projects.report(database)
            )
            known, registration = registered.state, {"registered": True}
            warnings += note_registered(config, database, registered)
            if registered.copy_of is not None:  # the original goes on with it
                from occ_app.executions import lifecycle
                from occ_app.executions.records import Outcome

                lifecycle.abandon_all(database, Outcome.failure("WORKER_LOST", _COPIED))
            if known.name not in (None, config.name):
                warnings.append(f"The hub has a machine {config.name} already, so it calls this one {known.name}.")
            warnings += without_a_way(config, hub, known)
        except Refused as refusal:
            if refusal.status in (401, 403, 426):
                raise
            registration["problem"] = str(refusal)
        except Unreachable as error:
            registration["problem"] = str(error)
        if not registration["registered"]:
            warnings.append(f"{registration['problem']} Serving without it and registering in the background.")
    elif config.api_key:
        warnings.append("The API key is not used: without --remote-url (OCC_REMOTE_URL) this agent is standalone.")
    known = state.ensure(config.state)
    if known.remote_url and not config.remote_url:
        warnings.append(
            f"This agent was registered with {known.remote_url} and is standalone now; with OCC_REMOTE_URL and"
            " OCC_API_KEY, or with both in config.toml, it registers again."
        )
    agent.note(database, "registration", registration)
    return warnings


def without_a_way(config: Config, hub: HubClient, known: state.State) -> list[str]:
    """Return a warning when the hub cannot reach this agent at all.

    It offers no link and cannot call an agent that listens on loopback.
    """
    same_machine = is_loopback(urlsplit(hub.url).hostname or "")
    instance = machine.instance(config)
    if (
        config.called_directly
        or same_machine
        or hub.offers_link(known.agent_id or "", known.token, instance) is not False
    ):
        return []
    return [
        f"The server at {hub.url} offers no link and cannot reach this agent on {config.bind_address}. Start it with"
        " --bind-address ADDRESS and --tls self-signed, or with --public-url URL of a proxy in front of it."
    ]


def register_at_any(
    config: Config,
    client: Callable[[str], HubClient],
    port: int,
    cli: Cli,
    reported: Sequence[Mapping[str, Any]],
) -> tuple[Registered, HubClient]:
    """Register at the first address at which the hub is; returns the client, too.

    The former address comes first. `client` makes the client of an address. Raises the first Refused or Unreachable
    when it is at none of them.
    """
    first: Refused | Unreachable | None = None
    for url in state.hub_urls(state.load(config.state), config.remote_urls):
        hub = client(url)
        try:
            return register(config, hub, port, cli, reported), hub
        except (Refused, Unreachable) as error:
            first = first or error
    assert first is not None  # noqa: S101 - there is an address
    raise first


def register(
    config: Config, hub: HubClient, port: int, cli: Cli, reported: Sequence[Mapping[str, Any]] = ()
) -> Registered:
    """Register as the machine of machine.json, and replace state.json by the reply.

    `reported` are its projects. A machine of which another instance is registered and answers is a copy: it takes a
    new secret and registers as a new machine. Raises Refused or Unreachable; state.json is then as it was.
    """
    assert config.api_key is not None  # noqa: S101 - a remote URL without a key is refused before anything starts
    known = state.load(config.state)
    mine, copied = machine.ensure(config.machine), False
    for _ in range(_ATTEMPTS):
        challenge = _challenge(hub, config.api_key, known)
        if len(config.remote_urls) > 1:
            _require_same_hub(hub, challenge, known)
        body = {**_body(config, port, cli), "projects": list(reported)}
        if challenge is None:
            same_hub = known is not None and known.remote_url == hub.url
            body["agentId"] = known.agent_id if known is not None and same_hub else None
        else:
            body["agentId"] = known.agent_id if known is not None and not copied else None
            body["machine"] = _proof(challenge, mine, machine.instance(config), None if copied else known)
        try:
            answer = hub.register(config.api_key, body)
        except Refused as refusal:
            if challenge is not None and refusal.code == "MACHINE_UNKNOWN":
                mine = machine.unknown_to(config.machine, mine, challenge.hub_id)
            elif challenge is not None and refusal.code == "MACHINE_IN_USE":
                mine, copied = machine.renew(config.machine), True
            elif refusal.code != "NONCE_EXPIRED":
                raise
            continue
        hub_id = None if challenge is None else challenge.hub_id
        if hub_id is not None:
            machine.enrolled(config.machine, mine, hub_id)
        registered = state.State(
            *(answer.token, answer.agent_id, answer.heartbeat_interval_seconds, hub.url, answer.name), hub_id
        )
        state.save(config.state, registered)
        return Registered(registered, copy_of=known.agent_id if copied and known is not None else None)
    raise Unreachable(f"The hub at {hub.url} refuses the proofs of this machine; see its log.")


def note_registered(config: Config, db: Database, registered: Registered) -> list[str]:
    """Note a registration for /health; returns warnings for a person."""
    warnings = []
    if registered.copy_of is not None:
        warnings.append(
            f"This home is a copy: the machine {registered.copy_of} runs elsewhere and keeps its id and workspaces."
            f" This machine is {registered.state.agent_id} from now on; delete the copied workspaces that you do not"
            " need here."
        )
        agent.note(db, "copy", {"instance": machine.instance(config), "problem": warnings[0]})
    agent.note(db, "registration", {"registered": True})
    return warnings


def _require_same_hub(hub: HubClient, challenge: Challenge | None, known: state.State | None) -> None:
    """Raise Unreachable unless the hub of the last registration proved itself."""
    if challenge is None:
        raise Unreachable(f"The server at {hub.url} does not prove that it is the hub, so nothing was sent.")
    if known is not None and known.hub_id not in (None, challenge.hub_id):
        raise Unreachable(
            f"The hub at {hub.url} is another one than that of the last registration, so nothing was sent. To use it,"
            " name its address alone."
        )


def _challenge(hub: HubClient, api_key: str, known: state.State | None) -> Challenge | None:
    """Ask the hub for a nonce; None for a hub that knows no proofs, as those of 0.1.0.

    Raises Refused, and Unreachable when the hub of the last registration proved itself and what answers now does not.
    """
    try:
        return hub.challenge(api_key)
    except Refused as refusal:
        if refusal.status not in _WITHOUT_PROOFS:
            raise
        parts = urlsplit(hub.url)
        vouched = parts.scheme == "https" or is_loopback(parts.hostname or "")
        if vouched or known is None or known.hub_id is None or known.remote_url != hub.url:
            return None
        if refusal.status == _UNAUTHORIZED:
            raise
        raise Unreachable(
            f"The server at {hub.url} does not prove that it is the hub this agent registered with, so nothing was"
            " sent. If it was replaced by an older version, move state.json away and start again."
        ) from None


def _proof(
    challenge: Challenge, mine: machine.Machine, instance: str, known: state.State | None
) -> dict[str, str | None]:
    """Return the proof of this machine for a registration.

    The verifier goes only to a hub that does not know it.
    """
    verifier = proofs.verifier(mine.secret, challenge.hub_id)
    former = None if known is None or known.agent_id is None else proofs.of_former(known.token, challenge.nonce)
    return {
        "id": proofs.machine_id(verifier),
        "nonce": challenge.nonce,
        "instance": instance,
        "proof": proofs.of_machine(verifier, challenge.nonce, instance),
        "verifier": None if challenge.hub_id in mine.hubs else verifier,
        "former": former,
    }


def _body(config: Config, port: int, cli: Cli) -> dict[str, Any]:
    certificate = tls.certificate(config)
    return {
        "protocol": PROTOCOL,
        "name": config.name,
        "version": __version__,
        "platform": f"{platform.system().lower()}-{platform.machine()}",
        "url": config.public_url,
        "port": port,
        "direct": config.called_directly,
        "tlsFingerprint": certificate.fingerprint if certificate else None,
        "workers": config.workers,
        "labels": list(config.labels),
        "capabilities": [*CAPABILITIES, *([SHARES_LOCAL] if config.share_local else [])],
        "permissions": config.ceiling,
        "claudeVersion": cli.version,
    }
