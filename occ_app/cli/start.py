"""occ start: bring the daemon of this machine up, and say where it is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from dataclasses import asdict
from typing import IO, Any

import click

from occ_app import errors
from occ_app.cli import output, output_failed, service_unit
from occ_app.cli.setting_options import setting_options
from occ_app.config import child_processes
from occ_app.config import config as configuration
from occ_app.config.config import Config
from occ_app.config.options import AGENT_OPTIONS, values
from occ_app.config.settings import is_loopback
from occ_app.system import interpreter


@click.command()
@setting_options(AGENT_OPTIONS)
@click.option("--foreground", is_flag=True, help="Stay in the terminal, log to it, stop with Ctrl-C.")
def start(foreground: bool, **flags: Any) -> None:
    """Start the agent in the background and wait until it answers.

    Every option has a variable (OCC_WORKERS, OCC_HTTP_PORT, …) and a line in ~/.occ/config.toml. The option wins over
    the variable, the variable over the file.

    \b
    Examples:
      occ start
      occ start --remote-url https://hub.example.com --api-key @key.txt
    """
    config = configuration.load(flags=values(AGENT_OPTIONS, flags))
    if config.remote_url and not config.api_key:
        raise click.UsageError("A remote URL needs an API key: OCC_API_KEY or --api-key @FILE.")
    if foreground:
        from occ_app.supervisor.preparation import prepare_agent

        run_here(config, prepare_agent, lambda report: tell_started(with_warnings(report, _exposure(config))))
        return
    report = with_warnings(start_daemon(config), _exposure(config))
    shown(lambda: tell_started(report))


def run_here(config: Config, prepare: Callable[[Any, int], list[str]], tell: Callable[[dict[str, Any]], None]) -> None:
    """Be the daemon, an agent's or a hub's, in this terminal.

    `prepare` is the supervisor's; `tell` prints that the daemon serves.
    """
    from occ_app.supervisor import supervisor
    from occ_app.system import service_manager
    from occ_app.system.inheritance import leave_strangers, prepare_daemon
    from occ_app.system.logs import log_to_file_too, log_to_stderr

    hang_up = signal.getsignal(signal.SIGHUP)
    prepare_daemon()
    signal.signal(signal.SIGHUP, hang_up)  # as nohup left it
    leave_strangers()
    log_to_stderr("daemon", config.log_format)
    manager = child_processes.notify_socket()
    if manager is not None:  # a service logs to files, as in the background, so that `occ logs` has all of it
        config.make_folders()
        log_to_file_too("daemon", config.log_format, config.logs / "daemon.log")

    def announce(ready: supervisor.Ready) -> None:
        shown(lambda: tell({**asdict(ready), **({} if manager else {"logs": "this terminal"})}))

    daemon = supervisor.Supervisor(
        config,
        prepare,
        announce,
        to_terminal=manager is None,
        notify=lambda state: service_manager.notify(manager, state),
    )
    daemon.run()
    if daemon.replaced:
        raise errors.StartFailed("The files of OCC changed and a part ended, so the daemon stopped; start it again.")


def shown(tell: Callable[[], None]) -> None:
    """Print the output of `tell`.

    The daemon runs, whether or not the output can be written.
    """
    try:
        tell()
    except OSError as error:
        output_failed(error)


def with_warnings(report: dict[str, Any], more: list[str]) -> dict[str, Any]:
    return {**report, "warnings": [*report["warnings"], *more]}


def start_daemon(config: Config, *, die_with: int | None = None) -> dict[str, Any]:
    """Start a daemon, an agent's or a hub's, and wait until it answers.

    Returns its url, logs, warnings, fingerprint. `die_with` is the pid of this process when the daemon shall not
    outlive it. Raises the error of the daemon.
    """
    try:
        config.make_folders()
        log_file = (config.logs / "daemon.log").open("ab")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise errors.StartFailed(f"{error.filename or config.home} cannot be written ({reason}).") from None
    read_end, write_end = os.pipe()
    interrupts = list[int]()
    # Ctrl-C waits until there is a process to be ended again.
    handler = signal.signal(signal.SIGINT, lambda number, _: interrupts.append(number))
    with log_file as log:
        daemon = _spawn(config, log, write_end, die_with)
    signal.signal(signal.SIGINT, handler)
    os.close(write_end)
    try:
        with os.fdopen(read_end) as answer:
            if interrupts:
                raise KeyboardInterrupt
            line = answer.readline()
    except KeyboardInterrupt:
        daemon.terminate()
        daemon.wait()
        output.echo("occ: interrupted; nothing is running.", err=True)
        raise
    reason = f"The daemon ended before it was ready; {config.logs / 'daemon.log'} says why."
    silent = {"error": "StartFailed", "message": reason}
    report: dict[str, Any] = json.loads(line) if line else silent
    if "error" in report:
        daemon.wait()  # it is on its way out
        raise _as_raised(report["error"], report["message"])
    return with_warnings(report, service_unit.warnings(config))


def _spawn(config: Config, log: IO[bytes], answer: int, die_with: int | None) -> subprocess.Popen[bytes]:
    """Start the supervisor's process.

    It reports on the descriptor `answer` how its start went.
    """
    from occ_app.system.kernel import die_with_parent

    return subprocess.Popen(
        interpreter.command("-m", "occ_app.supervisor.supervisor", str(answer), config.program.kind),
        env=child_processes.child_environment(config, secrets=True),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        cwd="/",
        pass_fds=(answer,),
        start_new_session=True,
        preexec_fn=None if die_with is None else lambda: die_with_parent(die_with, signal.SIGTERM),  # noqa: PLW1509 - this command has one thread
    )


def _as_raised(kind: str, message: str) -> errors.OCCError:
    if kind == "Refused":
        return errors.Refused(f"The hub refused this agent: {message}", 0)
    kind_of_error = getattr(errors, kind, errors.StartFailed)
    return errors.StartFailed(message) if issubclass(kind_of_error, errors.RequestError) else kind_of_error(message)


def _exposure(config: Config) -> list[str]:
    if is_loopback(config.bind_address) or config.tls or config.tls_cert:
        return []
    return [
        f"Listening on {config.bind_address} without TLS: prompts, output and the token can be read on the network; "
        "add --tls self-signed, or --tls-cert and --tls-key, or use --bind-address 127.0.0.1."
    ]


def tell_started(report: dict[str, Any]) -> None:
    output.echo(f"OCC is running at {report['url']}")
    output.echo("  token   occ token")
    output.echo(f"  logs    {report['logs']}")
    if report["fingerprint"]:
        output.echo(f"  tls     its certificate, for occ run --pin:\n          {report['fingerprint']}")
    for warning in report["warnings"]:
        output.warn(warning)
