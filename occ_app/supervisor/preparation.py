"""The preparation of an agent or a hub while its web process loads.

Each loads its own modules only then.
"""

from __future__ import annotations

import contextlib

from occ_app.config.config import Config
from occ_app.database.database import Database


def prepare_agent(config: Config, port: int) -> list[str]:
    """Register an agent with its hub; returns warnings for a person. Raises Refused."""
    from occ_app.supervisor.registration import register_or_warn

    with contextlib.closing(Database(config.database)) as database:
        return register_or_warn(config, database, port)


def prepare_hub(config: Config, _: int) -> list[str]:
    """Make sure of a hub's token; returns warnings for a person."""
    from occ_app.hub import health

    health.ensure_hub_token(config)
    return health.end_copied(config)
