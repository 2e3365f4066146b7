"""state.json: the identity of this agent.

Its id and its token survive restarts; a hub's reply replaces them in one step.
"""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from occ_app.errors import StartFailed


@dataclass(frozen=True)
class State:
    """The agent's id and token.

    `agent_id` is the hub's name for this agent (None when it never registered); `token` opens the agent's API.
    """

    token: str = field(repr=False)
    agent_id: str | None = None
    heartbeat_interval_seconds: float = 30
    remote_url: str | None = None
    name: str | None = None  # that the hub uses, in a registration's reply; not stored
    hub_id: str | None = None  # None for a hub that has none, as those of 0.1.0


def hub_urls(known: State | None, urls: Sequence[str]) -> list[str]:
    """Return the addresses of the hub, that of the last registration first."""
    former = known.remote_url if known is not None else None
    return sorted(urls, key=lambda url: url != former)


def new_token() -> str:
    import secrets  # here and below: most processes only read, and a start waits for every import

    return "occ_" + secrets.token_urlsafe(32)


def load(path: Path) -> State | None:
    """Return the stored state, None when there is none.

    Raises StartFailed when it cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return State(
            token=_text(content["token"]),
            agent_id=None if content.get("agentId") is None else _text(content["agentId"]),
            heartbeat_interval_seconds=float(content.get("heartbeatIntervalSeconds", 30)),
            remote_url=content.get("remoteUrl"),
            hub_id=None if content.get("hubId") is None else _text(content["hubId"]),
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise StartFailed(f"{path} cannot be read; move it away and start again to get a new token.") from None


def check_private(path: Path, renewed: str = "a new token") -> None:
    """Raise StartFailed when another user could have read or written a secret's file.

    `renewed` names the thing that a start without the file makes.
    """
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISREG(status.st_mode):
        return  # put aside as unreadable
    if status.st_uid != os.geteuid():
        raise StartFailed(f"{path} belongs to another user; move it away and start again to get {renewed}.")
    if status.st_mode & 0o077:
        raise StartFailed(
            f"{path} can be read by others; run `chmod 600 {path}`. If someone may have read it, remove it and"
            f" start again to get {renewed}."
        )


def save(path: Path, state: State) -> None:
    """Replace the state atomically; readable by its owner only."""
    content = {
        "agentId": state.agent_id,
        "token": state.token,
        "heartbeatIntervalSeconds": state.heartbeat_interval_seconds,
        "remoteUrl": state.remote_url,
        "hubId": state.hub_id,
    }
    write_private(path, content)


def write_private(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a file by this JSON, on the disk, in one step.

    Only its owner can read it.
    """
    import tempfile

    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def ensure(path: Path) -> State:
    """Return the stored state, or one with a new token."""
    existing = load(path)
    if existing is None:
        existing = State(new_token())
        save(path, existing)
    return existing


class TokenFile:
    """The token as state.json has it now; read again only when the file was replaced."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int] | None = None
        self._token: str | None = None
        self._looked = 0.0

    def current(self) -> str | None:
        try:
            status = self._path.stat()
        except FileNotFoundError:
            return None
        seen = (status.st_ino, status.st_mtime_ns)
        if seen != self._seen:
            state = load(self._path)
            self._token = state.token if state else None
            self._seen = seen
        return self._token

    def recent(self) -> str | None:
        """Return the token, read at most a second ago.

        For checks at each event of each stream.
        """
        now = time.monotonic()
        if now >= self._looked + 1:
            self._looked = now
            self.current()
        return self._token


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("not a text")
    return value
