"""occ upgrade: another version of OCC in the place of this one, with a way back."""

from __future__ import annotations

import subprocess

import click

from occ_app import __version__
from occ_app.cli import output
from occ_app.config.child_processes import own_variables
from occ_app.service.systemd import Machine
from occ_app.system import interpreter
from occ_app.upgrade import daemons, installation


@click.command()
@click.argument("source", required=False)
@click.option("--now", is_flag=True, help="End current runs instead of waiting for them.")
@click.option("--dry-run", is_flag=True, help="Print the changes and make none.")
def upgrade(source: str | None, now: bool, dry_run: bool) -> int:
    """Upgrade OCC and restart its daemons.

    SOURCE is a wheel, a folder or a requirement; by default the newest version of the place it was installed from. If
    the new version does not start or answer, the former one, with its database, is put back.

    \b
    Examples:
      occ upgrade
      occ upgrade ./online_claude_code-0.2.0-py3-none-any.whl
    """
    existing = installation.found()
    source = installation.absolute(source or existing.source)
    targets = daemons.targets(Machine(), of_these_files=True)
    output.echo(f"OCC {__version__} is installed {existing.description}. Changes:")
    for target in reversed(targets):
        waiting = " once its runs have ended" if not now and target.config.program.kind == "agent" else ""
        output.echo(f"  stop {target.name}{waiting}, and copy its database to {target.copy}")
    output.echo(f"  {' '.join(existing.command(source))}")
    for target in targets:
        output.echo(f"  start {target.name}, {'as a service' if target.unit else f'on port {target.running.port}'}")
    if dry_run:
        return 0
    existing.keep()
    # From the copy: this process could not load any more modules of files that are replaced.
    command = interpreter.command("-m", "occ_app.cli.upgrading", source, "now" if now else "drain")
    return subprocess.run(command, env={**own_variables(), "PYTHONPATH": str(existing.copy)}, check=False).returncode
