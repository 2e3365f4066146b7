"""Notifications by ntfy: one JSON POST to the server of a topic."""

from __future__ import annotations

import json

from occ_app.hub.channels import Channel
from occ_worker.control.bounded_post import post
from occ_worker.notify.message import Message

_HIGH, _NORMAL = 4, 3


def send(channel: Channel, message: Message, seconds: float) -> int:
    """Publish a message to the channel's topic, and return the HTTP status.

    The topic is the last part of the channel's URL. Raises Unreachable.
    """
    server, _, topic = str(channel.address["url"]).rstrip("/").rpartition("/")
    content = {
        "topic": topic,
        "title": message.title,
        "message": message.text,
        "priority": _HIGH if message.urgent else _NORMAL,
        "tags": [message.mark],
    }
    if message.url is not None:
        content["click"] = message.url
    headers = {"Content-Type": "application/json"}
    if channel.address.get("token"):
        headers["Authorization"] = f"Bearer {channel.address['token']}"
    return post(f"{server}/", headers, json.dumps(content).encode(), seconds)
