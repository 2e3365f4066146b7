"""Authentication of callers.

It refuses a wrong Host, a foreign Origin and an unknown caller before anything else.
"""

from __future__ import annotations

import hmac
import ipaddress
import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import lru_cache
from urllib.parse import urlsplit

from flask import Flask, g, request

from occ_app import errors
from occ_app.web import pacing

log = logging.getLogger("occ.web")

_GUESS_SECONDS = 0.1
READING = ("GET", "HEAD", "OPTIONS")
_guessing = threading.BoundedSemaphore(16)


@dataclass(frozen=True)
class Caller:
    """The sender of a request: on a hub one of its keys, on an agent its token.

    Everything that a key makes belongs to its owner, and all keys of an owner see the same. A viewer only reads.
    `refused` returns True once the secret that opened a stream has been revoked.
    """

    key_id: str | None = None
    owner_id: str | None = None
    admin: bool = True
    viewer: bool = False
    known: bool = True  # False for a visitor who has shown no secret yet
    machine: bool = False  # a machine of a hub, whose endpoint checks its credentials
    refused: Callable[[], bool] = field(default=lambda: False, compare=False)

    @property
    def visible_to(self) -> str | None:
        """Return the owner whose workspaces and executions this caller may use.

        None for all.
        """
        return None if self.admin else (self.owner_id or "")


def guard(
    app: Flask,
    hosts: Collection[str],
    public_url: str | None,
    identify: Callable[[str], Caller | None],
    open_to_viewers: Collection[str] = (),
) -> None:
    """Refuse a wrong Host, a foreign Origin and callers that `identify` does not know.

    This comes before all other checks. `identify` gets the bearer token, empty when there is none. A viewer's request
    that is not one of READING is refused, save to the endpoints `open_to_viewers`.
    """

    @app.before_request
    def check() -> None:
        pacing.answering(request.remote_addr or "", known=False)
        _check_host(hosts)
        _check_origin(public_url)
        g.began = time.monotonic()
        g.caller = _identified(identify)
        if g.caller.known and not g.caller.machine:
            pacing.answering(g.caller.key_id, known=True)
        if g.caller.viewer and request.method not in READING and request.endpoint not in open_to_viewers:
            raise errors.Forbidden("This key has the role viewer and may only read. Use a key with the role owner.")


def caller() -> Caller:
    """Who the request being answered comes from."""
    identity: Caller = g.caller
    return identity


def require_admin() -> None:
    """Raise Forbidden unless the caller's key is an admin's."""
    if not caller().admin:
        raise errors.Forbidden("This needs an admin key. `occ hub` on the hub's machine can do it without one.")


def asked_at() -> float:
    """Return when the secret of the current request was checked.

    In seconds on the monotonic clock.
    """
    began: float = g.began
    return began


def same_secret(secret: str, right: str) -> bool:
    """Whether two secrets are equal, in a time that does not tell where they differ."""
    # Compared as bytes: compare_digest refuses text that is not ASCII, and a header may hold anything.
    return hmac.compare_digest(secret.encode(), right.encode())


def _check_host(hosts: Collection[str]) -> None:
    name = _hostname(request.environ.get("HTTP_HOST", ""))
    if name is None or not (name in hosts or _is_address(name)):
        raise errors.RequestError(
            "WRONG_HOST",
            "This agent does not accept that Host; use its address, or allow the host with --allowed-host.",
        )


def _check_origin(public_url: str | None) -> None:
    origin = request.headers.get("Origin")
    if origin is None:
        return
    host = request.environ.get("HTTP_HOST", "")
    if not is_own_origin(origin, host, public_url, secure=request.is_secure):
        raise errors.RequestError(
            "FORBIDDEN_ORIGIN",
            "Pages of other sites may not call this server. If a proxy is in between, start it with --public-url, the"
            " address in the browser.",
        )


def is_own_origin(origin: str, host: str, public_url: str | None, *, secure: bool) -> bool:
    """Return whether a page at `origin` is this server's.

    It has the request's Host, or the public URL's name and port. A Host with the public name and another port is
    another server's. `secure` is whether the request came by TLS.
    """
    page, public = _authority(origin), _authority(public_url or "")
    if page is None:
        return False
    name, port = _hostname(host), _port(host)
    if page == (name, port or (443 if secure or origin.lower().startswith("https:") else 80)):
        return True
    return page == public and not (name == public[0] and port not in (None, public[1]))


def _authority(url: str) -> tuple[str, int] | None:
    """Return the host name and the port of a URL.

    The scheme's default port where it names none; None for another scheme.
    """
    try:
        parts = urlsplit(url.lower())
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
    except (ValueError, KeyError):
        return None
    return (parts.hostname.rstrip("."), port) if parts.hostname else None


def _port(host: str) -> int | None:
    match = re.search(r":(\d{1,5})$", host)
    return int(match[1]) if match else None


def _identified(identify: Callable[[str], Caller | None]) -> Caller:
    secret = bearer()
    identity = identify(secret)
    if identity is None:
        if secret:
            slow_down()
            raise unauthorized(
                "This token or key is wrong, expired or revoked; `occ token` prints an agent's, `occ hub keys create`"
                " makes a hub's."
            )
        raise unauthorized()
    return identity


def bearer() -> str:
    """Return the request's bearer token; empty when it has none."""
    scheme, _, secret = request.headers.get("Authorization", "").partition(" ")
    return secret.strip() if scheme.lower() == "bearer" else ""


def unauthorized(
    message: str = (
        "Send the header Authorization: Bearer TOKEN; `occ token` prints an agent's,"
        " and `occ hub keys create` makes a hub's."
    ),
) -> errors.RequestError:
    return errors.RequestError("UNAUTHORIZED", message)


def slow_down() -> None:
    """Note a wrong secret, and delay the reply to make guessing slow.

    Only so many replies are delayed that other requests have threads.
    """
    log.warning("a wrong token came from %s", request.remote_addr)
    if _guessing.acquire(blocking=False):
        try:
            time.sleep(_GUESS_SECONDS)
        finally:
            _guessing.release()


def _hostname(host: str) -> str | None:
    """Return the name in a Host header without its port; None if invalid."""
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:\d{1,5})?", host)
    return match.group(1).strip("[]").lower().rstrip(".") if match else None


@lru_cache(maxsize=64)
def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def own_hosts(public_url: str | None, allowed: Collection[str]) -> frozenset[str]:
    """Return the Host names an agent answers to, besides every IP address."""
    names = {"localhost", socket.gethostname().lower(), *(name.lower() for name in allowed)}
    if public_url:
        names.add((urlsplit(public_url).hostname or "").lower())
    return frozenset(names)
