"""occ hub start | stop | status | keys | agents | webhooks: the hub of this machine."""

from __future__ import annotations

import ipaddress
import json
import socket
import sys
from datetime import UTC, datetime
from typing import Any

import click

from occ_app import errors
from occ_app.cli import output, remote
from occ_app.cli.remote import daemon_client, hub_client, running_hub
from occ_app.cli.setting_options import setting_options
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


hub.add_command(webhooks)


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
    output.echo(f"The hub is running at {_shown_url(report['url'], config.bind_address, config.public_url)}")
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
    output.echo("The hub has stopped." if gentle else "The hub did not stop in time and was ended by force.")


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
        output.echo(answer if as_json else f"The hub is not running in {config.home}; `occ hub start` starts it.")
        return 3
    report: dict[str, Any] = {"running": True, "pid": running.pid, "url": _address(running)}
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


@hub.group()
def keys() -> None:
    """Create, list, rotate and revoke keys.

    A key is for a machine, a person or a program.

    \b
    Examples:
      occ hub keys list
      occ hub keys create laptop --for agent
    """


@keys.command()
@click.argument("name")
@click.option("--for", "kind", type=click.Choice(["agent", "client"]), required=True, help="What it opens.")
@click.option("--admin", is_flag=True, help="The same as --role admin.")
@click.option(
    "--role",
    type=click.Choice(["owner", "viewer", "admin"]),
    help="owner: uses what its owner has; viewer: reads it; admin: uses everything and manages the hub."
    "  [default: owner]",
)
@click.option("--owner", metavar="OWNER", help="The owner it belongs to.  [default: a new one of the key's name]")
@click.option(
    "--most", type=click.IntRange(1), metavar="N", help="Machines it registers, or executions it has at once."
)
@click.option("--days", type=click.FloatRange(min=0, min_open=True), metavar="DAYS", help="How long it is valid.")
def create(
    name: str,
    kind: str,
    admin: bool,
    role: str | None,
    owner: str | None,
    most: int | None,
    days: float | None,
) -> None:
    """Create a key and print it; it is not shown again.

    Everything that a key makes belongs to its owner, and all keys of one owner see the same.

    \b
    Examples:
      occ hub keys create laptop --for agent
      occ hub keys create phone --for client --owner ada
    """
    if admin and role not in (None, "admin"):
        raise click.UsageError(f"--admin and --role {role} exclude each other; leave one of them out.")
    role = "admin" if admin else role or "owner"
    if role != "owner" and kind == "agent":
        raise click.UsageError(f"The role {role} is for a client's key; leave it out, or use --for client.")
    body = {
        "name": name,
        "for": kind,
        "admin": role == "admin",
        "role": role,
        "owner": owner,
        "most": most,
        "days": days,
    }
    reply = hub_client().call("POST", "/keys", {field: value for field, value in body.items() if value is not None})
    _print_key(reply, kind)
    if owner is None and reply["owner"] != name:
        output.note(f"it belongs to the new owner {visible_line(reply['owner'])}; --owner {name} adds a key to {name}")


def _print_key(reply: dict[str, Any], kind: str) -> None:
    """Print a key alone on standard output, and on standard error the command that uses it."""
    output.echo(reply["key"])
    running = running_hub()
    url = _address(running)
    key = (
        reply["key"] if sys.stdout.isatty() else "KEY"
    )  # a script that captures the key does not want it on the screen
    pin = running.pin
    if kind == "agent":
        trust = f" --remote-pin {pin}" if pin else ""
        output.note(f"on the machine:\n  OCC_API_KEY={key} occ start --remote-url {url}{trust}")
    else:
        trust = f" --pin {pin}" if pin else ""
        output.note(f'where you work:\n  OCC_TOKEN={key} occ run --url {url}{trust} "…"')


def _address(running: daemon.Daemon) -> str:
    return _shown_url(running.url, running.host, running.public_url)


def _shown_url(url: str, host: str, public_url: str | None) -> str:
    """The address to give to other machines: the public one, or one that this machine has on a network."""
    if public_url:
        return public_url
    if host not in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
        return url
    import psutil

    addresses = (address for interface in psutil.net_if_addrs().values() for address in interface)
    outward = [a.address for a in addresses if a.family == socket.AF_INET and not a.address.startswith("127.")]
    return url.replace("127.0.0.1", outward[0]).replace("[::1]", outward[0]) if outward else url


