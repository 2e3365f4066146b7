"""Sending a notification through its channel, and the result."""

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

_UNSUBSCRIBED = (404, 410)  # a push service's statuses for a browser whose subscription has ended


@dataclass(frozen=True)
class Sent:
    """The result of an attempt.

    It has the receiver's status, and the problem if the attempt failed. `final` means that it must not be retried;
    `gone` means that the receiver no longer exists, so that its channel can be removed.
    """

    status: int | None
    problem: str | None
    final: bool = False
    gone: bool = False

    @classmethod
    def of_status(cls, status: int, final: Collection[int] = ()) -> Sent:
        """Return the result for an HTTP status.

        A status in `final` means that no later attempt can succeed.
        """
        if 200 <= status < 300:
            return cls(status, None)
        return cls(status, f"it answered {status}", status in final)


def notify(config: HubConfig, db: Database, seconds: float, claimed: Claimed, channel: Channel) -> Sent:
    """Send a notification through its channel, within about `seconds`."""
    try:
        return _sent(config, db, seconds, claimed, channel)
    except (KeyError, TypeError):
        return Sent(None, "its address cannot be read; remove it and add it again", final=True)
    except ConfigError as error:
        return Sent(None, str(error), final=True)
    except Unreachable as error:
        return Sent(None, str(error))


def _sent(config: HubConfig, db: Database, seconds: float, claimed: Claimed, channel: Channel) -> Sent:
    """Send a notification.

    Raises Unreachable, ConfigError, and KeyError or TypeError for a damaged address.
    """
    message = message_of(claimed, config.public_url)
    if channel.kind == channels.NTFY:
        from occ_worker.notify import ntfy

        # A topic that is refused or missing stays so until somebody changes it.
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
