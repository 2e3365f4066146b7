"""Checks of the hub from its agent: identity, clock, version, and the way back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from urllib.parse import urlsplit

from occ_app import __version__
from occ_app.client.hub_client import Echo, HubClient
from occ_app.config.config import Config
from occ_app.config.settings import is_loopback
from occ_app.doctor.findings import NOTE, WRONG, Finding, note, ok, wrong
from occ_app.errors import Refused, Unreachable, Untrusted
from occ_app.home import daemon, machine, state
from occ_app.system import versions

_SKEW_SECONDS, _LARGE_SKEW_SECONDS = 30.0, 300.0


def hub(config: Config) -> Iterator[Finding]:
    """Call the hub, and have it call this agent back."""
    if config.remote_url is None:
        yield ok("hub", "none; this agent is standalone")
        return
    identity = state.load(config.state)
    first, *others = state.hub_urls(identity, config.remote_urls)
    reached = list(_reachable(HubClient(first, pin=config.remote_pin), config))
    yield from reached
    for url in others:  # where the hub may be later
        found = _reachable(HubClient(url, pin=config.remote_pin), config)
        yield from (replace(finding, state=NOTE if finding.state == WRONG else finding.state) for finding in found)
    if any(finding.state == WRONG for finding in reached):
        return  # a registration or an echo would fail for the same cause
    if identity is None or identity.agent_id is None or identity.remote_url not in config.remote_urls:
        yield note("echo", "This agent is not registered with the hub yet", "`occ start` registers it.")
        return
    begun = datetime.now(UTC)
    client = HubClient(identity.remote_url, pin=config.remote_pin)
    try:
        echo = client.echo(identity.agent_id, identity.token)
    except Refused as refusal:
        yield _refused(refusal)
        return
    except Unreachable as error:
        yield wrong("echo", str(error), "Try again; if it stays, see the hub's `occ hub status`.")
        return
    yield _clock(echo, begun, datetime.now(UTC))
    yield _versions(echo.version)
    yield _way_back(config, echo)


def _reachable(client: HubClient, config: Config) -> Iterator[Finding]:
    """Prove both sides to each other with the key, which is not sent."""
    pinned = "the pinned certificate" if config.remote_pin else "a trusted certificate"
    secure = client.url.startswith("https://")
    try:
        if config.api_key is None:
            yield wrong("hub", f"There is no key for {client.url}", "Set OCC_API_KEY or api_key in config.toml.")
            return  # nothing was sent, so its certificate is not known
        client.challenge(config.api_key)
        yield ok("hub", f"{client.url} answers and knows this machine's key")
    except Untrusted as error:
        yield wrong("pin", str(error), "Compare it with `occ hub status` there; only then change OCC_REMOTE_PIN.")
        return
    except Refused as refusal:
        if refusal.status == 401:
            yield wrong("hub", str(refusal), "Set OCC_API_KEY to a valid key of this hub.")
        else:
            yield note("hub", f"{client.url} answers without a proof: {refusal}", "Upgrade the hub.")
    except Unreachable as error:
        yield wrong("hub", str(error), "Check the address, the network, and `occ hub status` there.")
        return
    if secure:
        yield ok("pin", f"{client.url} shows {pinned}")
    elif is_loopback(urlsplit(client.url).hostname or ""):
        yield ok("pin", f"not needed; {client.url} is on this machine")
    else:
        yield note("pin", f"{client.url} has no TLS", "Use https:// unless the network is yours alone.")


def _refused(refusal: Refused) -> Finding:
    if refusal.status == 401:
        return wrong("echo", str(refusal), "`occ stop` and `occ start` register again.")
    if refusal.status in (404, 405):
        return note("echo", "The hub has no echo: it is of an older version", "Upgrade the hub.")
    return wrong("echo", str(refusal), "Try again; if it stays, see the hub's `occ logs web --hub`.")


def _clock(echo: Echo, begun: datetime, ended: datetime) -> Finding:
    try:
        there = datetime.fromisoformat(echo.time)
    except ValueError:
        return note("clock", "The hub does not say its time")
    # Within the call it may have looked at any time.
    ahead = max((begun - there).total_seconds(), (there - ended).total_seconds(), 0.0)
    if ahead <= _SKEW_SECONDS:
        return ok("clock", f"it agrees with the hub's within {_SKEW_SECONDS:.0f} s")
    shown = f"it differs from the hub's by {ahead:.0f} s"
    step = "Set it: `timedatectl set-ntp true` on the machine that is wrong."
    return wrong("clock", shown, step) if ahead > _LARGE_SKEW_SECONDS else note("clock", shown, step)


def _versions(hub_version: str) -> Finding:
    shown = f"this machine has {__version__}, the hub {hub_version}"
    if versions.compatible(__version__, hub_version):
        return ok("versions", shown)
    return wrong("versions", f"{shown}: more than one minor version apart", "Upgrade the older one: `occ upgrade`.")


def _way_back(config: Config, echo: Echo) -> Finding:
    if daemon.find(config) is None:
        return note("echo", "The agent is not running, so the hub cannot call it", "`occ start` starts it.")
    if echo.via is None or echo.problem is not None:
        reason = echo.problem or "there is no link"
        return wrong(
            "echo",
            f"The hub cannot call this agent: {reason}",
            "Let WebSockets pass in proxies between them, or use --public-url; see `occ logs control`.",
        )
    if echo.instance not in (None, machine.instance(config)):
        return wrong("echo", "The hub reaches another copy of this home", "Stop the copy that is not needed.")
    return ok("echo", f"hub, {echo.via}, agent and back in {echo.milliseconds:.0f} ms")
