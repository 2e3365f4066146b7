"""Agents and hubs elsewhere that this user has logged in to.

Their addresses, keys and pinned certificates are stored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from occ_app.cli import user_state
from occ_app.errors import ConfigError

FILE = "remotes.json"
LOCAL, LOCAL_HUB = "local", "local-hub"  # this machine's agent, and its hub
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"


@dataclass(frozen=True)
class Remote:
    """One agent or hub elsewhere.

    `kind` is agent or hub, `pin` the SHA-256 of the only certificate to trust.
    """

    name: str
    url: str
    kind: str
    token: str = field(repr=False)
    pin: str | None = None


def is_name(text: str) -> bool:
    """Whether a remote can have this name."""
    return re.fullmatch(_NAME, text) is not None and text not in (LOCAL, LOCAL_HUB)


def listing() -> list[Remote]:
    """All remotes, by name."""
    return [_remote(name, entry) for name, entry in sorted(_entries(user_state.read(FILE)).items())]


def find(name: str) -> Remote | None:
    """Return the remote of this name."""
    return next((remote for remote in listing() if remote.name == name), None)


def at(url: str) -> Remote | None:
    """Return the remote with this address."""
    return next((remote for remote in listing() if remote.url == url), None)


def default() -> Remote | None:
    """Return the remote that commands use by default.

    None for this machine's agent.
    """
    chosen = user_state.read(FILE).get("default")
    return find(chosen) if isinstance(chosen, str) else None


def save(remote: Remote) -> None:
    """Store a remote and make it the default.

    It replaces one with the same name or address.
    """
    with user_state.changed(FILE) as content:
        entries = {name: entry for name, entry in _entries(content).items() if entry.get("url") != remote.url}
        entries[remote.name] = {"url": remote.url, "kind": remote.kind, "token": remote.token, "pin": remote.pin}
        content.update(remotes=entries, default=remote.name)


def use(name: str | None) -> None:
    """Make a remote the default, or with None this machine's agent."""
    with user_state.changed(FILE) as content:
        content["default"] = name


def remove(name: str) -> bool:
    """Forget a remote and its key. Returns False when there is none of this name."""
    with user_state.changed(FILE) as content:
        entries = dict(_entries(content))
        removed = entries.pop(name, None) is not None
        content["remotes"] = entries
        if content.get("default") == name:
            content["default"] = None
    return removed


def free_name(url: str) -> str:
    """Return a name for a remote.

    It is the stored one, or its host's, with a number where that is used.
    """
    known = at(url)
    if known is not None:
        return known.name
    host = re.sub(r"[^A-Za-z0-9._-]+", "-", urlsplit(url).hostname or "").strip("-._")[:50] or "remote"
    taken = {remote.name for remote in listing()} | {LOCAL, LOCAL_HUB}
    names = [host, *(f"{host}-{number}" for number in range(2, len(taken) + 3))]
    return next(name for name in names if name not in taken)


def _entries(content: Mapping[str, Any]) -> Mapping[str, Any]:
    entries = content.get("remotes", {})
    return entries if isinstance(entries, dict) else {}


def _remote(name: str, entry: Any) -> Remote:
    try:
        return Remote(name, str(entry["url"]), str(entry["kind"]), str(entry["token"]), entry["pin"])
    except (KeyError, TypeError):
        raise ConfigError(f"The remote {name!r} is damaged; `occ logout {name}` removes it.") from None
