"""The hub for the Slack process: its rows, its machines and its doorbells."""

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
    """The hub's objects and functions that the Slack process uses.

    `wake` starts a waiting run, `ring` wakes the process that runs one, `address` returns the address of the pages.
    `is_private` returns whether only few people see a channel, None when Slack does not say. `later` wakes the thread
    that handles slow payloads. `open_dialog` shows a dialog to the person whose click has that trigger; it returns
    False when Slack refuses it.
    """

    config: HubConfig
    db: Database
    agents: Agents
    approvals: Callable[[], HubApprovals]  # loaded at the first decision, because it takes 10 MB
    tokens: Tokens
    wake: Callable[[], None]
    ring: Callable[[str], None]
    address: Callable[[], str | None]
    files: Callable[[], RemoteFiles]  # loaded late, as well
    is_private: Callable[[str], bool | None]
    later: Callable[[], None]
    open_dialog: Callable[[str, dict[str, Any]], bool]

    def page(self, execution_id: str) -> str | None:
        """Return the address of a run's page; None when the hub's is not known."""
        address = self.address()
        return None if address is None else f"{address}/runs/{execution_id}"
