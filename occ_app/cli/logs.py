"""occ logs: the records of a daemon's parts, by time."""

from __future__ import annotations

import contextlib
import time
from collections import deque

import click

from occ_app.cli import output, remote
from occ_app.cli.jobs import Since
from occ_app.errors import NotRunning
from occ_app.system import log_reading
from occ_app.system.log_reading import Record

PARTS = ("daemon", "web", "worker", "control")
_LOOK_SECONDS = 0.2


@click.command()
@click.argument("part", required=False, type=click.Choice(PARTS))
@click.option("--hub", "of_hub", is_flag=True, help="The logs of the hub of this machine instead of its agent.")
@click.option("-f", "--follow", is_flag=True, help="Wait for further records; Ctrl-C ends that.")
@click.option("--since", type=Since(), help="Only records of this span: 90s, 30m, 12h, 2d, 1w.")
@click.option("--execution", metavar="ID", help="Only records of this execution; any beginning of its id.")
@click.option(
    "-n", "--lines", type=click.IntRange(0), metavar="N", help="The last N records.  [default: 100, or all that match]"
)
def logs(
    part: str | None, of_hub: bool, follow: bool, since: str | None, execution: str | None, lines: int | None
) -> None:
    """Print the logs of all parts by time, or of one part.

    \b
    Examples:
      occ logs -f
      occ logs worker --execution run-7Q --since 1h
    """
    config = remote.settings("hub" if of_hub else "agent")
    paths = [config.logs / f"{name}.log" for name in ((part,) if part else PARTS)]
    if not follow and not any(path.exists() for path in paths):
        raise NotRunning(f"There are no logs in {config.logs} yet; `{config.program.command} start` writes them.")
    whole = bool(since or execution) or (lines or 0) > 1000
    most = lines if lines is not None else None if whole else 100
    with contextlib.closing(log_reading.Logs(paths)) as opened:
        found = (record for record in opened.read(whole=whole) if record.matches(since, execution))
        for record in deque(found, most) if most is not None else found:
            output.echo(record.text)
        if follow:
            _follow(opened, since, execution)


def _follow(opened: log_reading.Logs, since: str | None, execution: str | None) -> None:
    """Print records as they come, until Ctrl-C."""
    last = Record("", "-", "")  # whose traceback the next line may be

    def show(line: str) -> None:
        nonlocal last
        last = log_reading.begin(line) or last
        if last.matches(since, execution):
            output.echo(line)

    while True:
        if not opened.added(show):
            time.sleep(_LOOK_SECONDS)
