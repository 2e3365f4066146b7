"""occ service install | status | uninstall: agent or hub as a systemd service."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import click

from occ_app.cli import output, remote
from occ_app.cli.completion import script
from occ_app.config import config as configuration
from occ_app.config.config import Config
from occ_app.config.service_environment import search_path, service_variables
from occ_app.doctor import programs
from occ_app.errors import ConfigError, StartFailed
from occ_app.service import installing
from occ_app.service.persistence import persistence
from occ_app.service.systemd import Machine
from occ_app.service.unit import crontab_line
from occ_app.system import interpreter

MACHINE = Machine()

_of_hub = click.option("--hub", "of_hub", is_flag=True, help="The hub of this machine instead of its agent.")


@click.group()
def service() -> None:
    """Keep the agent running after logout and reboot.

    \b
    Examples:
      occ service install
      occ service status
    """


@service.command()
@click.option("--system", is_flag=True, help="A service of the system that runs as you; it is installed as root.")
@_of_hub
@click.option(
    "--completion",
    type=click.Choice(list(installing.COMPLETIONS)),
    help="Write the completion script of this shell, too.",
)
@click.option("--dry-run", is_flag=True, help="Print the changes and make none.")
def install(system: bool, of_hub: bool, completion: str | None, dry_run: bool) -> int:
    """Install and start a service of systemd.

    It gets the PATH and the OCC_ and ANTHROPIC_ variables of this shell; secrets are stored in a file that only you can
    read. All changes are printed first, and nothing is done as root: where root is needed, the commands are printed.

    \b
    Examples:
      occ service install
      occ service install --hub --dry-run
    """
    config = configuration.load_daemon("hub" if of_hub else "agent")
    if not MACHINE.has_systemd:
        _without_systemd(config)
        if completion:
            output.note(
                f"no completion is written; `occ completion {completion} > {installing.completion_path(completion)}`"
            )
        return 1
    plan = installing.plan(config, MACHINE, service_variables(config), search_path(config), system=system)
    if not of_hub:
        _warn_of_claude(config)
    output.echo("Changes:")
    for change in plan.changes():
        output.echo(f"  {change}")
    if completion:
        output.echo(f"  write {installing.completion_path(completion)}")
    if dry_run:
        return 0
    if completion:
        installing.write_completion(config, completion, script(completion))
    if plan.needs_root:
        output.echo("\nThis needs root. Run:")
        for command in installing.root_commands(plan):
            output.echo(f"  {command}")
        return 1
    try:
        installing.install(plan)
    except ConfigError as error:  # it runs, but does not linger
        output.echo(f"occ: {error}", err=True)
        return 1
    output.echo(f"\n{plan.unit.name} runs.")
    return _print_status(config, as_json=False)


def _without_systemd(config: Config) -> None:
    planned = installing.service_of(config, search_path(config), system=False)
    group = ["hub"] if config.program.kind == "hub" else []
    start = interpreter.command("-m", "occ_app.cli", *group, "start")
    output.echo("systemd does not run on this machine. With cron, add this line with `crontab -e`:", err=True)
    output.echo(crontab_line(planned, start))
    if service_variables(config):
        output.note(f"variables of this shell are not in it; write them to {planned.variables} as NAME=VALUE lines")


def _warn_of_claude(config: Config) -> None:
    for finding in programs.claude(config):
        if finding.state == "wrong":
            output.warn(f"{finding.finding}. {finding.action}")


@service.command()
@_of_hub
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def status(of_hub: bool, as_json: bool) -> int:
    """Show whether it survives logout and reboot.

    Exits with 1 if it does not.

    \b
    Example:
      occ service status
    """
    return _print_status(remote.settings("hub" if of_hub else "agent"), as_json=as_json)


def _print_status(config: Config, *, as_json: bool) -> int:
    found = persistence(config.program, MACHINE)
    if as_json:
        report: dict[str, Any] = {**asdict(found), "unit": None if found.unit is None else str(found.unit.path)}
        output.echo(json.dumps(report))
    else:
        output.echo(f"after logout  {'stays' if found.logout else 'ends'}: {found.logout_reason}")
        output.echo(f"after reboot  {'starts' if found.reboot else 'does not start'}: {found.reboot_reason}")
        if found.action:
            output.note(found.action)
    return 0 if found.logout and found.reboot else 1


@service.command()
@_of_hub
def uninstall(of_hub: bool) -> int:
    """Undo the installation.

    The service is stopped; the home, its workspaces and runs stay.

    \b
    Example:
      occ service uninstall
    """
    config = remote.settings("hub" if of_hub else "agent")
    try:
        changes = installing.uninstall(config, MACHINE)
    except StartFailed as error:
        raise StartFailed(f"{error}; nothing else was changed.") from None
    if changes[0].startswith("sudo "):
        output.echo("This needs root. Run:")
    for change in changes:
        output.echo(f"  {change}")
    return 1 if changes[0].startswith("sudo ") else 0
