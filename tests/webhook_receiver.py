"""A receiver of webhooks on loopback, and the hub's control process alone, whose patience with it is short."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from occ_app.config import config
from occ_app.database import database as db
from occ_app.executions import lifecycle
from occ_app.executions.records import Outcome, Request
from occ_app.hub import deliveries
from occ_app.hub.deliveries import Delivery
from tests.conftest import wait_until
from tests.databases import make_database


@dataclass(frozen=True)
class Call:
    """A request as it came; `at` is on the monotonic clock."""

    path: str
    headers: dict[str, str]
    body: bytes
    at: float

    @property
    def content(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self.body)
        return content


@dataclass
class Receiver:
    """What came, and how the next is answered: a status, or a function that is given the handler."""

    url: str = ""
    calls: list[Call] = field(default_factory=list)
    answer: int | Callable[[BaseHTTPRequestHandler], None] = 200
    released: threading.Event = field(default_factory=threading.Event)

    def hang(self, _: BaseHTTPRequestHandler) -> None:
        """Say nothing until the test is over."""
        self.released.wait(30)

    def came(self, count: int, seconds: float = 60) -> list[Call]:
        """The calls, once there are so many."""
        wait_until(lambda: len(self.calls) >= count, f"{count} calls came", seconds)
        return self.calls


@contextlib.contextmanager
def receiving(certificate: Path | None = None) -> Iterator[Receiver]:
    """A receiver that takes everything until it is told otherwise; with `certificate`, a PEM file, over TLS."""
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            answer = receiver.answer  # a test that sees the call may set the answer to the next one at once
            receiver.calls.append(Call(self.path, dict(self.headers), body, time.monotonic()))
            if callable(answer):
                answer(self)
                self.close_connection = True
                return
            self.send_response(answer)
            self.send_header("Content-Length", "0")
            self.end_headers()

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            """A caller that went away is no news."""

    server = Server(("127.0.0.1", 0), Handler)
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    receiver.url = f"{'https' if certificate else 'http'}://127.0.0.1:{server.server_port}/occ"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        receiver.released.set()
        server.shutdown()
        server.server_close()
        thread.join()


_PROGRAM = """
import json, logging, sys
from occ_app.config import config
from occ_app.system.logs import log_to_stderr
from occ_worker.control.delivery import Patience
from occ_worker.control.hub_process import run_control
log_to_stderr("control")
logging.getLogger("urllib3").setLevel(logging.ERROR)
patience = json.loads(sys.argv[1])
run_control(config.load_hub(), Patience(**{**patience, "pauses": tuple(patience["pauses"])}))
"""


class Control:
    """The database of a hub that never started, and its control process when it is wanted."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "OCC_HUB_HOME": str(folder / "hub")}
        self.environment |= environment
        self.config = config.load_hub(self.environment)
        self.config.make_folders()
        make_database(self.config.database)
        self.db = db.Database(self.config.database)
        with self.db.write() as connection:
            connection.execute(
                "INSERT INTO workspaces (workspace_id, name, description, path, files, bytes, skipped, created_at,"
                " updated_at) VALUES ('work', 'work', '', '', 0, 0, '[]', '', '')"
            )
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, pauses: tuple[float, ...] = (0.1, 0.1), **patience: float) -> Control:
        # On a busy machine a receiver that answers at once takes seconds; tests of those that hang give their own.
        given = {"seconds": 20.0, "lease": 60.0, "jitter": 0.0} | patience | {"pauses": pauses}
        with (self.config.home / "control.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, json.dumps(given)], env=self.environment, stderr=log, stdout=log
            )
        return self

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(60)
            self.process = None

    def finish(self, execution_id: str, owner_id: str | None = None) -> None:
        """Have an execution that came to nothing, and with it what is to be delivered."""
        asked = Request(
            execution_id, "work", "a prompt", 0, 0, None, None, None, None, execution_id, owner_id, owner_id
        )
        execution, _ = lifecycle.create(self.db, asked, max_queue=1000)
        assert lifecycle.give_up(self.db, execution.number, Outcome.failure("NO_AGENT", "Nobody could."))

    def deliveries(self) -> list[Delivery]:
        """The log, oldest first."""
        return deliveries.log(self.db, 1000)[::-1]

    def finished(self, count: int, seconds: float = 60) -> list[Delivery]:
        """The log, once so many deliveries are over."""

        def over() -> bool:
            return sum(delivery.state != "waiting" for delivery in self.deliveries()) >= count

        wait_until(over, f"{count} deliveries are over", seconds)
        return self.deliveries()

    def log(self) -> str:
        path = self.config.home / "control.log"
        return path.read_text() if path.exists() else ""
