"""HTTP through a Unix socket: urllib3's pools, whose every connection goes to the socket of a linked agent."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path
from typing import Any

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

from occ_app.system.files import short_path


def pools(path: Path, **options: Any) -> urllib3.PoolManager:
    """A PoolManager for the agent behind this socket; its addresses say only which Host to send."""

    class Plain(HTTPConnection):
        def _new_conn(self) -> socket.socket:
            return _connected(path, self)

    class Secure(HTTPSConnection):
        def _new_conn(self) -> socket.socket:
            return _connected(path, self)

    class PlainPool(urllib3.HTTPConnectionPool):
        ConnectionCls = Plain

    class SecurePool(urllib3.HTTPSConnectionPool):
        ConnectionCls = Secure

    manager = urllib3.PoolManager(**options)
    manager.pool_classes_by_scheme = {"http": PlainPool, "https": SecurePool}
    return manager


def _connected(path: Path, connection: HTTPConnection) -> socket.socket:
    caller = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        caller.settimeout(connection.timeout)
        with short_path(path.parent) as short:
            caller.connect(f"{short}/{path.name}")
    except OSError as error:
        caller.close()
        if isinstance(error, (FileNotFoundError, ConnectionRefusedError)):
            error = OSError(errno.ENOTCONN, "it is not linked")
        raise urllib3.exceptions.NewConnectionError(connection, os.fspath(path)) from error
    return caller
