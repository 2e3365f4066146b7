"""Web push: one encrypted message to a browser's push service.

The message is encrypted for the browser (RFC 8291) and sent by RFC 8030 and RFC 8292.
"""

from __future__ import annotations

import hashlib
import json
import time
from urllib.parse import urlsplit

from occ_app.config.config import HubConfig
from occ_app.errors import ConfigError, InvalidRequest
from occ_app.hub import push
from occ_app.hub.channels import Channel
from occ_worker.control.bounded_post import post
from occ_worker.notify.message import Message

_TOKEN_SECONDS = 12 * 3600  # at most a day
_URGENT_SECONDS, _NORMAL_SECONDS = 3600, 86400  # how long the service keeps it for an offline browser


def send(config: HubConfig, channel: Channel, message: Message, seconds: float) -> int:
    """Send a message to the browser's push service, and return the HTTP status.

    Raises Unreachable and ConfigError.
    """
    endpoint = str(channel.address["endpoint"])
    pair = push.key_pair(config)
    try:
        push.check_service(config, endpoint)  # the operator may have changed the list
    except InvalidRequest as error:
        raise ConfigError(str(error)) from None
    parts = urlsplit(endpoint)
    claims = {
        "aud": f"{parts.scheme}://{parts.netloc}",
        "exp": int(time.time()) + _TOKEN_SECONDS,
        "sub": _contact(config),
    }
    headers = {
        **pair.sign(claims),
        "Content-Type": "application/octet-stream",
        "Content-Encoding": "aes128gcm",
        "TTL": str(_URGENT_SECONDS if message.urgent else _NORMAL_SECONDS),
        "Urgency": "high" if message.urgent else "normal",
        # A later message about the same thing replaces one that the browser has not received.
        "Topic": push.to_base64(hashlib.sha256(message.tag.encode()).digest())[:32],
    }
    content = encrypted(payload(message), str(channel.address["p256dh"]), str(channel.address["auth"]))
    return post(endpoint, headers, content, seconds)


def payload(message: Message) -> bytes:
    """Return the JSON for the service worker, whose URL is a path on this hub."""
    content = {"title": message.title, "body": message.text, "tag": message.tag, "url": message.path}
    return json.dumps(content).encode()


def encrypted(content: bytes, browser_key: str, auth: str) -> bytes:
    """Return content encrypted for the browser with these keys.

    Raises ConfigError for keys that are not valid.
    """
    import http_ece
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        return bytes(
            http_ece.encrypt(
                content,
                private_key=ec.generate_private_key(ec.SECP256R1()),
                dh=push.from_base64(browser_key),
                auth_secret=push.from_base64(auth),
                version="aes128gcm",
            )
        )
    except ValueError:
        raise ConfigError("The keys of this browser cannot be used; remove it and subscribe again.") from None


def _contact(config: HubConfig) -> str:
    """Return the contact address for the push service's operator.

    Some services refuse an address that cannot exist.
    """
    if config.public_url is not None and config.public_url.startswith("https:"):
        return config.public_url
    return f"mailto:{config.mail_from}" if config.mail_from else "https://occ.invalid"
