"""Web push for the hub's pages: its key pair, and the allowed push services."""

from __future__ import annotations

import base64
import fcntl
import json
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from occ_app.config.config import HubConfig
from occ_app.config.settings import is_loopback
from occ_app.errors import ConfigError, InvalidRequest
from occ_app.home.state import write_private

if TYPE_CHECKING:
    from py_vapid import Vapid02

_MISSING = "Web push is not installed on this hub. Install it there with `pip install 'online-claude-code[push]'`."
_KEY_BYTES, _AUTH_BYTES = 65, 16
_LONGEST_ENDPOINT = 1000


def key_pair(config: HubConfig) -> Vapid02:
    """Return the key pair that identifies this hub to push services.

    Browsers are subscribed for this key only, so it is created once, and a home restored from a copy keeps it. Raises
    ConfigError without the extra `push`, or when the stored key cannot be read.
    """
    try:
        from py_vapid import Vapid02
    except ImportError:
        raise ConfigError(_MISSING) from None
    path = config.home / "push.json"
    with (config.home / "lock" / "push").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        if not path.exists():
            pair = Vapid02()
            pair.generate_keys()
            number = pair.private_key.private_numbers().private_value
            write_private(path, {"privateKey": to_base64(number.to_bytes(32, "big"))})
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))["privateKey"]
            return Vapid02.from_raw(str(stored).encode())
        except (OSError, ValueError, KeyError, TypeError):
            message = f"{path} cannot be read; move it away, start the hub again, and subscribe each browser again."
            raise ConfigError(message) from None


def public_key(config: HubConfig) -> str:
    """Return the public key in the form browsers use.

    Raises ConfigError as `key_pair` does.
    """
    numbers = key_pair(config).public_key.public_numbers()
    return to_base64(b"\x04" + numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big"))


def checked_subscription(config: HubConfig, endpoint: str, key: str, auth: str) -> dict[str, Any]:
    """Return a browser's subscription in the form a channel stores.

    Raises InvalidRequest for a subscription that the hub would never call.
    """
    check_service(config, endpoint)
    try:
        sizes = len(from_base64(key)), len(from_base64(auth))
    except ValueError:
        sizes = 0, 0
    if sizes != (_KEY_BYTES, _AUTH_BYTES):
        raise InvalidRequest("The keys of this subscription are not valid.", {"p256dh": ["Not a key."]})
    return {"endpoint": endpoint, "p256dh": key, "auth": auth}


def check_service(config: HubConfig, endpoint: str) -> None:
    """Raise InvalidRequest unless an endpoint is at a service in OCC_HUB_PUSH_HOSTS.

    The endpoint comes from a browser and the hub calls it, so nothing else may be called.
    """
    try:
        parts = urlsplit(endpoint)
        host, plain = (parts.hostname or "").lower(), endpoint.isascii() and endpoint.isprintable()
        port = parts.port
    except ValueError:
        host, plain, port = "", False, None
    known = any(_matches(host, name) for name in config.push_hosts)
    encrypted = parts.scheme == "https" and port in (None, 443) if host else False
    test = host in config.push_hosts and is_loopback(host)  # named by the operator, and this machine
    if not (plain and known and (encrypted or test)) or parts.username or len(endpoint) > _LONGEST_ENDPOINT:
        message = "The hub does not call this browser's push service. The operator can add it to OCC_HUB_PUSH_HOSTS."
        raise InvalidRequest(message, {"endpoint": ["Not a known push service."]})


def _matches(host: str, name: str) -> bool:
    """Return whether a host matches a name, or is below one like *.example.com."""
    return host.endswith(name[1:]) and len(host) >= len(name) if name.startswith("*.") else host == name


def to_base64(content: bytes) -> str:
    """Return bytes as URL-safe base64 without padding."""
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def from_base64(text: str) -> bytes:
    """Return the bytes of URL-safe base64, padded or not. Raises ValueError."""
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,200}={0,2}", text):
        raise ValueError("no base64 for URLs")
    return base64.urlsafe_b64decode(text.rstrip("=") + "=" * (-len(text.rstrip("=")) % 4))
