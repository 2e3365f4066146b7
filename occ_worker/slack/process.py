"""The hub's Slack process: `python -m occ_worker.slack.process`.

The supervisor runs it while Slack is connected.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from slack_sdk import WebClient

from occ_app.config import config as configuration
from occ_app.config.config import HubConfig
from occ_app.database import schema
from occ_app.database.database import Database
from occ_app.errors import OCCError
from occ_app.executions import queries as executions
from occ_app.executions import retention
from occ_app.home import daemon, notes
from occ_app.hub.agent_clients import Calls
from occ_app.hub.agents import Agents
from occ_app.queue import waker
from occ_app.slack import inbox, incoming, outbox, pacing, threads, tokens
from occ_app.slack.status import NOTE
from occ_app.slack.tokens import Tokens
from occ_app.streams.doorbell import Doorbell, Ringer
from occ_app.system.inheritance import prepare_daemon
from occ_app.system.logs import log_to_stderr
from occ_app.system.timestamps import iso_now
from occ_worker.slack import handling
from occ_worker.slack.channels import Channels
from occ_worker.slack.composing import Composer
from occ_worker.slack.hub import SlackHub
from occ_worker.slack.receiving import Receiver
from occ_worker.slack.sending import Sender

if TYPE_CHECKING:
    from occ_app.hub.approvals import HubApprovals
    from occ_app.hub.remote_files import RemoteFiles

log = logging.getLogger("occ.slack")

_CALL_SECONDS = 10
_ACTIVE_SECONDS, _IDLE_SECONDS, _BUSY_SECONDS = 0.5, 5.0, 0.25
_LISTEN_SECONDS = 1.0  # between checks whether the process must end
_SLOW_SECONDS, _UPKEEP_SECONDS = 30.0, 600.0


class SlackProcess:
    """The connected parts of one Slack process."""

    def __init__(self, config: HubConfig, connected: Tokens) -> None:
        self._config = config
        self.tokens = connected
        self.db = Database(config.database)
        agents = Agents(self.db, config.heartbeat_seconds, config.forget_agents_days)
        calls, workers = Calls(agents, config.run / "links"), Ringer(config.run / "worker")
        web = WebClient(connected.bot, base_url=connected.api, timeout=_CALL_SECONDS, retry_handlers=[])
        self._later = threading.Event()
        self.hub = SlackHub(
            config=config,
            db=self.db,
            agents=agents,
            approvals=self._approvals,
            tokens=connected,
            wake=waker(config),
            ring=workers.ring,
            address=self._address,
            files=self._files,
            is_private=Channels(web).is_private,
            later=self._later.set,
            open_dialog=self._open_dialog,
        )
        self._web, self._agents, self._calls = web, agents, calls
        self._opener = WebClient(connected.app, base_url=connected.api, timeout=_CALL_SECONDS, retry_handlers=[])
        self.stop, self._woken = threading.Event(), threading.Event()
        self.composer = Composer(self.hub)
        self.sender = Sender(self.db, web, self._url_of, lambda problem: self._report("sending", problem), self._diff)
        self.sender.ended = self.composer.ended
        self.receiver = Receiver(
            self._open_url, self._store, lambda problem: self._report("receiving", problem), self.stop
        )
        self._problems: dict[str, str | None] = {"receiving": "Slack has not answered yet", "sending": None}
        self._next_upkeep = 0.0

    def run(self) -> None:
        """Receive, handle, compose and send until `stop` is set or the tokens change."""
        receive = self.receiver.run if self.tokens.signing_secret is None else self._listen
        thread = threading.Thread(target=receive, name="receiver")
        thread.start()
        slow = threading.Thread(target=self._handle_slow, name="slow", daemon=True)  # a machine may block it
        slow.start()
        try:
            while not self.stop.is_set() and self._is_connected():
                self._woken.wait(self.step())
                self._woken.clear()
        finally:
            self.end()
            for each in (thread, slow):
                each.join(5)

    def step(self) -> float:
        """Do all pending work, and return the seconds until the next step."""
        try:
            handling.handle_all(self.hub)
            active = self.composer.compose()
            while self.sender.send_next():
                handling.handle_all(self.hub)  # so that a mention does not wait for the messages of other runs
            self._upkeep()
            if self.sender.seconds_to_wait() == 0 and pacing.due(self.db, pacing.Pace()) is not None:
                return _BUSY_SECONDS
        except OCCError as error:  # a held database, a full disk
            log.warning("%s", error)
            return _ACTIVE_SECONDS
        return _ACTIVE_SECONDS if active else _IDLE_SECONDS

    def end(self) -> None:
        """Make `run` return soon; safe in a signal handler."""
        self.stop.set()
        self._woken.set()
        self._later.set()

    def _listen(self) -> None:
        """Wake when the web process has stored a request of Slack's, until `stop` is set."""
        self._report("receiving", None)
        with contextlib.closing(Doorbell(self._config.run / "slack")) as bell:
            while not self.stop.is_set():
                if select.select([bell], [], [], _LISTEN_SECONDS)[0]:
                    bell.hush()
                    self._woken.set()

    def _handle_slow(self) -> None:
        """Handle slow payloads one after another until `stop` is set."""
        while not self.stop.is_set():
            try:
                if handling.handle_all(self.hub, slow=True):
                    self._woken.set()
                    continue
            except OCCError as error:  # a held database, a full disk
                log.warning("%s", error)
            self._later.wait(_SLOW_SECONDS)
            self._later.clear()

    def _store(self, kind: str, payload: dict[str, Any], envelope_id: str) -> None:
        inbox.store(self.db, incoming.key_of(kind, payload, envelope_id), kind, payload)
        self._woken.set()

    def _open_url(self) -> str:
        return str(self._opener.apps_connections_open(app_token=self.tokens.app)["url"])

    def _is_connected(self) -> bool:
        return tokens.load(self._config) == self.tokens

    def _report(self, what: str, problem: str | None) -> None:
        """Record the state for `occ hub slack status` and /health."""
        self._problems[what] = problem
        worst = self._problems["sending"] or self._problems["receiving"]
        notes.note(self.db, NOTE, {"team": self.tokens.team, "problem": worst, "at": iso_now(), "pid": os.getpid()})

    def _url_of(self, message: outbox.Message) -> str | None:
        runs = threads.runs_in(self.db, message.channel, message.thread)
        return self.hub.page(runs[-1]) if runs else None

    def _open_dialog(self, trigger: str, view: dict[str, Any]) -> bool:
        """Open a dialog at once, and return whether Slack opened it.

        It is not repeated after a kill: by then its trigger has expired, and the person tries again.
        """
        try:
            self._web.views_open(trigger_id=trigger, view=view)
        except Exception as error:  # any error of slack_sdk or the network
            log.info("a dialog cannot be opened: %s", error)
            return False
        return True

    def _diff(self, number: int) -> bytes:
        with self.db.read() as connection:
            execution = executions.numbered(connection, number)
        return b"".join(self._files().diff(execution, None))

    def _files(self) -> RemoteFiles:
        from occ_app.hub.remote_files import RemoteFiles

        return RemoteFiles(self._config, self.db, self._agents, self._calls)

    def _approvals(self) -> HubApprovals:
        from occ_app.hub.approvals import HubApprovals

        return HubApprovals(self.db, self._agents, self._calls)

    def _address(self) -> str | None:
        """Return the address of the hub's pages: the public one, else this machine's."""
        if self._config.public_url:
            return self._config.public_url
        running = daemon.find(self._config)
        return None if running is None else running.url

    def _upkeep(self) -> None:
        if time.monotonic() < self._next_upkeep:
            return
        self._next_upkeep = time.monotonic() + _UPKEEP_SECONDS
        before = retention.older_than(self._config.retention_days)
        inbox.forget(self.db, before)
        outbox.forget(self.db, before)


def main() -> int:
    prepare_daemon()
    config = configuration.load_hub()
    log_to_stderr("slack", config.log_format, config.logs / "slack.log")
    logging.getLogger("slack_sdk").setLevel(logging.WARNING)
    config.make_folders()
    schema.prepare_schema(config)
    connected = tokens.load(config)
    if connected is None:
        return 0
    process = SlackProcess(config, connected)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: process.end())
    process.run()
    logging.shutdown()
    os._exit(0)  # without waiting for a call to Slack; all rows are stored


if __name__ == "__main__":
    sys.exit(main())
