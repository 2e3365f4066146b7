"""The changes of an execution, as its agent or hub gives them."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from typing import IO, Any
from urllib.parse import quote, urlencode

from occ_app.client.agent_client import AgentClient
from occ_app.errors import Unreachable

MAX_FILE_BYTES = 200_000_000
_MAX_PATCH_BYTES = 1_000_000_000
_STATUSES = ("added", "modified", "deleted", "renamed")


@dataclass(frozen=True)
class Entry:
    """One file that an execution changed.

    Modes are git's, in octal, None where there is no file. `additions` and `deletions` count lines, 0 for a `binary`
    file. `old_path` is that of a renamed file.
    """

    path: str
    old_path: str | None
    status: str
    additions: int
    deletions: int
    binary: bool
    mode: str | None
    old_mode: str | None


@dataclass(frozen=True)
class Changes:
    """All changes of an execution.

    `base` and `result` are the ids of the workspace's snapshots before and after it. `truncated`: something is left
    out. `exact` is False when others may have changed files meanwhile.
    """

    entries: tuple[Entry, ...]
    base: str | None
    result: str | None
    additions: int
    deletions: int
    truncated: bool
    exact: bool


def changes(client: AgentClient, execution_id: str) -> Changes:
    """Return the changes of an execution.

    Raises Refused where there are none to show, and Unreachable.
    """
    reply = client.call("GET", f"/executions/{quote(execution_id, safe='')}/changes")
    try:
        entries = tuple(_entry(each) for each in reply["entries"])
        sums = reply.get("changes") if isinstance(reply.get("changes"), dict) else reply
        assert isinstance(sums, dict)  # noqa: S101 - for the type checker
        return Changes(
            entries,
            _tree(reply["base"]),
            _tree(reply["result"]),
            sum(entry.additions for entry in entries),
            sum(entry.deletions for entry in entries),
            bool(sums.get("truncated", False)),
            bool(sums.get("exact", True)),
        )
    except (KeyError, TypeError, ValueError):
        raise Unreachable(f"{client.url} did not answer as OCC does; is its version older?") from None


def file(client: AgentClient, execution_id: str, path: str, at: str) -> bytes:
    """Return a file as it was at the start or the end of an execution.

    Raises Refused and Unreachable.
    """
    content = io.BytesIO()
    query = urlencode({"at": at})
    client.download(
        f"/executions/{quote(execution_id, safe='')}/files/{quote(path, errors='surrogateescape')}?{query}",
        content,
        MAX_FILE_BYTES,
    )
    return content.getvalue()


def diff(client: AgentClient, execution_id: str, output: IO[bytes], path: str | None = None) -> None:
    """Write the patch of an execution, or of one of its files, to `output`.

    Raises Refused and Unreachable.
    """
    query = "" if path is None else "?" + urlencode({"path": path}, errors="surrogateescape")
    client.download(f"/executions/{quote(execution_id, safe='')}/diff{query}", output, _MAX_PATCH_BYTES)


def goes_on(execution_id: str) -> str:
    """Return the sentence for an execution whose changes are asked for before its end."""
    return f"{execution_id} has not ended yet; wait for it with `occ jobs tail --follow {execution_id}`."


def _tree(value: Any) -> str | None:
    if value is not None and not re.fullmatch(r"[0-9a-f]{40}", value):
        raise ValueError(value)
    return None if value is None else str(value)


def _entry(given: Any) -> Entry:
    if given["status"] not in _STATUSES:
        raise ValueError(given["status"])
    return Entry(
        _text(given["path"]),
        None if given["oldPath"] is None else _text(given["oldPath"]),
        given["status"],
        int(given["additions"] or 0),
        int(given["deletions"] or 0),
        bool(given["binary"]),
        given["mode"],
        given["oldMode"],
    )


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(value)
    return value
