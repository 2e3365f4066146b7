"""The configuration of one home; only this module reads it from the environment.

The home is an agent's or a hub's. A flag overrides an environment variable, which overrides `config.toml` in the home.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from occ_app.config import claude_environment as cli_environment
from occ_app.config import config_file, homes
from occ_app.config.homes import AGENT, HUB, Program
from occ_app.config.options import flag_of
from occ_app.config.permission_rules import Rule, parsed
from occ_app.config.settings import HUB_SETTINGS, SETTINGS, is_loopback, secret, smtp_url
from occ_app.errors import ConfigError

DEFAULT_TOOLS = ("Read", "Edit", "Write", "Grep", "Glob")
DEFAULT_ASK_TOOLS = ("Bash", "WebFetch", "WebSearch", "Agent", "AskUserQuestion", "ExitPlanMode")
PUSH_HOSTS = ("fcm.googleapis.com", "*.push.services.mozilla.com", "*.push.apple.com", "*.notify.windows.com")

# Variables of OCC that are no settings of a daemon.
_VARIABLES = ("OCC_HOME", "OCC_HUB_HOME", "OCC_TOKEN", "OCC_URL", "OCC_PIN", "OCC_EXECUTION_ID")

C = TypeVar("C", bound="Config")


@dataclass(frozen=True)
class Config:
    """All settings of an agent, checked. Times are in seconds, sizes in bytes."""

    program: ClassVar[Program] = AGENT

    home: Path
    api_key: str | None = field(default=None, repr=False)
    remote_url: str | None = None
    remote_pin: str | None = None
    workers: int = 5
    http_port: int = 0
    public_url: str | None = None
    bind_address: str = "127.0.0.1"
    tls: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    name: str = ""
    labels: tuple[str, ...] = ()
    share_local: bool = False
    allowed_hosts: tuple[str, ...] = ()
    trusted_proxies: tuple[str, ...] = ()
    claude_bin: str | None = None
    tools: tuple[str, ...] = DEFAULT_TOOLS
    permissions: str | None = None
    ask_tools: tuple[str, ...] = DEFAULT_ASK_TOOLS
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    hold_seconds: float = 120
    approval_seconds: float = 7 * 86400
    warm_processes: int = 2
    keep_seconds: int = 300
    env_pass: tuple[str, ...] = ()
    trust_workspaces: bool = False
    sandbox: str | None = None
    timeout_seconds: float = 1800
    idle_timeout_seconds: float = 600
    max_timeout_seconds: float = 86400
    max_queue: int = 1000
    max_streams: int = 600
    max_prompt_bytes: int = 8 * 1024 * 1024
    max_upload_bytes: int = 100_000_000
    max_unpacked_bytes: int = 100_000_000
    max_files: int = 50_000
    max_output_bytes: int = 256_000_000
    retention_days: float = 30
    retention_bytes: int = 5_000_000_000
    snapshot_max_files: int = 100_000
    snapshot_max_bytes: int = 1_000_000_000
    snapshot_disk_bytes: int = 5_000_000_000
    log_format: str = "text"
    cli_environment: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def ceiling(self) -> str:
        """Return the most that a request may do; by default `ask` on loopback alone."""
        if self.permissions is not None:
            return self.permissions
        return "ask" if self.remote_url is None and is_loopback(self.bind_address) else "edit"

    @property
    def default_approval_seconds(self) -> float | None:
        """Return the default time for answers to API requests; None: as the agent says."""
        return None

    @cached_property
    def rules(self) -> tuple[Rule, ...]:
        """Return the operator's rules on tool calls, OCC_TOOLS among them."""
        granted = (Rule("allow", tool) for tool in self.tools if tool not in DEFAULT_TOOLS)
        named = (parsed(text, decision) for decision in ("allow", "deny") for text in getattr(self, decision))
        return (*granted, *named)

    @property
    def remote_urls(self) -> tuple[str, ...]:
        """The addresses of the hub, in the order in which they are tried."""
        return tuple((self.remote_url or "").split(",")) if self.remote_url else ()

    @property
    def called_directly(self) -> bool:
        """Whether a hub may call this agent at an address, instead of over the link alone."""
        return self.public_url is not None or not is_loopback(self.bind_address)

    @property
    def database(self) -> Path:
        return self.home / "occ.db"

    @property
    def queue(self) -> Path:
        return self.home / "queue.db"

    @property
    def state(self) -> Path:
        return self.home / "state.json"

    @property
    def machine(self) -> Path:
        """The secret by which hubs know this machine."""
        return self.home / "machine.json"

    @property
    def pid_file(self) -> Path:
        return self.home / "daemon.pid"

    @cached_property
    def run(self) -> Path:
        """The folder of files that live as long as the daemon, such as doorbells."""
        return self.home / "run"

    @cached_property  # asked for at each execution
    def stopping(self) -> Path:
        """There from the beginning of a stop to the next start."""
        return self.run / "stopping"

    @property
    def logs(self) -> Path:
        return self.home / "logs"

    @property
    def workspaces(self) -> Path:
        return self.home / "workspaces"

    @property
    def snapshots(self) -> Path:
        """A git directory for each workspace, with what its executions changed."""
        return self.home / "snapshots"

    def make_folders(self) -> None:
        """Create the home and its folders, closed to everyone else."""
        run = ("run", "run/tail", "run/worker", "run/uploads", "run/queue", "run/memory", "run/mcp", "run/warm")
        for folder in ("", "lock", "workspaces", "logs", *run):
            (self.home / folder).mkdir(mode=0o700, parents=True, exist_ok=True)


