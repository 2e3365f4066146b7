"""occ hub start | stop | status | keys | agents | webhooks | notify."""

from __future__ import annotations

import ipaddress
import json
from typing import Any

import click

from occ_app import errors
from occ_app.cli import output, remote, service_unit
from occ_app.cli.hub_address import address, shown_url
from occ_app.cli.hub_agents import agents
from occ_app.cli.hub_backup import backup, move, restore
from occ_app.cli.hub_keys import keys
from occ_app.cli.notify import notify
from occ_app.cli.pairing import pair, sessions
from occ_app.cli.remote import daemon_client
from occ_app.cli.setting_options import setting_options
from occ_app.cli.slack import slack
from occ_app.cli.start import run_here, shown, start_daemon, with_warnings
from occ_app.cli.webhooks import webhooks
from occ_app.config import config as configuration
from occ_app.config.config import HubConfig
from occ_app.config.options import HUB_OPTIONS, values
from occ_app.home import daemon
from occ_app.system.foreign_text import visible_line


@click.group()
def hub() -> None:
    """Run a hub: one address for all your agents.

    \b
    Examples:
      occ hub start --public-url https://hub.example.com
      occ hub keys create laptop --for agent
    """


@hub.command()
@setting_options(HUB_OPTIONS)
@click.option("--foreground", is_flag=True, help="Stay in the terminal, log to it, stop with Ctrl-C.")
def start(foreground: bool, **flags: Any) -> None:
    """Start the hub in the background and wait until it answers.

    Every option has a variable (OCC_HUB_HTTP_PORT, …) and a line in the hub's config.toml.

    \b
    Examples:
      occ hub start
      occ hub start --bind-address 0.0.0.0 --tls self-signed
    """
    config = configuration.load_hub(flags=values(HUB_OPTIONS, flags))
    if foreground:
        from occ_app.supervisor.preparation import prepare_hub

        run_here(config, prepare_hub, lambda report: _tell_started(config, with_warnings(report, _exposure(config))))
        return
    report = with_warnings(start_daemon(config), _exposure(config))
    shown(lambda: _tell_started(config, report))


def _tell_started(config: HubConfig, report: dict[str, Any]) -> None:
    output.echo(f"The hub is running at {shown_url(report['url'], config.bind_address, config.public_url)}")
    output.echo(f"  logs    {report['logs']}")
    if report["fingerprint"]:
        output.echo(f"  tls     its certificate, for occ run --pin:\n          {report['fingerprint']}")
    output.echo("  pages           the same address in a browser")
    output.echo("  add a machine   occ hub keys create NAME --for agent")
    output.echo("  add a client    occ hub keys create NAME --for client")
    for warning in report["warnings"]:
        output.warn(warning)


def _exposure(config: HubConfig) -> list[str]:
    try:
        local = ipaddress.ip_address(config.bind_address).is_loopback
    except ValueError:
        local = config.bind_address == "localhost"
    if local and not config.public_url:
        return ["It listens on this machine alone; --bind-address with TLS, or a proxy and --public-url, opens it."]
    if local or config.tls or config.tls_cert:
        return []
    return [
        f"Listening on {config.bind_address} without TLS: prompts, output and keys can be read on the network; add"
        " --tls-cert and --tls-key, or put it behind a proxy that speaks TLS."
    ]


@hub.command()
def stop() -> None:
    """Stop the hub.

    Runs continue on their agents and are resumed at the next start.

    \b
    Example:
      occ hub stop
    """
    config = remote.settings("hub")
    running = daemon.find(config)
    if running is None:
        output.echo("The hub is not running.")
        return
    gentle = daemon.stop(config, running)
    output.echo("The hub has stopped." if gentle else "The hub did not stop in time and was killed.")
    service_unit.note_stopped(config)


@hub.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def status(as_json: bool) -> int:
    """Show whether the hub runs, its address and its health.

    Exits with 3 when it does not run.

    \b
    Example:
      occ hub status
    """
    config = remote.settings("hub")
    running = daemon.find(config)
    places = {"home": str(config.home), "logs": str(config.logs)}
    if running is None:
        answer = json.dumps({"running": False, **places})
        start = service_unit.start_line(config)
        output.echo(answer if as_json else f"The hub is not running in {config.home}; `{start}` starts it.")
        return 3
    report: dict[str, Any] = {"running": True, "pid": running.pid, "url": address(running)}
    report |= {"host": running.host, "port": running.port, "tlsFingerprint": running.fingerprint, **places}
    try:
        health = daemon_client(config, running).health()
        report |= {name: health[name] for name in ("uptime", "workers", "queue", "problems")}
    except (errors.Unreachable, errors.Refused) as error:
        report["problems"] = [str(error)]
    output.echo(json.dumps(report) if as_json else _status_text(report))
    return 0 if "uptime" in report else 5


def _status_text(report: dict[str, Any]) -> str:
    lines = [f"The hub is running at {report['url']} (pid {report['pid']})"]
    if "uptime" in report:
        workers = report["workers"]
        lines += [
            f"  uptime     {output.duration(report['uptime'])}",
            f"  workers    {workers['busy']} of {workers['total']} busy, {report['queue']['depth']} waiting",
        ]
    if report["tlsFingerprint"]:
        lines.append(f"  tls        {report['tlsFingerprint']}")
    lines += [f"  home       {report['home']}", f"  logs       {report['logs']}"]
    return "\n".join(lines + [f"  problem    {visible_line(problem)}" for problem in report["problems"]])


for command in (pair, sessions, keys, agents, webhooks, notify, slack, backup, restore, move):
    hub.add_command(command)
