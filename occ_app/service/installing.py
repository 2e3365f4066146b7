"""Installation and removal of the service; each step is recorded to be undone."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from occ_app.config.config import Config
from occ_app.config.homes import AGENT, HUB, user_folder
from occ_app.errors import AlreadyRunning, ConfigError, NotRunning, StartFailed
from occ_app.home import daemon
from occ_app.home.state import write_private
from occ_app.service.persistence import installed, unit_name
from occ_app.service.systemd import Machine, Unit, run, user_name
from occ_app.service.unit import MARK, Service, unit_text, variables_text
from occ_app.system import interpreter

_MANAGER_SECONDS, _PAUSE_SECONDS = 10.0, 0.1
COMPLETIONS = {
    "bash": ".local/share/bash-completion/completions/occ",
    "zsh": ".local/share/zsh/site-functions/_occ",
    "fish": ".config/fish/completions/occ.fish",
}


@dataclass(frozen=True)
class Plan:
    """The changes of an installation; only the user can read its `variables`."""

    config: Config
    unit: Unit
    service: Service
    variables: Mapping[str, str]
    lingers: bool

    @property
    def needs_root(self) -> bool:
        return self.unit.system and os.geteuid() != 0

    @property
    def keeps_variables(self) -> bool:
        """Whether there is a file of variables that OCC did not write."""
        return self.service.variables.exists() and not _is_ours(self.service.variables)

    def changes(self) -> Iterator[str]:
        """Yield each change as a sentence."""
        names = ", ".join(sorted(self.variables))
        if self.variables and self.keeps_variables:
            yield f"keep your {self.service.variables}; add {names} to it by hand if the service needs them"
        elif self.variables:
            lost = ", ".join(sorted(_names(self.service.variables) - set(self.variables)))
            dropped = f"; drop {lost}, not set in this shell" if lost else ""
            yield f"write {self.service.variables}, readable by you alone, with {names}{dropped}"
        yield f"{'replace' if self.unit.installed else 'write'} {self.unit.path}"
        if not self.unit.system and not self.lingers:
            yield f"let the services of {user_name()} run without a session: loginctl enable-linger {user_name()}"
        again = self.unit.installed and self.unit.active()
        yield f"{'restart' if again else 'enable and start'} {self.unit.name}"


def plan(config: Config, machine: Machine, variables: Mapping[str, str], path: str, *, system: bool) -> Plan:
    """Return the changes that make a service of this program.

    Raises ConfigError without systemd, for a unit of somebody else, or for a variable that cannot be stored, and
    AlreadyRunning when a daemon runs that the service did not start.
    """
    unit = Unit(unit_name(config.program), system, machine)
    service = service_of(config, path, system=system)
    if not machine.has_systemd:
        raise ConfigError("systemd does not run on this machine.")
    other = installed(config.program, machine)
    if other is not None and (other.system != system or not _is_ours(other.path)):
        step = "`occ service uninstall` removes it." if _is_ours(other.path) else "OCC did not write it; remove it."
        raise ConfigError(f"There is a service in {other.path} already. {step}")
    try:
        variables_text(variables)
    except ValueError as error:
        raise ConfigError(f"{error}, so it cannot be stored for the service; unset it.") from None
    running = daemon.find(config)
    if running is not None and not (other is not None and other.main_pid() == running.pid):
        command = config.program.command
        drain = " --drain" if config.program.kind == "agent" else ""
        raise AlreadyRunning(
            f"{config.program.name} runs already (pid {running.pid}) and not as a service; `{command} stop{drain}`"
            " first, then install it again."
        )
    return Plan(config, unit, service, variables, machine.lingers(user_name()))


def service_of(config: Config, path: str, *, system: bool) -> Service:
    """Return the service of a program as this installation of OCC runs it."""
    group = ["hub"] if config.program.kind == "hub" else []
    return Service(
        "OCC hub" if group else "OCC agent, Claude Code over HTTP",
        interpreter.command("-m", "occ_app.cli", *group, "start", "--foreground"),
        config.program.home_variable,
        config.home,
        path,
        config.home / "service.env",
        user_name() if system else None,
    )


def install(plan: Plan) -> None:
    """Make the changes of a plan and wait until the service serves.

    Raises StartFailed when systemd refuses a step or the service does not start, and ConfigError, with everything
    else done, when lingering is refused.
    """
    _record(plan.config, {**_recorded(plan.config), "unit": str(plan.unit.path), "system": plan.unit.system})
    write_variables(plan)
    made = [folder for folder in plan.unit.path.parents if not folder.exists()]
    plan.unit.path.parent.mkdir(parents=True, exist_ok=True)
    plan.unit.path.write_text(unit_text(plan.service))
    plan.unit.path.chmod(0o644)
    recorded = _recorded(plan.config)
    _record(plan.config, {**recorded, "folders": [*map(str, made), *recorded.get("folders", ())]})
    refused = "" if plan.unit.system or plan.lingers else _linger()
    _require_manager(plan.unit)
    plan.unit.call("daemon-reload")
    plan.unit.call("enable", plan.unit.name)
    try:
        plan.unit.call("restart", plan.unit.name)
    except StartFailed as error:
        raise StartFailed(f"{error} `occ logs daemon` and `{_journal(plan.unit)}` say why.") from None
    if refused:
        raise ConfigError(
            f"{plan.unit.name} runs, but ends when {user_name()} logs out: {refused}. As root, once:\n"
            f"  sudo loginctl enable-linger {user_name()}"
        )


def completion_path(shell: str) -> Path:
    """Return the user's file for a shell's completion; zsh only if in its fpath."""
    return Path.home() / COMPLETIONS[shell]


def write_completion(config: Config, shell: str, script: str) -> None:
    """Write the completion script of a shell, and note it for the removal."""
    path = completion_path(shell)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(script)
    _record(config, {**_recorded(config), "completion": str(path)})


def _require_manager(unit: Unit) -> None:
    """Wait for this user's manager, which lingering has started, or raise StartFailed."""
    deadline = time.monotonic() + _MANAGER_SECONDS
    while not unit.is_managed():
        if time.monotonic() > deadline:
            raise StartFailed(
                f"The service manager of {user_name()} cannot be reached. Log in as {user_name()}, not with su or sudo,"
                " or use --system. `occ service uninstall` undoes the changes."
            )
        time.sleep(_PAUSE_SECONDS)


