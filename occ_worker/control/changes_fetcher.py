"""Fetching the changes that relays did not fetch.

They are those of machines that were away when their execution ended.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence

from occ_app.config.config import HubConfig
from occ_app.database.database import Database
from occ_app.errors import OCCError
from occ_app.executions.records import Execution
from occ_app.hub import fetched_changes
from occ_app.hub.agent_clients import Calls
from occ_app.hub.agents import Agent, Agents
from occ_app.streams import tail
from occ_app.streams.doorbell import Ringer

log = logging.getLogger("occ.control")

_MACHINES_AT_ONCE = 8
_FIRST_PAUSE, _LONGEST_PAUSE = 5.0, 300.0  # between attempts at one machine


class ChangesFetcher:
    """A fetcher with a thread for each of several machines.

    A silent machine therefore does not delay others.
    """

    def __init__(self, config: HubConfig, db: Database, agents: Agents, calls: Calls, readers: Ringer) -> None:
        self._config = config
        self._db = db
        self._agents = agents
        self._calls = calls
        self._readers = readers
        self._lock = threading.Lock()
        self._busy = set[str]()
        self._pauses = dict[str, tuple[float, float]]()  # by machine: the end of the pause, and its length

    def due(self) -> bool:
        """Return whether any changes are to be fetched."""
        return bool(fetched_changes.pending(self._db))

    def start_due(self, online: Mapping[str, Agent]) -> None:
        """Start fetching from each online machine that has changes and is not busy."""
        waiting = dict[str, list[Execution]]()
        for execution in fetched_changes.pending(self._db):
            if execution.agent_id is None or self._agents.find(execution.agent_id) is None:
                fetched_changes.give_up(self._db, execution.number)
            elif execution.agent_id in online:
                waiting.setdefault(execution.agent_id, []).append(execution)
        for agent_id, executions in waiting.items():
            with self._lock:
                paused = time.monotonic() < self._pauses.get(agent_id, (0.0, 0.0))[0]
                if paused or agent_id in self._busy or len(self._busy) >= _MACHINES_AT_ONCE:
                    continue
                self._busy.add(agent_id)
            arguments = (online[agent_id], executions)
            threading.Thread(target=self._fetch, args=arguments, name="changes", daemon=True).start()

    def _fetch(self, agent: Agent, executions: Sequence[Execution]) -> None:
        done = False
        try:
            for execution in executions:
                client = self._calls.client(agent)
                if fetched_changes.fetch(self._db, client, execution, self._config.max_diff_bytes):
                    self._readers.ring(tail.execution_key(execution.number))
            done = True
        except OCCError as error:
            log.info("changes cannot be fetched from agent %s: %s", agent.agent_id, error)
        finally:
            with self._lock:
                self._busy.discard(agent.agent_id)
                former = self._pauses.pop(agent.agent_id, (0.0, _FIRST_PAUSE / 2))
                if not done:
                    pause = min(2 * former[1], _LONGEST_PAUSE)
                    self._pauses[agent.agent_id] = (time.monotonic() + pause, pause)
