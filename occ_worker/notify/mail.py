"""Notifications by e-mail through the operator's mail server."""

from __future__ import annotations

import contextlib
import smtplib
import socket
import ssl
import threading
from email.message import EmailMessage
from email.utils import formatdate
from urllib.parse import unquote, urlsplit

from occ_app.config.config import HubConfig
from occ_app.config.settings import is_loopback
from occ_app.errors import ConfigError, Unreachable
from occ_app.hub.channels import Channel
from occ_worker.notify.message import Message

_PORTS = {"smtp": 587, "smtps": 465}


def send(config: HubConfig, channel: Channel, message: Message, delivery_id: str, seconds: float) -> None:
    """Send a message to the mail server, within `seconds`.

    Raises Unreachable, and ConfigError when no server is set.
    """
    if config.smtp_url is None:
        raise ConfigError("OCC_HUB_SMTP_URL is not set; set it, start the hub again and send a test.")
    mail = _mail(config, channel, message, delivery_id)
    parts = urlsplit(config.smtp_url)
    context = ssl.create_default_context()
    server: smtplib.SMTP | None = None
    watch = threading.Timer(seconds, lambda: _cut(server))  # the socket's timeout does not end a trickling reply
    watch.daemon = True
    watch.start()
    try:
        host, port = parts.hostname or "", parts.port or _PORTS[parts.scheme]
        if parts.scheme == "smtps":
            server = smtplib.SMTP_SSL(host, port, timeout=seconds, context=context)
        else:
            server = smtplib.SMTP(host, port, timeout=seconds)
        with server:
            _secure(server, host, context, encrypted=parts.scheme == "smtps", has_password=bool(parts.username))
            if parts.username:
                server.login(unquote(parts.username), unquote(parts.password or ""))
            server.send_message(mail)
    except smtplib.SMTPResponseException as error:
        raise Unreachable(f"the mail server answered {error.smtp_code}") from None
    except (smtplib.SMTPException, OSError) as error:
        raise Unreachable(f"the mail server did not accept it ({type(error).__name__.lower()})") from None
    finally:
        watch.cancel()


def _secure(server: smtplib.SMTP, host: str, context: ssl.SSLContext, *, encrypted: bool, has_password: bool) -> None:
    """Start TLS where the server offers it.

    Raises ConfigError rather than send a password in the clear.
    """
    server.ehlo()
    if encrypted:
        return
    if server.has_extn("starttls"):
        server.starttls(context=context)
        server.ehlo()
    elif has_password and not is_loopback(host):
        raise ConfigError("The mail server has no TLS, so the password is not sent; use a smtps:// URL.")


def _mail(config: HubConfig, channel: Channel, message: Message, delivery_id: str) -> EmailMessage:
    host = socket.gethostname()
    mail = EmailMessage()
    mail["From"] = config.mail_from or f"occ@{host}"
    mail["To"] = channel.address["to"]
    mail["Subject"] = message.title
    mail["Date"] = formatdate(localtime=True)
    mail["Message-ID"] = f"<{delivery_id}@{host}>"  # the same for each attempt
    mail["Auto-Submitted"] = "auto-generated"
    if message.urgent:
        mail["Importance"] = "high"
    mail.set_content(message.text if message.url is None else f"{message.text}\n\n{message.url}\n")
    return mail


def _cut(server: smtplib.SMTP | None) -> None:
    """Close the connection to a server that is too slow."""
    if server is not None and server.sock is not None:
        with contextlib.suppress(OSError):
            server.sock.shutdown(socket.SHUT_RDWR)
