"""Notifications as direct messages of the hub's app, sent by the Slack process."""

from __future__ import annotations

from occ_app.config.config import HubConfig
from occ_app.database.database import Database
from occ_app.errors import ConfigError
from occ_app.hub.channels import Channel
from occ_app.slack import blocks, outbox, tokens
from occ_worker.notify.message import Message


def send(config: HubConfig, db: Database, channel: Channel, message: Message, delivery_id: str) -> None:
    """Store the message for the Slack process, once for each delivery.

    Raises ConfigError when Slack is not connected.
    """
    if tokens.load(config) is None:
        raise ConfigError("The hub is not connected to Slack; `occ hub slack connect` connects it.")
    text = f"*{blocks.escaped(message.title)}*\n{blocks.escaped(message.text)}"
    if message.url is not None:
        text += f"\n<{message.url}|Open>"
    outbox.notice(db, delivery_id, str(channel.address["user"]), "", blocks.sentence(text))
