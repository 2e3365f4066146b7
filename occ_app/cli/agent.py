"""occ stop | status | token | backup: the running daemon of this machine."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from occ_app import errors
from occ_app.cli import draining, output, remote, service_unit
from occ_app.config.config import Config
from occ_app.database.database import Database
from occ_app.home import daemon, state
from occ_app.home import notes as agent_notes
from occ_app.system.foreign_text import visible_line


@click.command()
@click.option("--drain", is_flag=True, help="Refuse new runs and wait for the current ones; Ctrl-C accepts runs again.")
def stop(drain: bool) -> None:
    """Stop the agent and everything it runs.

    Processes still alive after 10 seconds are killed. Waiting executions run at the next start.

    \b
    Examples:
      occ stop
      occ stop --drain
    """
    config = remote.settings()
    running = daemon.find(config)
    if running is None:
        output.echo("OCC is not running.")
        return
    if drain:
        draining.drain(config)
    gentle = daemon.stop(config, running)
    output.echo("OCC has stopped." if gentle else "OCC did not stop in time and was killed.")
    service_unit.note_stopped(config)


@click.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
def backup(file: Path) -> None:
    """Write a backup of this agent to FILE, a .tar.gz.

    To restore it, unpack it into an empty home.

    \b
    Example:
      occ backup agent.tar.gz
    """
    from occ_app.home import backup as backups

    config = remote.settings()
    if not config.database.exists():
        raise errors.NotRunning(f"There is nothing to back up in {config.home}; `occ start` makes an agent.")
    size = backups.write(config, file.absolute())
    output.echo(f"Wrote {file} ({output.size(size)}). It holds the agent's token; keep it as safe.")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def status(as_json: bool) -> int:
    """Show whether the agent runs, its address and its health.

    Exits with 3 when it does not run.

    \b
    Examples:
      occ status
      occ status --json
    """
    config = remote.settings()
    running = daemon.find(config)
    if running is None:
        answer: dict[str, Any] = {"running": False, "home": str(config.home), "logs": str(config.logs)}
        start = service_unit.start_line(config)
        output.echo(json.dumps(answer) if as_json else f"OCC is not running in {config.home}; `{start}` starts it.")
        return 3
    report, reached = _status(config, running)
    output.echo(json.dumps(report) if as_json else _status_text(report))
    return 0 if reached else 5


def _status(config: Config, running: daemon.Daemon) -> tuple[dict[str, Any], bool]:
    from occ_app.client.agent_client import AgentClient

    identity = state.load(config.state)
    report: dict[str, Any] = {
        "running": True,
        "pid": running.pid,
        "url": running.url,
        "host": running.host,
        "port": running.port,
        "tlsFingerprint": running.fingerprint,
        "agentId": identity.agent_id if identity else None,
    }
    places = {"home": str(config.home), "logs": str(config.logs)}
    notes = Database(config.database, readonly=True)
    registration = agent_notes.noted(notes, "registration")
    report["standalone"] = bool(registration.get("standalone"))
    report["linked"] = None if report["standalone"] else agent_notes.noted(notes, "link").get("connected")
    try:
        health = AgentClient(running.url, identity.token if identity else "", running.fingerprint).health()
    except (errors.Unreachable, errors.Refused) as error:
        return {**report, **places, "problems": [str(error)]}, False
    figures = {key: health[key] for key in ("uptime", "workers", "queue", "heartbeat")}
    return {**report, **figures, **places, "problems": health["problems"]}, True


def _status_text(report: dict[str, Any]) -> str:
    lines = [f"OCC is running at {report['url']} (pid {report['pid']})"]
    if "uptime" in report:
        workers, beat = report["workers"], report["heartbeat"]
        lines += [
            f"  uptime     {output.duration(report['uptime'])}",
            f"  workers    {workers['busy']} of {workers['total']} busy, {report['queue']['depth']} waiting",
            f"  heartbeat  {_beat_text(report, beat)}",
        ]
    if report["linked"] is not None:
        lines.append(f"  link       {'held' if report['linked'] else 'broken; it is tried again'}")
    if report["tlsFingerprint"]:
        lines.append(f"  tls        {report['tlsFingerprint']}")
    lines += [f"  home       {report['home']}", f"  logs       {report['logs']}"]
    return "\n".join(lines + [f"  problem    {visible_line(problem)}" for problem in report["problems"]])


def _beat_text(report: dict[str, Any], beat: dict[str, Any]) -> str:
    if report["standalone"]:
        return "none, this agent is standalone"
    if report["agentId"] is None:
        return "none yet, the hub has not registered this agent"
    last = f"{output.since(beat['lastSuccessfulAt'])} ago" if beat["lastSuccessfulAt"] else "none yet"
    failures = beat["consecutiveFailures"]
    since = f", {failures} failure{'s' if failures > 1 else ''} since" if failures else ""
    return f"{last}, as {report['agentId']}{since}"


@click.group(invoke_without_command=True)
@click.pass_context
def token(context: click.Context) -> None:
    """Print the token that opens this agent's API, alone on a line.

    \b
    Example:
      occ token
    """
    if context.invoked_subcommand is not None:
        return
    config = remote.settings()
    identity = state.load(config.state)
    if identity is None:
        raise errors.NotRunning(f"There is no token in {config.home} yet; `occ start` makes one.")
    output.echo(identity.token)


@token.command()
def rotate() -> None:
    """Replace the token and print the new one.

    The old token is refused at once, without a restart.

    \b
    Example:
      occ token rotate
    """
    config = remote.settings()
    identity = state.load(config.state)
    if identity is None:
        raise errors.NotRunning(f"There is no token in {config.home} yet; `occ start` makes one.")
    if identity.agent_id is not None:
        raise errors.ConfigError(
            "This agent's token comes from its hub; `occ stop` and `occ start` register again and get a new one."
        )
    renewed = replace(identity, token=state.new_token())
    state.save(config.state, renewed)
    output.echo(renewed.token)
