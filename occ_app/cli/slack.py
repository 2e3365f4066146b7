"""occ hub slack: connect the hub to a Slack workspace.

It works on the hub's home, also while the hub is down.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
from dataclasses import replace

import click

from occ_app import errors
from occ_app.cli import job_store, output
from occ_app.config import config as configuration
from occ_app.config.settings import secret
from occ_app.home import daemon
from occ_app.slack import manifest, tokens
from occ_app.slack.status import status as status_of
from occ_app.slack.tokens import API, Tokens

_HTTP_STEPS = """Set up the Slack app:
  1. Start the hub with --public-url, an https address that Slack can reach.
  2. Open https://api.slack.com/apps, choose Create New App, From a manifest, and paste the manifest below.
  3. Install it to your workspace. OAuth & Permissions shows the bot token, xoxb-…; Basic Information, App
     Credentials, shows the signing secret.
  4. Run `occ hub slack connect --http` with the two.
  5. Event Subscriptions: press Retry beside the request URL, and invite the app to a channel: /invite @occ
"""
_STEPS = """Set up the Slack app:
  1. Open https://api.slack.com/apps, choose Create New App, From a manifest, and paste the manifest below.
  2. Install it to your workspace. OAuth & Permissions shows the bot token, xoxb-…
  3. Basic Information, App-Level Tokens: generate one with the scope connections:write, xapp-…
  4. Run `occ hub slack connect` with the two tokens, and invite the app to a channel: /invite @occ
"""


@click.group()
def slack() -> None:
    """Run tasks from Slack and get the answers there.

    \b
    Examples:
      occ hub slack connect
      occ hub slack status
    """


@slack.command()
@click.option("--app-token", metavar="TOKEN", help="xapp-…, or @FILE.  [default: asked for]")
@click.option("--bot-token", metavar="TOKEN", help="xoxb-…, or @FILE.  [default: asked for]")
@click.option("--http", is_flag=True, help="Take Slack's requests at the hub's public https address.")
@click.option("--signing-secret", metavar="SECRET", help="With --http: the secret, or @FILE.  [default: asked for]")
@click.option("--show-manifest", is_flag=True, help="Print the app's manifest and the steps, and do nothing.")
def connect(
    app_token: str | None, bot_token: str | None, http: bool, signing_secret: str | None, show_manifest: bool
) -> None:
    """Connect the hub to Slack with the tokens of your app.

    The tokens are tested first and stored on this machine alone. Without --http the hub opens a connection to Slack,
    and needs no public address.

    \b
    Examples:
      occ hub slack connect --show-manifest
      occ hub slack connect --http --signing-secret @secret.txt
    """
    config = configuration.load_hub()
    running = daemon.find(config)
    url = _request_url(config.public_url or (running.public_url if running else None)) if http else None
    if show_manifest or not ((signing_secret if http else app_token) and bot_token):
        output.echo(f"{_HTTP_STEPS if http else _STEPS}\n{json.dumps(manifest.manifest(url), indent=2)}")
    if show_manifest:
        return
    app = "" if http else _token("app token", app_token, "xapp-")
    signing = _token("signing secret", signing_secret, "") if http else None
    bot = _token("bot token", bot_token, "xoxb-")
    config.make_folders()
    connected = replace(_tested(app, bot, API), signing_secret=signing)
    tokens.save(config, connected)
    if running is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(running.pid, signal.SIGCHLD)  # the supervisor looks which of its parts are wanted
    output.echo(f"The hub is connected to {connected.team}. Mention the app in a channel, or send it a message.")
    if running is None:
        output.note("The hub does not run; `occ hub start` starts it.")
    if not config.public_url:
        output.warn("Without --public-url the links in Slack lead to this machine's own address.")


@slack.command()
def disconnect() -> None:
    """Disconnect from Slack and forget the tokens.

    The links of Slack users stay.

    \b
    Example:
      occ hub slack disconnect
    """
    if not tokens.remove(configuration.load_hub()):
        raise errors.NotFound("NOT_FOUND", "The hub is not connected to Slack; nothing was changed.", {})
    output.echo("The hub is disconnected from Slack. Remove the app in Slack, too, if you do not need it any more.")


@slack.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def status(as_json: bool) -> int:
    """Show the connection to Slack, its problems, and unsent messages.

    Exits with 3 when the hub is not connected to Slack.

    \b
    Example:
      occ hub slack status
    """
    found = status_of(configuration.load_hub(), job_store.hub_database())
    if as_json:
        output.echo(json.dumps(found))
    elif not found["connected"]:
        output.echo("The hub is not connected to Slack; `occ hub slack connect` connects it.")
    else:
        how = "its requests come over HTTP" if found["mode"] == "http" else "over Socket Mode"
        output.echo(f"The hub is connected to {found['team']} ({how}).")
        output.echo(f"  problem    {found['problem'] or 'none'}")
        output.echo(f"  users      {found['linkedUsers']} linked")
        output.echo(f"  received   {found['lastReceivedAt'] or 'nothing yet'}")
        if found["unhandledPayloads"]:
            output.echo(f"  waiting    {found['unhandledPayloads']} messages and clicks")
        if found["unsentMessages"]:
            output.echo(f"  unsent     {found['unsentMessages']} messages; the latest: {found['latestProblem']}")
    return 0 if found["connected"] else 3


def _request_url(public_url: str | None) -> str:
    """Return the address at which the hub receives Slack's requests.

    Raises ConfigError without a public https address.
    """
    if public_url is None or not public_url.startswith("https://"):
        raise errors.ConfigError(
            "Slack sends requests to public https addresses alone; start the hub with --public-url https://…, or leave"
            " out --http."
        )
    return f"{public_url}{manifest.REQUESTS}"


def _token(name: str, given: str | None, prefix: str) -> str:
    """Return a token of an option, or ask for it.

    Raises ConfigError for one of another kind.
    """
    value = given if given is not None else click.prompt(f"The {name}", hide_input=True)
    try:
        token = secret(value)
    except ValueError as error:
        raise errors.ConfigError(f"The {name} cannot be used: {error}.") from None
    if not token.startswith(prefix):
        raise errors.ConfigError(f"The {name} must begin with {prefix}; you may have swapped the two.")
    return token


def _tested(app: str, bot: str, api: str) -> Tokens:
    """Return the tokens with the workspace that they belong to.

    Raises ConfigError for those that Slack refuses.
    """
    try:
        from slack_sdk import WebClient
        from slack_sdk.errors import SlackApiError
    except ImportError:
        message = "Slack is not installed here; pip install 'online-claude-code[slack]', then connect again."
        raise errors.ConfigError(message) from None
    try:
        who = WebClient(bot, base_url=api, timeout=15).auth_test()
        if app:
            WebClient(app, base_url=api, timeout=15).apps_connections_open(app_token=app)
    except SlackApiError as error:
        raise errors.ConfigError(f"Slack refuses a token ({error.response.get('error')}); check both.") from None
    except OSError as error:
        raise errors.Unreachable(f"Slack cannot be reached ({type(error).__name__}); check the network.") from None
    return Tokens(app, bot, str(who["team_id"]), str(who["team"]), str(who["user_id"]), api)
