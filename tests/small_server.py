"""OCC's server with a limit on heads that a test can wait for, in a process that serves one address and no daemon."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator

from flask import Flask

from occ_app.system.logs import log_to_stderr
from occ_app.web.server import Application


@contextlib.contextmanager
def small_server(head_seconds: float) -> Iterator[tuple[str, int]]:
    """Serve GET /health in a process; yields its address, where connections wait until it serves."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        number = listener.fileno()
        command = [sys.executable, "-m", "tests.small_server", str(number), str(head_seconds)]
        with subprocess.Popen(command, pass_fds=[number]) as process:
            try:
                host, port = listener.getsockname()
                yield host, port
            finally:
                process.kill()


def _make_app() -> Flask:
    app = Flask("small")
    app.add_url_rule("/health", view_func=lambda: "healthy")
    return app


def main(listener: str, head_seconds: str) -> None:
    log_to_stderr("web")
    Application(_make_app, lambda: None, f"fd://{listener}", 4, None, float(head_seconds)).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