def write_variables(plan: Plan) -> None:
    """Write the file of variables; without any, keep an existing one of the user's."""
    if plan.variables and not plan.keeps_variables:
        path = plan.service.variables
        path.touch(mode=0o600)
        path.chmod(0o600)
        path.write_text(variables_text(plan.variables))


def root_commands(plan: Plan) -> list[str]:
    """Write the system's unit to the home; returns an administrator's commands for it."""
    plan.config.make_folders()
    draft = plan.config.home / plan.unit.name
    draft.write_text(unit_text(plan.service))
    write_variables(plan)
    return [
        f"sudo install -m 644 {shlex.quote(str(draft))} {plan.unit.path}",
        "sudo systemctl daemon-reload",
        f"sudo systemctl enable --now {plan.unit.name}",
    ]


def uninstall(config: Config, machine: Machine) -> list[str]:
    """Undo an installation; returns the changes, or an administrator's commands.

    An administrator has removed a service of the system by its commands; then a second call removes the files of OCC.
    Raises NotRunning without a service or files of one, and ConfigError for a unit that OCC did not write.
    """
    unit = installed(config.program, machine)
    if unit is None:
        changes = _remove_files(config)
        if not changes:
            raise NotRunning(f"No service of {config.program.name} is installed.")
        return changes
    if not _is_ours(unit.path):
        raise ConfigError(f"{unit.path} was not written by OCC; remove it yourself.")
    if unit.system and os.geteuid() != 0:
        return [
            f"sudo systemctl disable --now {unit.name}",
            f"sudo rm {unit.path}",
            "sudo systemctl daemon-reload",
            f"occ service uninstall{' --hub' if config.program.kind == 'hub' else ''}",
        ]
    if unit.is_managed():
        unit.call("disable", "--now", unit.name)
    unit.path.unlink()
    if unit.is_managed():
        unit.call("daemon-reload")
    return [f"stopped and removed {unit.path}", *_remove_files(config), *_linger_no_more(machine)]


def _remove_files(config: Config) -> list[str]:
    """Remove the files that an installation made beside the unit; returns the changes."""
    recorded = _recorded(config)
    for folder in recorded.get("folders", ()):  # the deepest first
        _remove_folder(Path(folder))
    files = [config.home / unit_name(config.program)]  # a draft for an administrator
    if recorded.get("completion") is not None:
        files.append(Path(recorded["completion"]))
    variables = config.home / "service.env"
    if _is_ours(variables):
        files.append(variables)
    changes = [f"removed {path}" for path in files if path.exists()]
    for path in files:
        path.unlink(missing_ok=True)
    _record_path(config).unlink(missing_ok=True)
    return changes


def _remove_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # systemd leaves empty folders of its links
        for wanted in folder.glob("*.wants"):
            wanted.rmdir()
    with contextlib.suppress(OSError):  # something else is in it
        folder.rmdir()


def _linger_no_more(machine: Machine) -> list[str]:
    """Turn lingering off if only an installation needed it; returns the change."""
    if not _lingering_mark().exists() or any(installed(program, machine) for program in (AGENT, HUB)):
        return []
    _lingering_mark().unlink()
    code, printed = run(["loginctl", "disable-linger", user_name()])
    return [f"{user_name()} does not linger any more" if code == 0 else f"not undone: {printed.strip()}"]


def _lingering_mark() -> Path:
    """Return the file that records lingering for all services of one user."""
    return user_folder() / "lingering"


def _linger() -> str:
    """Turn lingering on and record it; returns the reason of a refusal."""
    code, printed = run(["loginctl", "enable-linger", user_name()])
    if code == 0:
        _lingering_mark().parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _lingering_mark().touch()
        return ""
    return (printed.strip().splitlines() or ["it was refused"])[-1].rstrip(".")


def _journal(unit: Unit) -> str:
    return f"journalctl {'' if unit.system else '--user '}-u {unit.name}"


def _names(path: Path) -> set[str]:
    """Return the names in a file of variables; a missing file has none."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return set()
    return {line.partition("=")[0] for line in lines if not line.startswith("#")}


def _is_ours(path: Path) -> bool:
    try:
        return path.read_text().startswith(MARK)
    except (OSError, UnicodeDecodeError):
        return False


def _record_path(config: Config) -> Path:
    return config.home / "service.json"


def _recorded(config: Config) -> dict[str, Any]:
    try:
        content = json.loads(_record_path(config).read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _record(config: Config, content: Mapping[str, Any]) -> None:
    config.make_folders()
    write_private(_record_path(config), content)
