"""How OCC's processes log: sentences with times on standard error, which the supervisor writes to logs/NAME.log."""

from __future__ import annotations

import logging


def log_to_stderr() -> None:
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.INFO)
