"""The connections that the server accepts and keeps.

Their number is bounded, and one without a request makes room for others.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import time
from collections import Counter, deque
from typing import Any

from gunicorn.workers import gthread

from occ_app.system.kernel import OUT_OF_FILES, max_open_files
from occ_app.web.heads import Arriving
from occ_app.web.pacing import PacedSocket

log = logging.getLogger("occ.server")

_REST_SECONDS, _SWEEP_SECONDS, _WARNING_SECONDS = 0.1, 0.5, 60.0


class AdmittingWorker(gthread.ThreadWorker):
    """gunicorn's thread worker with a bound on idle connections.

    They never use up its connections or open files.
    """

    _next_sweep = _next_warning = _resting_until = 0.0

    def init_process(self) -> None:
        self._highest = max_open_files()
        super().init_process()

    def accept(self, listener: Any) -> None:
        """Accept a connection, and close the oldest idle one when there are too many.

        Where none can make room, it stays in the listener's queue until one can.
        """
        if (self.nr_conns >= self.cfg.worker_connections - 1 or self._is_full(listener)) and not self._make_room():
            self._rest()
            return
        try:
            connection, address = listener.accept()
        except OSError as error:
            if error.errno in OUT_OF_FILES:
                if not self._make_room():
                    self._rest()
            elif error.errno not in (errno.EAGAIN, errno.ECONNABORTED, errno.EPROTO):
                raise
            return
        self.nr_conns += 1
        conn = gthread.TConn(self.cfg, PacedSocket.of(connection), address, listener.getsockname())
        conn.occ_arriving, conn.occ_gone, conn.occ_new = Arriving(self.app.head_seconds), False, True
        self.enqueue_req(conn)

    def _is_full(self, listener: Any) -> bool:
        """Return whether a connection would use a descriptor reserved for requests' files.

        Another thread may take the last free descriptor at the same time: then a connection has a reserved one until
        it ends.
        """
        try:
            number = os.dup(listener.fileno())  # the lowest that is free
        except OSError as error:
            if error.errno not in OUT_OF_FILES:
                raise
            return True
        os.close(number)
        return number >= self._highest

    def set_accept_enabled(self, enabled: bool) -> None:
        super().set_accept_enabled(enabled and time.monotonic() >= self._resting_until)

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        resting = self.alive and not self._accepting
        super().wait_for_and_dispatch_events(min(timeout, _REST_SECONDS) if resting else timeout)

    def on_pending_socket_readable(self, conn: Any, client: Any) -> None:
        if not conn.occ_gone:  # closed to make room, in the same turn of the loop
            super().on_pending_socket_readable(conn, client)

    def on_client_socket_readable(self, conn: Any, client: Any) -> None:
        if not conn.occ_gone:
            super().on_client_socket_readable(conn, client)

    def murder_pending(self) -> None:
        """Close the connections whose head is overdue."""
        now = time.monotonic()
        if now < self._next_sweep:
            return
        self._next_sweep = now + _SWEEP_SECONDS
        for conn in [conn for conn in self.pending_conns if conn.occ_arriving.deadline <= now]:
            self._drop(conn, self.pending_conns)

    def _make_room(self) -> bool:
        """Close the oldest connection without a whole head, else an idle one.

        Of the former, one of the address with most of them.
        """
        if self.pending_conns:
            addresses = Counter(_address(conn) for conn in self.pending_conns)
            busiest = max(addresses, key=addresses.__getitem__)
            self._drop(next(conn for conn in self.pending_conns if _address(conn) == busiest), self.pending_conns)
            return True
        if self.keepalived_conns:
            self._drop(self.keepalived_conns[0], self.keepalived_conns)
            return True
        return False

    def _drop(self, conn: Any, waiting: deque[Any]) -> None:
        conn.occ_gone = True
        waiting.remove(conn)
        with contextlib.suppress(OSError, KeyError, ValueError):
            self.poller.unregister(conn.sock)
        self.nr_conns -= 1
        conn.close()

    def _rest(self) -> None:
        """Accept nothing for a moment.

        Every connection or open file that this process may have is in use.
        """
        now = time.monotonic()
        self._resting_until = now + _REST_SECONDS
        self.set_accept_enabled(False)
        if now >= self._next_warning:
            self._next_warning = now + _WARNING_SECONDS
            log.warning("new connections wait: all %s are in use; raise the limit of open files", self.nr_conns)


def _address(conn: Any) -> str:
    return str(conn.client[0]) if conn.client else ""
