"""Files of OCC that are replaced while its daemon runs."""

from __future__ import annotations

import subprocess

from occ_app.system import interpreter
from occ_app.system.installation import fingerprint


class RunningFiles:
    """The files that a daemon was started from.

    `successor_is_complete` once others are installed and can be loaded.
    """

    def __init__(self) -> None:
        self.fingerprint = fingerprint()
        self.successor_is_complete = False
        self._seen: str | None = None  # the newest fingerprint of changed files

    def were_replaced(self) -> bool:
        """Whether a part would now be started from other files than those that run."""
        current = fingerprint()
        if current == self.fingerprint:
            return False
        self.successor_is_complete = current == self._seen and _loads()
        self._seen = current
        return True


def _loads() -> bool:
    """Return whether the installed files can be loaded.

    During an upgrade some are missing for a moment.
    """
    programs = (
        "import occ_app.supervisor.supervisor, occ_app.wsgi, occ_app.hub_wsgi, occ_worker.agent, occ_worker.hub,"
        " occ_worker.control.process, occ_worker.execution.process, occ_worker.control.hub_process,"
        " occ_worker.relay.process"
    )
    tried = subprocess.run(
        interpreter.command("-c", programs), stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    return tried.returncode == 0
