"""Sending a notification: its text, its channel's own way, and the result."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from occ_app.config.config import HubConfig
from occ_app.database.database import Database
from occ_app.errors import ConfigError, Unreachable
from occ_app.hub import channels
from occ_app.hub.channels import Channel
from occ_app.hub.deliveries import Claimed
from occ_worker.notify.message import message_of

_UNSUBSCRIBED = (404, 410)  # a push service's words for a browser that has no subscription any more


@dataclass(frozen=True)
class Sent:
    """The result of an attempt: the receiver's status, and why it failed; `final` when no other attempt may follow.

    `gone` when the receiver is gone for good, so that its channel can be removed.
    """

    status: int | None
    problem: str | None
    final: bool = False
    gone: bool = False

    @classmethod
    def of_status(cls, status: int, final: Collection[int] = ()) -> Sent:
        """Return the result for an HTTP status; those in `final` mean that no attempt can succeed."""
        if 200 <= status < 300:
            return cls(status, None)
        return cls(status, f"it answered {status}", status in final)


def notify(config: HubConfig, db: Database, seconds: float, claimed: Claimed, channel: Channel) -> Sent:
    """Send a notification by its channel, within about so many seconds."""
    try:
        return _sent(config, db, seconds, claimed, channel)
    except (KeyError, TypeError):
        return Sent(None, "its address cannot be read; remove it and add it again", final=True)
    except ConfigError as error:
        return Sent(None, str(error), final=True)
    except Unreachable as error:
        return Sent(None, str(error))


def _sent(config: HubConfig, db: Database, seconds: float, claimed: Claimed, channel: Channel) -> Sent:
    """Send a notification. Raises Unreachable, ConfigError, and KeyError or TypeError for a damaged address."""
    message = message_of(claimed, config.public_url)
    if channel.kind == channels.NTFY:
        from occ_worker.notify import ntfy

        # A topic that is refused or not there stays so until somebody changes it.
        return Sent.of_status(ntfy.send(channel, message, seconds), final=(400, 401, 403, 404, 410))
    if channel.kind == channels.PUSH:
        from occ_worker.notify import web_push

        status = web_push.send(config, channel, message, seconds)
        sent = Sent.of_status(status, final=(400, 401, 403, 404, 410, 413))
        return replace(sent, gone=status in _UNSUBSCRIBED)
    if channel.kind == channels.EMAIL:
        from occ_worker.notify import mail

        mail.send(config, channel, message, claimed.delivery_id, seconds)
    elif channel.kind == channels.SLACK:
        from occ_worker.notify import by_slack

        by_slack.send(config, db, channel, message, claimed.delivery_id)
    elif channel.kind == channels.APPRISE:
        from occ_worker.notify import by_apprise

        by_apprise.send(channel, message)
    else:
        return Sent(None, f"this version has no channels of the kind {channel.kind}", final=True)
    return Sent(None, None)
