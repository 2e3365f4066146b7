"""occ demo: all of OCC in one command, in a temporary folder."""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import signal
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import click

from occ_app.claude import program as claude_cli
from occ_app.cli import output, transcript, up
from occ_app.cli.upload import upload
from occ_app.client.agent_client import AgentClient
from occ_app.config import child_processes
from occ_app.config import config as configuration
from occ_app.config.config import Config, HubConfig
from occ_app.home import daemon, state
from occ_app.system import interpreter

PROMPT = "Read this project and say in three sentences what it does and what you would improve first."

_PROJECT = {
    "README.md": "# Tally\n\nCounts words in a text file.\n\n    python tally.py FILE\n",
    "tally.py": (
        "import sys\n"
        "from collections import Counter\n\n"
        "def tally(path):\n"
        "    words = open(path).read().split()\n"
        "    return Counter(words)\n\n"
        'if __name__ == "__main__":\n'
        "    for word, count in tally(sys.argv[1]).most_common(10):\n"
        "        print(count, word)\n"
    ),
}


@click.command()
def demo() -> None:
    """Show OCC at work, with nothing set up.

    Starts a hub and an agent on loopback, sends a small project and one prompt, prints the answer as it arrives, and a
    link to the page. Uses the Claude Code of this machine, or a simulated one when it is missing or not logged in.
    Ctrl-C stops everything and removes its files.

    \b
    Example:
      occ demo
    """
    with tempfile.TemporaryDirectory(prefix="occ-demo-") as folder:
        config, hub = _config(Path(folder)), _hub_config(Path(folder))
        # From here on signals are waited for: the daemon is stopped and its folder removed in every case.
        signalled = _interrupt_at_signals()
        try:
            both = up.start(hub, config, die_with=os.getpid())
            for warning in both.warnings:
                output.warn(warning)
            _show(config, hub, both)
            _await_signal(signalled)
        except KeyboardInterrupt:
            with contextlib.suppress(OSError):  # a terminal that was closed
                output.echo("\nStopping …", err=True)
        finally:
            for each in (config, hub):
                running = daemon.find(each)
                if running is not None:
                    daemon.stop(each, running)


def _interrupt_at_signals() -> list[int]:
    """Raise KeyboardInterrupt at each signal that ends the demonstration.

    Returns the list that they are added to.
    """
    signalled = list[int]()

    def interrupt(number: int, _: object) -> None:
        signalled.append(number)
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, interrupt)
    return signalled


def _await_signal(signalled: list[int]) -> None:
    """Wait for a signal. Raises KeyboardInterrupt, also for an earlier one.

    Python discards an exception of a handler that interrupts the end of an object, as of a connection.
    """
    wake, end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(end)
    while not signalled:
        select.select([wake], [], [])
        os.read(wake, 64)
    raise KeyboardInterrupt


def _config(folder: Path) -> Config:
    home = folder / "home"
    config = replace(
        configuration.load(),
        home=home,
        remote_url=None,
        api_key=None,
        http_port=0,
        bind_address="127.0.0.1",
        tls=None,
        tls_cert=None,
        tls_key=None,
        workers=2,
    )
    path = claude_cli.find(config)
    if path is None:
        problem = "Claude Code is not installed"
    elif not claude_cli.logged_in(path, config):
        problem = "Claude Code is not logged in"
    else:
        output.echo(f"Using {path}")
        return replace(config, claude_bin=path)
    output.echo(f"{problem}, so a simulated one answers; nothing it says is a model's.")
    home.mkdir(mode=0o700)
    return replace(config, claude_bin=str(_simulated(home)), sandbox=None)


def _hub_config(folder: Path) -> HubConfig:
    return replace(
        configuration.load_hub(),
        home=folder / "hub",
        http_port=0,
        bind_address="127.0.0.1",
        public_url=None,
        tls=None,
        tls_cert=None,
        tls_key=None,
    )


def _simulated(folder: Path) -> Path:
    """Return a program that runs the bundled simulation in place of the CLI."""
    path = folder / "simulated-claude"
    needed = (f"{name}={shlex.quote(value)}" for name, value in child_processes.interpreter_variables().items())
    python = map(shlex.quote, interpreter.command("-m", "occ_worker.execution.simulated_claude"))
    path.write_text(f'#!/bin/sh\nexec env {" ".join([*needed, *python])} "$@"\n')
    path.chmod(0o700)
    return path


def _show(config: Config, hub: HubConfig, both: up.Up) -> None:
    identity = state.load(hub.state)
    assert identity is not None  # noqa: S101 - a daemon that answers has a token
    url = both.running.url
    workspace = _send_project(config, both.client)
    output.echo(f"> {PROMPT}\n")
    events = both.client.execute(workspace, PROMPT, executionId="demo")
    final = transcript.print_events(events, as_json=False, waiting="Claude is reading the project")
    output.summary(final, both.client.execution("demo"))
    output.outcome(final)
    occ = f"{sys.executable} -m occ_app.cli" if sys.argv[0].endswith("__main__.py") else sys.argv[0]
    output.echo(
        f"""
The page of this run, for one browser, within 10 minutes:
  {url}{both.pairing["path"]}

Go on with:
  OCC_TOKEN={identity.token} {occ} run --url {url} --workspace {workspace} "Add a test"
  OCC_HOME={config.home} {occ} jobs
  curl -H "Authorization: Bearer {identity.token}" {url}/health

Ctrl-C stops it and removes everything."""
    )


def _send_project(config: Config, client: AgentClient) -> str:
    project = config.home.parent / "tally"
    project.mkdir()
    for name, content in _PROJECT.items():
        (project / name).write_text(content)
    workspace = upload(client, project)
    output.echo(f"Sent the sample project {project.name} ({', '.join(_PROJECT)}) as workspace {workspace}\n")
    return workspace
