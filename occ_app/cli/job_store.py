"""The database behind `occ jobs`: the agent's, or with --hub the hub's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from occ_app import errors
from occ_app.cli import remote
from occ_app.config import config as configuration
from occ_app.config.config import Config
from occ_app.database import schema
from occ_app.database.database import Database


def _choose_hub(context: click.Context, _: click.Parameter, chosen: bool) -> None:
    context.obj = "hub" if chosen else context.obj or "agent"


# Accepted before and after a subcommand, because people do not remember which.
of_the_hub = click.option(
    "--hub",
    is_flag=True,
    expose_value=False,
    callback=_choose_hub,
    help="Look at this machine's hub instead of its agent.",
)


def config() -> Config:
    """Return the settings of this machine's agent, or with --hub of its hub."""
    return remote.settings(click.get_current_context().obj)


def of_hub() -> bool:
    return bool(click.get_current_context().obj == "hub")


def existing(config: Config) -> Path:
    if not config.database.exists():
        command = config.program.command
        raise errors.NotRunning(f"There is no database in {config.home}; `{command} start` makes one.")
    return config.database


def database() -> Database:
    return schema.opened(existing(config()), readonly=True)


def hub_database() -> Database:
    """Open the database of this machine's hub, also for writing.

    Raises NotRunning when there is none.
    """
    return schema.opened(existing(configuration.load_hub()))


def dumped(schema: str, content: Any) -> Any:
    """Return the content as the API has it in JSON, by the name of its schema."""
    from occ_app.web import schemas

    return getattr(schemas, schema)().dump(content)
