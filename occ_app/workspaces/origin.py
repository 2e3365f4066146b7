"""The origin of a workspace on an agent: a hub, its key and the upload.

A hub names it in a header of uploads and executions. A workspace without one was uploaded here, or by a hub that sends
no such header, such as one of 0.1.0.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass

from occ_app import errors

HEADER = "OCC-Origin"
PATTERN = "^(hub-[0-9a-f]{32}) (-|key-[0-9a-f]{1,64})( [0-9a-f]{64} [0-9TZ:.-]{1,40})?$"
OPERATOR = "-"  # in place of a key: the hub's operator


@dataclass(frozen=True)
class Origin:
    """The hub and the key that sent a workspace, and the upload.

    `zip` is the SHA-256 of the upload, `uploaded_at` when the hub got it, by the hub's clock. Both are empty in the
    header of an execution.
    """

    hub_id: str
    key_id: str
    zip: str = ""
    uploaded_at: str = ""

    def owner(self) -> dict[str, str]:
        """Return the header that names the hub and the key alone."""
        return {HEADER: f"{self.hub_id} {self.key_id}"}

    def upload(self) -> dict[str, str]:
        """Return the header that names the upload, too."""
        return {HEADER: f"{self.hub_id} {self.key_id} {self.zip} {self.uploaded_at}"}

    def same_owner(self, other: Origin | None) -> bool:
        """Return whether two origins are of one key of one hub."""
        return other is not None and (self.hub_id, self.key_id) == (other.hub_id, other.key_id)


def parse(header: str) -> Origin | None:
    """Return the origin in a header, None for an empty one.

    Raises RequestError for anything else.
    """
    if not header:
        return None
    if not re.fullmatch(PATTERN, header):
        raise errors.RequestError("BAD_REQUEST", f"The header {HEADER} is not valid; update the agent.")
    return Origin(*header.split(" "))


def stored(origin: Origin | None) -> str | None:
    """Return an origin as a row keeps it."""
    return None if origin is None else json.dumps(asdict(origin))


def of_row(value: str | None) -> Origin | None:
    """Return the origin that a row keeps; None for one that cannot be read."""
    try:
        return None if value is None else Origin(**json.loads(value))
    except (ValueError, TypeError, RecursionError):
        return None


def of_record(value: object) -> Origin | None:
    """Return the origin in an agent's record of a workspace.

    None without a valid one.
    """
    if not isinstance(value, dict):
        return None
    hub_id, key_id, zip_hash, uploaded_at = (value.get(name) for name in ("hubId", "keyId", "zip", "uploadedAt"))
    try:
        return parse(f"{hub_id} {key_id} {zip_hash} {uploaded_at}")
    except errors.RequestError:
        return None


def refuse_other(workspace_id: str, held: Origin | None, sender: Origin | None) -> None:
    """Raise Conflict for an upload that comes from elsewhere than the workspace did."""
    if held is None or held.same_owner(sender):
        return
    raise errors.Conflict(
        "WORKSPACE_CONFLICT",
        f"Workspace {workspace_id} was sent by a hub; upload under another id, or delete it here first.",
        {"workspaceId": workspace_id, "hubId": held.hub_id},
    )


def refuse_execution(workspace_id: str, held: Origin | None, sender: Origin | None) -> None:
    """Raise NotFound for an execution in a workspace that another hub or key sent."""
    if held is not None and sender is not None and not held.same_owner(sender):
        raise errors.workspace_not_found(workspace_id)
