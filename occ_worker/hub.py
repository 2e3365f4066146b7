"""The hub's two consumer processes.

`python -m occ_worker.hub executions` and `… control`.
"""

from __future__ import annotations

import logging
import sys

from occ_app.config import config as configuration
from occ_app.config.config import HubConfig
from occ_app.database import schema
from occ_app.system.inheritance import prepare_daemon
from occ_app.system.kernel import allow_many_files
from occ_app.system.leaving import leave
from occ_app.system.logs import log_to_stderr


def main() -> None:
    prepare_daemon()
    config = configuration.load_hub()
    part = {"executions": "worker"}.get(sys.argv[1], sys.argv[1])
    log_to_stderr(part, config.log_format, config.logs / f"{part}.log")
    allow_many_files()  # each relay has a connection
    logging.getLogger("huey").setLevel(logging.WARNING)
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # the caller reports errors of a reply
    config.make_folders()
    schema.prepare_schema(config)
    {"executions": _run_executions, "control": _run_control}[sys.argv[1]](config)
    leave()


def _run_executions(config: HubConfig) -> None:
    """Load only the modules of this process, as those of an agent do."""
    from occ_worker.relay.process import run_executions

    run_executions(config)


def _run_control(config: HubConfig) -> None:
    """Load only the modules of this process, as above."""
    from occ_worker.control.hub_process import run_control

    run_control(config)


if __name__ == "__main__":
    main()