@keys.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print what GET /keys answers.")
def list_keys(as_json: bool) -> None:
    """List all keys; secrets are not shown.

    \b
    Example:
      occ hub keys list
    """
    reply = hub_client().call("GET", "/keys")
    if as_json:
        output.echo(json.dumps(reply))
        return
    rows = [
        (
            key["name"],
            key["for"] + (f", {key['role']}" if key["role"] != "owner" else ""),
            visible_line(key["owner"]),
            "" if key["most"] is None else str(key["most"]),
            key["createdAt"][:10],
            _until(key),
        )
        for key in reply["keys"]
    ]
    output.table([("NAME", "FOR", "OWNER", "MOST", "CREATED", "UNTIL"), *rows])


def _until(key: dict[str, Any]) -> str:
    """The day it expires, or why it opens nothing any more."""
    if key["revokedAt"]:
        return "revoked"
    if key["expiresAt"] is None:
        return ""
    over = datetime.fromisoformat(key["expiresAt"]) <= datetime.now(UTC)
    return "expired" if over else str(key["expiresAt"][:10])


@keys.command()
@click.argument("name")
@click.option("--days", type=click.FloatRange(min=0, min_open=True), metavar="DAYS", help="How long it is valid.")
def rotate(name: str, days: float | None) -> None:
    """Replace a key's secret and print the new one; it is not shown again.

    The old secret is refused at once. The key keeps its workspaces, runs and webhooks, and machines that have
    registered with it stay registered; give them the new key before they register again.

    \b
    Example:
      occ hub keys rotate laptop
    """
    reply = hub_client().call("POST", f"/keys/{_quoted(name)}/rotate", {} if days is None else {"days": days})
    _print_key(reply, reply["for"])


@keys.command()
@click.argument("name")
def revoke(name: str) -> None:
    """Refuse a key from now on.

    The machines that registered with it are refused too.

    \b
    Example:
      occ hub keys revoke phone
    """
    hub_client().call("POST", f"/keys/{_quoted(name)}/revoke")
    output.echo(f"{name} is refused from now on.")


@hub.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print what GET /agents answers.")
@click.pass_context
def agents(context: click.Context, as_json: bool) -> None:
    """List the machines with their state, workers and labels.

    \b
    Examples:
      occ hub agents
      occ hub agents drain box
    """
    if context.invoked_subcommand is not None:
        return
    client = hub_client()
    reply = client.call("GET", "/agents")
    while reply["next"] is not None:
        more = client.call("GET", f"/agents?after={_quoted(reply['next'])}")
        reply = {"agents": reply["agents"] + more["agents"], "next": more["next"]}
    if as_json:
        output.echo(json.dumps(reply))
        return
    rows = [
        (
            agent["name"],
            agent["agentId"],
            agent["state"],
            agent["via"] or "-",
            f"{agent['workers']['busy']}/{agent['workers']['total']}",
            ",".join(agent["labels"]),
            ",".join(project["name"] for project in agent["projects"]),
            f"{agent['version']}, Claude {agent['claudeVersion'] or '-'}",
            f"{output.since(agent['lastSeenAt'])} ago",
        )
        for agent in reply["agents"]
    ]
    output.table(
        [("NAME", "ID", "STATE", "VIA", "BUSY", "LABELS", "PROJECTS", "VERSIONS", "LAST SEEN"), *rows], state=2
    )


@agents.command()
@click.argument("name")
def drain(name: str) -> None:
    """Place no further runs on a machine; current runs continue.

    \b
    Example:
      occ hub agents drain box
    """
    hub_client().call("POST", f"/agents/{_quoted(name)}/drain")
    output.echo(f"{name} is draining.")


@agents.command()
@click.argument("name")
def resume(name: str) -> None:
    """Place runs on a machine again.

    \b
    Example:
      occ hub agents resume box
    """
    hub_client().call("POST", f"/agents/{_quoted(name)}/resume")
    output.echo(f"{name} takes work again.")


@agents.command()
@click.argument("name")
def remove(name: str) -> None:
    """Remove a machine.

    Its runs end, and its workspaces are placed again from their zips.

    \b
    Example:
      occ hub agents remove box
    """
    hub_client().call("DELETE", f"/agents/{_quoted(name)}")
    output.echo(f"{name} is removed. While it runs it registers anew; stop it there, or revoke its key.")


def _quoted(name: str) -> str:
    from urllib.parse import quote

    return quote(name, safe="")
