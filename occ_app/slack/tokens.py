"""slack.json: the tokens of the Slack app, and their Slack workspace."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field

from occ_app.config.config import Config
from occ_app.errors import ConfigError
from occ_app.home.state import write_private

API = "https://slack.com/api/"
FILE = "slack.json"


@dataclass(frozen=True)
class Tokens:
    """The tokens of the app in one Slack workspace.

    The app-level token opens Socket Mode, the bot token the Web API at `api`. With a `signing_secret` Slack sends
    requests to the hub instead, and there is no app-level token.
    """

    app: str = field(repr=False)
    bot: str = field(repr=False)
    team_id: str
    team: str
    bot_user: str
    api: str = API
    signing_secret: str | None = field(default=None, repr=False)


def load(config: Config) -> Tokens | None:
    """Return the stored tokens; None when Slack is not connected.

    Raises ConfigError for a damaged file.
    """
    path = config.home / FILE
    try:
        return Tokens(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError):
        raise ConfigError(f"{path} cannot be read; `occ hub slack connect` writes a new one.") from None


def save(config: Config, tokens: Tokens) -> None:
    """Store the tokens in a file that only the owner can read."""
    write_private(config.home / FILE, asdict(tokens))


def remove(config: Config) -> bool:
    """Delete the tokens; return False when there were none."""
    try:
        (config.home / FILE).unlink()
    except FileNotFoundError:
        return False
    return True
