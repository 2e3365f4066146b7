"""The privacy of channels as Slack reports it, cached for a few minutes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from occ_app.slack import threads

log = logging.getLogger("occ.slack")

_KNOWN_SECONDS, _UNKNOWN_SECONDS = 300.0, 60.0
_SHARED = ("is_ext_shared", "is_pending_ext_shared", "is_org_shared", "is_shared")


@dataclass
class Channels:
    """The known channels by id.

    `web` is a client of Slack's Web API; `clock` returns seconds.
    """

    web: Any
    clock: Callable[[], float] = time.monotonic
    _found: dict[str, tuple[float, bool | None]] = field(default_factory=dict)

    def is_private(self, channel: str) -> bool | None:
        """Return whether only invited people of this workspace see a channel.

        Returns None when Slack does not say.
        """
        if channel.startswith(threads.DIRECT):
            return True
        now = self.clock()
        until, private = self._found.get(channel, (now, None))
        if now < until:
            return private
        private = self._asked(channel)
        self._found = {name: kept for name, kept in self._found.items() if kept[0] > now}
        self._found[channel] = now + (_UNKNOWN_SECONDS if private is None else _KNOWN_SECONDS), private
        return private

    def _asked(self, channel: str) -> bool | None:
        try:
            info = self.web.conversations_info(channel=channel)["channel"]
            private = any(info.get(name) is True for name in ("is_private", "is_im", "is_mpim"))
            return private and not any(info.get(name) for name in _SHARED)
        except Exception as error:  # slack_sdk raises any network error; an older app lacks the scope
            log.info("Slack does not say whether a channel is private: %s", error)
            return None
