"""The command-line options of settings.

`occ start` and `occ hub start` have one for each entry.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Option:
    """The option of one setting.

    A `repeated` one may be given several times; a `switch` takes no value.
    """

    setting: str
    help: str
    metavar: str | None = None
    flag: str = ""  # where it is not called as its setting
    repeated: bool = False
    switch: bool = False

    @property
    def name(self) -> str:
        return self.flag or f"--{self.setting.replace('_', '-')}"

    def text(self, value: Any) -> str | None:
        """Return a value of the command line as a variable would hold it.

        None when none was given.
        """
        if self.switch:
            return "true" if value else None
        return (",".join(value) or None) if self.repeated else value


AGENT_OPTIONS = (
    Option(
        "api_key",
        "Key to register with at the hub. Pass @FILE or set OCC_API_KEY: other users can see an argument.",
        "KEY",
    ),
    Option("remote_url", "The hub to register with. Without one the agent is standalone.", "URL"),
    Option("remote_pin", "The hub's TLS certificate to trust, and no other.", "FINGERPRINT"),
    Option("workers", "Executions at once.  [default: 5]", "N"),
    Option("http_port", "Port of the API; 0 takes a free one.  [default: 0]", "PORT", "--port"),
    Option("public_url", "Address under which the hub can reach this agent.", "URL"),
    Option(
        "bind_address",
        "Address to listen on.  [default: 127.0.0.1, also with a hub: it calls over the link]",
        "ADDRESS",
    ),
    Option("tls", "Serve with a certificate made here; its fingerprint is printed.", "self-signed"),
    Option("tls_cert", "Certificate to serve with, PEM.", "FILE"),
    Option("tls_key", "Its key, PEM.", "FILE"),
    Option("name", "Name of this agent.  [default: the machine's]", "NAME"),
    Option("labels", "Label for placement; may be repeated.", "LABEL", "--label", repeated=True),
    Option("share_local", "Show the hub the runs that are started on this machine itself.", switch=True),
    Option(
        "allowed_hosts", "Further Host name to answer to; may be repeated.", "HOST", "--allowed-host", repeated=True
    ),
    Option(
        "trusted_proxies",
        "Address or network of a proxy whose X-Forwarded headers are believed; may be repeated.",
        "NETWORK",
        "--trusted-proxy",
        repeated=True,
    ),
    Option("allow", "Tool call that runs unasked, as in 'Bash(pytest *)'; may be repeated.", "RULE", repeated=True),
    Option("deny", "Tool call that never runs, as in 'Bash(git push *)'; may be repeated.", "RULE", repeated=True),
    Option("trust_workspaces", "Let uploads bring settings, hooks, MCP servers: they run as you.", switch=True),
    Option("sandbox", "Show Claude its workspace and the system read-only, nothing else.", "bwrap"),
)

_BY_SETTING = {option.setting: option for option in AGENT_OPTIONS}

HUB_OPTIONS = (
    replace(_BY_SETTING["http_port"], help="Port of the API and the pages; 0 takes a free one.  [default: 7700]"),
    replace(_BY_SETTING["bind_address"], help="Address to listen on.  [default: 127.0.0.1]"),
    replace(_BY_SETTING["public_url"], help="Address under which agents and people reach this hub."),
    *(_BY_SETTING[name] for name in ("tls", "tls_cert", "tls_key", "allowed_hosts", "trusted_proxies")),
)


def flag_of(setting: str) -> str:
    """Return the option of a setting as it is written on a command line."""
    option = _BY_SETTING.get(setting)
    return option.name if option else f"--{setting.replace('_', '-')}"


def values(options: tuple[Option, ...], parsed: Mapping[str, Any]) -> dict[str, str | None]:
    """Return the settings that a command line gives, by name.

    `parsed` has the values of its options by setting.
    """
    return {option.setting: option.text(parsed[option.setting]) for option in options}