@dataclass(frozen=True)
class HubConfig(Config):
    """All settings of a hub, checked; time limits of 0 are left to the agent."""

    program: ClassVar[Program] = HUB

    http_port: int = 7700
    timeout_seconds: float = 0
    idle_timeout_seconds: float = 0
    relays: int = 64
    heartbeat_seconds: int = 30
    wait_seconds: float = 3600
    reconnect_seconds: float = 3600
    forget_agents_days: float = 30
    max_diff_bytes: int = 10_000_000
    api_approval_seconds: float | None = None
    pages_approval_seconds: float | None = None
    slack_approval_seconds: float | None = None
    smtp_url: str | None = field(default=None, repr=False)
    mail_from: str | None = None
    push_hosts: tuple[str, ...] = PUSH_HOSTS

    @property
    def ceiling(self) -> str:
        """A hub refuses no permissions itself: each of its machines has a ceiling."""
        return "full"

    @property
    def default_approval_seconds(self) -> float | None:
        return self.api_approval_seconds

    @property
    def zips(self) -> Path:
        """The uploaded zips, each once under the SHA-256 of its content."""
        return self.home / "zips"

    def make_folders(self) -> None:
        super().make_folders()
        for folder in ("zips", "run/links", "run/slack"):
            (self.home / folder).mkdir(mode=0o700, parents=True, exist_ok=True)


def load(environ: Mapping[str, str] | None = None, flags: Mapping[str, Any] | None = None) -> Config:
    """Read all settings of an agent; `flags` are values of the command line by name.

    Raises ConfigError naming the flag, the variable or the line of config.toml that is wrong.
    """
    environ = os.environ if environ is None else environ
    home, values = _read(AGENT, environ, flags or {})
    values.setdefault("name", socket.gethostname())
    values["tools"] = values.get("tools") or DEFAULT_TOOLS
    for tool in (*values["tools"], *values.get("ask_tools", ())):
        if "(" in tool:
            raise ConfigError(f"OCC_TOOLS or OCC_ASK_TOOLS has the rule {tool!r}; rules go into OCC_ALLOW or OCC_DENY.")
        if tool.startswith("-"):
            raise ConfigError(
                f"OCC_TOOLS or OCC_ASK_TOOLS names {tool!r}, which is not a tool; name tools as in Read,Edit,Bash."
            )
    reaching = cli_environment.chosen(environ, values.get("env_pass", ()), home)
    return _checked(Config(home=home, cli_environment=reaching, **values))


def cli_variables(home: Path) -> dict[str, str]:
    """Return the variables that reach the CLI when no setting adds others."""
    return cli_environment.chosen(os.environ, (), home)


def load_daemon(kind: str, environ: Mapping[str, str] | None = None) -> Config:
    """Read all settings of a program of this kind, agent or hub."""
    return load_hub(environ) if kind == HUB.kind else load(environ)


def load_hub(environ: Mapping[str, str] | None = None, flags: Mapping[str, Any] | None = None) -> HubConfig:
    """Read all settings of a hub, as `load` does an agent's."""
    environ = os.environ if environ is None else environ
    home, values = _read(HUB, environ, flags or {})
    config = HubConfig(home=home, cli_environment=cli_environment.chosen({}, (), home) | _paths(environ), **values)
    return _checked(config)


def _read(program: Program, environ: Mapping[str, str], flags: Mapping[str, Any]) -> tuple[Path, dict[str, Any]]:
    """Return the home folder and the program's settings that are set."""
    home = homes.home_folder(environ, program)
    stored = config_file.read_toml(home / "config.toml", program)
    values: dict[str, Any] = {}
    for setting in program.settings:
        flag = flags.get(setting.name)
        if flag is not None:
            source, raw = flag_of(setting.name), str(flag)
        elif environ.get(setting.variable):
            source, raw = setting.variable, environ[setting.variable]
        elif setting.name in stored:
            source, raw = f"{home / 'config.toml'}, {setting.name}", stored[setting.name]
        else:
            continue
        try:
            values[setting.name] = setting.parse(raw)
        except ValueError as error:
            shown = "" if setting.parse in (secret, smtp_url) else f" {raw[:60]!r}"
            raise ConfigError(f"{source}{shown} cannot be used: {error}.") from None
    return home, values


def _checked(config: C) -> C:
    if (config.tls_cert is None) != (config.tls_key is None):
        raise ConfigError(
            "A certificate needs its key: give both --tls-cert and --tls-key (or those two settings), or none."
        )
    if config.tls and config.tls_cert:
        raise ConfigError("--tls self-signed and --tls-cert exclude each other, as settings too; give one of them.")
    if config.timeout_seconds > config.max_timeout_seconds:
        raise ConfigError("OCC_TIMEOUT_SECONDS is above OCC_MAX_TIMEOUT_SECONDS; lower it or raise the maximum.")
    return config


def unknown_variables() -> list[str]:
    """Return a sentence for each variable that looks like a setting and is none."""
    names = set(_VARIABLES) | {setting.variable for setting in (*SETTINGS, *HUB_SETTINGS)}
    unknown = sorted(name for name in os.environ if name.startswith("OCC_") and name not in names)
    if not unknown:
        return []
    import difflib  # only to name a mistake: every process of a daemon loads this module

    nearest = {name: difflib.get_close_matches(name, names, 1) for name in unknown}
    return [
        f"{name} is set and is no setting of OCC." + "".join(f" Did you mean {like}?" for like in nearest[name])
        for name in unknown
    ]


def _paths(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that a hub's processes need: they run no CLI."""
    names = ("PATH", "HOME", "USER", "LANG", "TZ", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR")
    return {name: environ[name] for name in names if name in environ}
