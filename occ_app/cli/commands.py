"""The group that all commands stand in."""

from __future__ import annotations

import click

from occ_app import __version__
from occ_app.cli import EXIT_CODES
from occ_app.cli.agent import backup, start, status, stop, token
from occ_app.cli.demo import demo
from occ_app.cli.jobs import jobs
from occ_app.cli.run import run


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, epilog=EXIT_CODES)
@click.version_option(__version__, prog_name="occ")
def occ() -> None:
    """Turn this machine into a Claude Code agent that can be driven from anywhere.

    \b
    occ demo     see it work, with nothing set up
    occ start    start the agent: an HTTP API that runs Claude Code on prompts
    occ run      send a folder and a prompt, watch the answer come
    occ jobs     what runs, waits and has run
    """


for command in (start, stop, status, token, jobs, run, demo, backup):
    occ.add_command(command)
