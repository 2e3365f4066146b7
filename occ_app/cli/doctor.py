"""occ doctor: find everything that keeps this machine's agent or hub from working."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from functools import partial

import click

from occ_app.cli import output
from occ_app.config import client_variables, homes
from occ_app.config import config as configuration
from occ_app.config.config import Config, HubConfig
from occ_app.doctor import findings, home, hub, programs, running
from occ_app.doctor.findings import Check, Finding
from occ_app.errors import ConfigError
from occ_app.home import daemon
from occ_app.service.systemd import Machine
from occ_app.system.foreign_text import visible_line


@click.command()
@click.option("--hub", "of_hub", is_flag=True, help="Check the hub of this machine instead of its agent.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(of_hub: bool, as_json: bool) -> int:
    """Check this machine and name each fault.

    Each line has the check, the finding and the next step. No model is asked. Exits with 1 if anything is wrong.

    \b
    Examples:
      occ doctor
      occ doctor --json
    """
    config, settings = _settings(of_hub)
    found = settings + findings.findings(checks(config, Machine()))
    wrong = sum(finding.state == findings.WRONG for finding in found)
    if as_json:
        output.echo(json.dumps({"checks": [_fields(finding) for finding in found], "wrong": wrong}))
    else:
        _print(found, wrong)
    return 1 if wrong else 0


def checks(config: Config, machine: Machine) -> list[Check]:
    """Return the checks of an agent or of a hub.

    They are in the order in which a person corrects the findings.
    """
    of_agent = not isinstance(config, HubConfig)
    of_programs = [("claude", programs.claude), ("sandbox", programs.boxed), ("git", programs.git)]
    named: list[tuple[str, Callable[[Config], Iterable[Finding]]]] = [
        *(of_programs if of_agent else []),
        *(("disk", home.disk), ("permissions", home.permissions), ("database", home.database), ("tls", home.tls)),
        *(("stale", home.stale), ("daemon", running.running)),
        *([("hub", hub.hub)] if of_agent else []),
        ("service", partial(running.service, machine=machine)),
    ]
    return [Check(name, partial(check, config)) for name, check in named]


def _settings(of_hub: bool) -> tuple[Config, list[Finding]]:
    """Return the settings of the daemon or its next start, and the findings on them.

    Where they are wrong the settings are the defaults for the right home and Claude Code.
    """
    kind = HubConfig if of_hub else Config
    home_folder = homes.home_folder(program=kind.program)
    variables = configuration.cli_variables(home_folder)
    config: Config = kind(home=home_folder, cli_environment=variables, claude_bin=client_variables.claude_program())
    step = "Correct its name or unset it; docs/configuration.md has them all."
    found = [findings.wrong("settings", sentence, step) for sentence in configuration.unknown_variables()]
    try:
        config = configuration.load_daemon(kind.program.kind)
    except ConfigError as error:
        found.append(findings.wrong("settings", str(error), "Correct it; the next start refuses it."))
    used = daemon.environment(config)
    if used is not None:
        with contextlib.suppress(ConfigError):
            config = configuration.load_daemon(kind.program.kind, used)
    source = "as the running daemon has them" if used else "of the next start in this shell"
    return config, found or [findings.ok("settings", f"valid; the checks below use those {source}")]


def _fields(finding: Finding) -> dict[str, str]:
    return {name: value for name, value in asdict(finding).items() if name != "cause"}


def _print(found: list[Finding], wrong: int) -> None:
    """Print the findings.

    Consecutive ones of one kind with the same words are one line.
    """
    lines = list[Finding]()
    for finding in found:
        if lines and replace(lines[-1], check=finding.check) == finding:
            lines[-1] = replace(finding, check=f"{lines[-1].check}, {finding.check}")
        else:
            lines.append(finding)
    width = max(len(finding.check) for finding in lines)
    for finding in lines:
        output.echo(f"{finding.state:5}  {finding.check:{width}}  {visible_line(finding.finding)}")
        if finding.action:
            output.echo(f"{'':5}  {'':{width}}  -> {visible_line(finding.action)}")
    output.echo(f"\n{wrong} of {len(found)} checks found something wrong." if wrong else "\nNothing is wrong.")
