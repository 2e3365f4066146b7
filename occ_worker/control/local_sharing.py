"""Announcing local executions to the hub, for `occ start --share-local`.

The hub reads the events of an announced execution as it does for its own. An execution that the hub has not confirmed
is announced again; the hub recognizes it by its id.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from occ_app.config.config import Config
from occ_app.database.database import Database
from occ_app.errors import Refused, Unreachable
from occ_app.executions import sharing
from occ_app.executions.records import Execution
from occ_app.home import state

if TYPE_CHECKING:
    from occ_app.client.hub_client import HubClient

log = logging.getLogger("occ.control")

_CALL_SECONDS = 10.0
_FIRST_PAUSE, _LONGEST_PAUSE = 2.0, 60.0
_FINAL = (400, 409, 413, 422)  # refusals that a retry does not change


class LocalSharing:
    """The announcements of one control process.

    `hub` returns a client of an address for calls of at most so many seconds.
    """

    def __init__(self, config: Config, db: Database, hub: Callable[[str, float], HubClient]) -> None:
        self._config = config
        self._db = db
        self._hub = hub
        self._lock = threading.Lock()
        self._pause, self._next = _FIRST_PAUSE, 0.0

    def due(self) -> bool:
        """Return whether anything is to be announced; called about once a second."""
        if not self._config.share_local or self._config.remote_url is None or self._lock.locked():
            return False
        return time.monotonic() >= self._next and bool(sharing.due(self._db))

    def share(self) -> None:
        """Announce due executions in order until the hub does not answer."""
        if not self._lock.acquire(blocking=False):
            return
        try:
            identity = state.load(self._config.state)
            if identity is None or identity.agent_id is None:
                return
            hub = self._hub(state.hub_urls(identity, self._config.remote_urls)[0], _CALL_SECONDS)
            for execution in sharing.due(self._db):
                sharing.settle(self._db, execution.number, announced=_announce(hub, identity, execution))
            self._pause = _FIRST_PAUSE
        except (Refused, Unreachable) as error:
            log.info("the hub does not accept local executions now: %s", error)
            self._next = time.monotonic() + self._pause
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        finally:
            self._lock.release()


def _announce(hub: HubClient, identity: state.State, execution: Execution) -> bool:
    """Announce an execution, and return whether the hub now shows it.

    Raises Refused when a later attempt may succeed.
    """
    if execution.prompt is None or identity.agent_id is None:
        return False
    try:
        return hub.announce(identity.agent_id, identity.token, _body(execution))
    except Refused as refusal:
        if refusal.status not in _FINAL:
            raise
        log.warning("execution %s is not shown on the hub: %s", execution.execution_id, refusal)
        return False


def _body(execution: Execution) -> dict[str, Any]:
    return {
        "executionId": execution.execution_id,
        "workspaceId": execution.workspace_id,
        "workspaceGeneration": execution.workspace_generation,
        "conversationId": execution.conversation,
        "prompt": execution.prompt,
        "permissions": execution.permissions,
        "model": execution.requested_model,
        "timeoutSeconds": execution.timeout_seconds,
        "idleTimeoutSeconds": execution.idle_timeout_seconds,
        "createdAt": execution.created_at,
        "startedAt": execution.started_at,
    }
