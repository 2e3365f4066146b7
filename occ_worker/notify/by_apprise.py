"""Notifications to other services through apprise, an optional dependency."""

from __future__ import annotations

from occ_app.errors import ConfigError, Unreachable
from occ_app.hub.channels import Channel
from occ_worker.notify.message import Message

_MISSING = "Apprise is not installed here. Install it with `pip install 'online-claude-code[apprise]'`."


def send(channel: Channel, message: Message) -> None:
    """Send a message to the channel's apprise URL.

    Raises Unreachable, and ConfigError without apprise.
    """
    try:
        import apprise
    except ImportError:
        raise ConfigError(_MISSING) from None
    service = apprise.Apprise()
    if not service.add(channel.address["url"]):
        raise ConfigError("Apprise does not know this URL; remove the channel and add it again.")
    text = message.text if message.url is None else f"{message.text}\n{message.url}"
    kind = apprise.NotifyType.WARNING if message.urgent else apprise.NotifyType.INFO
    if not service.notify(body=text, title=message.title, notify_type=kind):
        raise Unreachable("the service did not accept it")
