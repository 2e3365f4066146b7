"""The agent's two consumer processes.

`python -m occ_worker.agent executions` and `… control`.
"""

from __future__ import annotations

import logging
import sys

from occ_app.config import config as configuration
from occ_app.config.config import Config
from occ_app.database import schema
from occ_app.system.inheritance import prepare_daemon
from occ_app.system.leaving import leave
from occ_app.system.logs import log_to_stderr


def main() -> None:
    prepare_daemon()
    config = configuration.load()
    part = {"executions": "worker"}.get(sys.argv[1], sys.argv[1])
    log_to_stderr(part, config.log_format, config.logs / f"{part}.log")
    logging.getLogger("huey").setLevel(logging.WARNING)
    config.make_folders()
    schema.prepare_schema(config)
    {"executions": _run_executions, "control": _run_control}[sys.argv[1]](config)
    leave()


def _run_executions(config: Config) -> None:
    """Load only the modules of this process: those of the other one would take 1 MB."""
    from occ_worker.execution.process import run_executions

    run_executions(config)


def _run_control(config: Config) -> None:
    """Load only the modules of this process, as above."""
    from occ_worker.control.process import run_control

    run_control(config)


if __name__ == "__main__":
    main()
