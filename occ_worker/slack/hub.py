"""The hub as the Slack process uses it: its rows, its machines, and the wake-ups of its other processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from occ_app.config.config import HubConfig
from occ_app.database.database import Database
from occ_app.hub.agents import Agents
from occ_app.slack.tokens import Tokens

if TYPE_CHECKING:
    from occ_app.hub.approvals import HubApprovals
    from occ_app.hub.remote_files import RemoteFiles


@dataclass(frozen=True)
class SlackHub:
    """`wake` starts a run that waits, `ring` wakes the process that runs one, `address` is that of the pages.

    `is_private` returns whether only few people see a channel, None when Slack does not say. `later` wakes the thread
    that handles what takes long. `open_dialog` shows a dialog to the person whose click has that trigger; it returns
    False when Slack refuses it.
    """

    config: HubConfig
    db: Database
    agents: Agents
    approvals: Callable[[], HubApprovals]  # loaded at the first decision: it takes 10 MB
    tokens: Tokens
    wake: Callable[[], None]
    ring: Callable[[str], None]
    address: Callable[[], str | None]
    files: Callable[[], RemoteFiles]  # as well
    is_private: Callable[[str], bool | None]
    later: Callable[[], None]
    open_dialog: Callable[[str, dict[str, Any]], bool]

    def page(self, execution_id: str) -> str | None:
        """Return the address of a run's page; None for a hub whose address is not known."""
        address = self.address()
        return None if address is None else f"{address}/runs/{execution_id}"
