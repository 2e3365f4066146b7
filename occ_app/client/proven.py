"""HTTP to an agent's address without TLS.

No request is sent on a connection before the agent's proof.
"""

from __future__ import annotations

import errno
import hmac
import json
import re
import socket
import time
from collections.abc import Callable

import urllib3
from urllib3.connection import HTTPConnection

from occ_app.system import proofs

_SECONDS = 5.0
_LARGEST = 8192


def prover(token: str, path: str) -> Callable[[HTTPConnection], None]:
    """Return a check that a new connection leads to a holder of `token`.

    It runs after TLS. `path` is the path of the agent's URL. Raises NewConnectionError.
    """
    return lambda connection: _require_proof(connection, token, path)


def _require_proof(connection: HTTPConnection, token: str, path: str) -> None:
    nonce = proofs.new_nonce()
    try:
        reply = _ask(connection, path, proofs.question(token, nonce))
        if not hmac.compare_digest(reply.encode(), proofs.of_agent(token, nonce).encode()):
            raise OSError(errno.EACCES, "what answers there does not prove that it is this agent")
    except OSError as error:
        connection.close()
        raise urllib3.exceptions.NewConnectionError(connection, str(error)) from error


def _ask(connection: HTTPConnection, path: str, question: str) -> str:
    """Return the proof in the reply to GET /proof; empty for another reply.

    Raises OSError.
    """
    channel: socket.socket = connection.sock
    usual = channel.gettimeout()
    deadline = time.monotonic() + min(_SECONDS, usual or _SECONDS)
    host = f"[{connection.host}]" if ":" in connection.host else connection.host
    head = f"GET {path}{proofs.PATH} HTTP/1.1\r\nHost: {host}:{connection.port}\r\nAuthorization: {question}\r\n\r\n"
    channel.settimeout(min(_SECONDS, usual or _SECONDS))
    channel.sendall(head.encode("latin-1"))
    came = b""
    while (body := _whole_body(came)) is None:
        channel.settimeout(max(0.01, deadline - time.monotonic()))
        piece = channel.recv(4096)
        came += piece
        if not piece or len(came) > _LARGEST or time.monotonic() > deadline:
            return ""
    channel.settimeout(usual)
    try:
        return str(json.loads(body)["proof"]) if came.startswith(b"HTTP/1.1 200 ") else ""
    except (ValueError, KeyError, TypeError):
        return ""


def _whole_body(came: bytes) -> bytes | None:
    """Return the body of a reply once all of it came; None before."""
    head, end, body = came.partition(b"\r\n\r\n")
    if not end:
        return None
    match = re.search(rb"\r\ncontent-length: *(\d{1,4})(\r\n|$)", head.lower())
    length = int(match[1]) if match else 0
    return body if len(body) >= length else None
