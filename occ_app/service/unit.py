"""The text of a systemd unit, of its variables, and of the line for crontab."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from occ_app.home.daemon import STOP_SECONDS

MARK = "# Written by `occ service install`; `occ service uninstall` removes it."
_MARGIN_SECONDS = 10.0  # above OCC's own time to stop
_RESTART_SECONDS = 5


@dataclass(frozen=True)
class Service:
    """A service to write.

    The command that it runs, its home, PATH, file of variables, and the user of a system's.
    """

    description: str
    command: Sequence[str]
    home_variable: str
    home: Path
    path: str
    variables: Path
    user: str | None  # None: of the user's own manager


def unit_text(service: Service) -> str:
    """Return the unit.

    No secret is in it: the variables with secrets are in a file that only the user can read.
    """
    system = service.user is not None
    # A user's manager has no target for the network; OCC retries its hub by itself.
    network = ["Wants=network-online.target", "After=network-online.target"] if system else []
    user = [f"User={service.user}"] if system else []
    lines = [
        MARK,
        "[Unit]",
        f"Description={_escaped(service.description)}",
        *network,
        "StartLimitIntervalSec=0",
        "",
        "[Service]",
        "Type=notify",
        *user,
        f"Environment={_quoted(f'PATH={service.path}')}",
        home_line(service.home_variable, service.home),
        f"EnvironmentFile=-{_escaped(str(service.variables))}",
        f"ExecStart={' '.join(_argument(word) for word in service.command)}",
        "Restart=on-failure",
        f"RestartSec={_RESTART_SECONDS}",
        # 2: a setting is wrong, 3: another daemon has the home. A restart changes neither.
        "RestartPreventExitStatus=2 3",
        # OCC ends its processes in order; systemd kills those that are left.
        "KillMode=mixed",
        f"TimeoutStopSec={STOP_SECONDS + _MARGIN_SECONDS:.0f}",
        # A migration takes as long as it takes; OCC limits the rest of its start itself.
        "TimeoutStartSec=infinity",
        "LimitNOFILE=65536",
        "OOMPolicy=continue",  # the kernel ends the CLI first, and its execution with it, not the daemon
        "",
        "[Install]",
        f"WantedBy={'multi-user' if system else 'default'}.target",
    ]
    return "\n".join(lines) + "\n"


def home_line(home_variable: str, home: Path) -> str:
    """Return the line of a unit that names the home of its daemon."""
    return f"Environment={_quoted(f'{home_variable}={home}')}"


def variables_text(variables: Mapping[str, str]) -> str:
    """Return the content of an EnvironmentFile.

    Raises ValueError for a value with a control character.
    """
    lines = [MARK]
    for name, value in sorted(variables.items()):
        if any(ord(character) < 32 or ord(character) == 127 for character in value):
            raise ValueError(f"{name} has a control character")
        escaped = "".join(f"\\{character}" if character in '\\"$`' else character for character in value)
        lines.append(f'{name}="{escaped}"')
    return "\n".join(lines) + "\n"


def crontab_line(service: Service, start: Sequence[str]) -> str:
    """Return the line for a machine without systemd.

    `start` is the command that starts in the background.
    """
    assigned = [f"PATH={service.path}", f"{service.home_variable}={service.home}"]
    load = f"set -a; [ -f {shlex.quote(str(service.variables))} ] && . {shlex.quote(str(service.variables))};"
    command = shlex.join(["env", *assigned, *start])
    return f"@reboot {load} {command}".replace("%", r"\%")  # cron ends the command at a bare %


def _escaped(text: str) -> str:
    return text.replace("%", "%%")  # a specifier of systemd


def _quoted(text: str) -> str:
    return '"' + _escaped(text).replace("\\", "\\\\").replace('"', '\\"') + '"'


def _argument(word: str) -> str:
    """Return a word of ExecStart, where $ begins a variable, too."""
    return _quoted(word.replace("$", "$$"))
