"""HTTP through a Unix socket: urllib3's pools for a linked agent.

Every connection goes to the agent's socket.
"""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path
from typing import Any

import urllib3
from urllib3.connection import HTTPConnection

from occ_app.client.connections import pools_over
from occ_app.system.files import short_path


def pools(path: Path, **options: Any) -> urllib3.PoolManager:
    """Return a PoolManager for the agent behind this socket.

    Its addresses only name the Host to send.
    """

    return pools_over(lambda connection: _connected(path, connection), **options)


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
