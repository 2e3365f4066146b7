"""The upgrade itself, run from a copy of the files that it replaces.

Its arguments are the source and `now` or `drain`.
"""

from __future__ import annotations

import subprocess
import sys

from occ_app.cli import output
from occ_app.cli.draining import drain
from occ_app.config.child_processes import own_variables
from occ_app.errors import OCCError, StartFailed
from occ_app.home import daemon
from occ_app.service.systemd import Machine
from occ_app.system import interpreter
from occ_app.upgrade import daemons, installation
from occ_app.upgrade.daemons import Target
from occ_app.upgrade.installation import Installation


def main() -> int:
    """Upgrade; returns the exit code."""
    source, way = sys.argv[1:]
    existing = installation.found()
    try:
        return upgrade(existing, daemons.targets(Machine(), of_these_files=False), source, wait=way == "drain")
    except KeyboardInterrupt:
        return 130
    except OCCError as error:
        output.echo(f"occ: {error}", err=True)
        return 1
    finally:
        existing.forget()


def upgrade(existing: Installation, targets: list[Target], source: str, *, wait: bool) -> int:
    """Stop the daemons, install, start them, and open them once all are healthy.

    Otherwise everything is restored.
    """
    for target in targets:
        if wait and target.config.program.kind == "agent":
            drain(target.config)
    try:
        for target in reversed(targets):  # so that the agent takes leave of the hub, which then takes it back at once
            daemon.hold(target.config)
            output.echo(f"Stopping {target.name}")
            daemons.stop(target)
            daemons.keep_database(target)
        output.echo(f"Installing {source}")
        installation.run(existing.command(source), {**daemons.clean(own_variables()), **existing.variables})
        version = _version()
        for target in targets:
            output.echo(f"Starting {target.name} {version}")
            daemons.start(target)
            daemons.check(target, version)
    except (OCCError, OSError, KeyboardInterrupt) as error:
        output.echo(f"occ: {error or 'interrupted'}", err=True)
        _go_back(existing, targets)
        return 1
    _open(targets)
    output.echo(f"OCC {version} is installed." + (" Its daemons are healthy." if targets else ""))
    for target in targets:
        output.note(f"the database of before is kept in {target.copy}")
    return 0


def _version() -> str:
    """Return the installed version. Raises StartFailed when it cannot be loaded."""
    done = subprocess.run(
        interpreter.command("-m", "occ_app.cli", "--version"),
        env=daemons.clean(own_variables()),
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise StartFailed(f"The installed files do not work: {' '.join(done.stderr.split()[-20:])}")
    return done.stdout.split()[-1]


def _go_back(existing: Installation, targets: list[Target]) -> None:
    """Restore the former files and databases and start the daemons from them.

    Nothing was accepted meanwhile.
    """
    output.echo("Going back to the former version", err=True)
    for target in reversed(targets):
        daemons.stop(target)
    existing.restore()
    for target in targets:
        daemons.restore_database(target)
        try:
            daemons.start(target)
            daemons.check(target, None)
        except OCCError as error:
            output.echo(f"occ: {error} `{target.config.program.command} start` starts it.", err=True)
    _open(targets)
    output.echo("The former version is back; nothing was lost.", err=True)


def _open(targets: list[Target]) -> None:
    for target in targets:
        daemon.let_go(target.config)


if __name__ == "__main__":
    sys.exit(main())
