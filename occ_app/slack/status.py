"""The state of the connection to Slack, as the Slack process recorded it."""

from __future__ import annotations

from typing import Any

from occ_app.config.config import Config
from occ_app.database.database import Database
from occ_app.errors import ConfigError
from occ_app.home import notes
from occ_app.slack import inbox, outbox, people, tokens

NOTE = "slack"


def status(config: Config, db: Database) -> dict[str, Any]:
    """Return the output of `occ hub slack status`.

    Raises ConfigError for tokens that cannot be read.
    """
    connected = tokens.load(config)
    noted = notes.noted(db, NOTE) if connected is not None else {}
    waiting, received = inbox.summary(db)
    unsent, newest = outbox.problems(db)
    return {
        "connected": connected is not None,
        "team": None if connected is None else connected.team,
        "mode": None if connected is None else "http" if connected.signing_secret else "socket",
        "problem": noted.get("problem"),
        "lastReceivedAt": received,
        "unhandledPayloads": waiting,
        "at": noted.get("at"),
        "linkedUsers": people.count(db),
        "unsentMessages": unsent,
        "latestProblem": newest,
    }


def problems(config: Config, db: Database) -> list[str]:
    """Return sentences for /health."""
    try:
        found = status(config, db)
    except ConfigError as error:
        return [str(error)]
    if found["connected"] and found["problem"]:
        return [f"Slack: {found['problem']}. `occ hub slack status` shows more."]
    return []
