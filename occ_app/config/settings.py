"""The settings of OCC: names, parsers and meanings."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from occ_app.config import permission_rules


def _text(value: str) -> str:
    if not value.strip() or any(ord(c) < 32 for c in value):
        raise ValueError("it must be text on one line")
    return value.strip()


def _whole(least: int, largest: int) -> Callable[[str], int]:
    def parse(value: str) -> int:
        try:
            number = int(value)
        except ValueError:
            raise ValueError("it must be a whole number") from None
        if not least <= number <= largest:
            raise ValueError(f"it must be between {least} and {largest}")
        return number

    return parse


def _number(value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        raise ValueError("it must be a number") from None
    if not 0 < number <= 10_000_000:
        raise ValueError("it must be more than 0 and at most 10000000")
    return number


def http_url(value: str) -> str:
    """Return an address without a slash at its end. Raises ValueError."""
    parts = urlsplit(_text(value))
    try:
        parts.port  # noqa: B018 - reading it is the check: urlsplit raises for a port that is no number
    except ValueError:
        raise ValueError("its port must be a number up to 65535") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment or parts.username:
        raise ValueError("it must look like https://hub.example.com")
    return value.strip().rstrip("/")


def http_urls(value: str) -> str:
    """Return comma-separated addresses, each once. Raises ValueError."""
    urls = [http_url(part) for part in value.split(",") if part.strip()]
    if not urls:
        raise ValueError("it must look like https://hub.example.com")
    return ",".join(dict.fromkeys(urls))


def http_origin(value: str) -> str:
    """Return an address without a path. Raises ValueError with the accepted form."""
    url = http_url(value)
    if urlsplit(url).path:
        raise ValueError(
            "it must have no path, because the pages work only at the root of a host name; give the hub a host name"
            " such as https://hub.example.com"
        )
    return url


def is_loopback(host: str) -> bool:
    """Whether an address or `localhost` is this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _list(value: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in value.split(",") if part.strip()))


def _rules(decision: str) -> Callable[[str], tuple[str, ...]]:
    def parse(value: str) -> tuple[str, ...]:
        rules = [permission_rules.parsed(text, decision) for text in permission_rules.split(value)]
        return tuple(dict.fromkeys(rule.text for rule in rules))

    return parse


def _networks(value: str) -> tuple[str, ...]:
    names = _list(value)
    for name in names:
        try:
            ipaddress.ip_network(name)
        except ValueError:
            raise ValueError("it must list addresses or networks, as in 127.0.0.1,10.0.0.0/8") from None
    return names


def _file(value: str) -> str:
    return str(_expanded(_text(value)).absolute())


def _expanded(value: str) -> Path:
    try:
        return Path(value).expanduser()
    except RuntimeError:
        raise ValueError("there is no home folder for ~; write the whole path") from None


def _only(choice: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if value != choice:
            raise ValueError(f"it can only be {choice}")
        return value

    return parse


def _one_of(*choices: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if value not in choices:
            raise ValueError(f"it must be one of {', '.join(choices)}")
        return value

    return parse


def smtp_url(value: str) -> str:
    """Return smtp://[USER:PASSWORD@]HOST[:PORT], smtps:// or @FILE. Raises ValueError."""
    url = secret(value)
    parts = urlsplit(url)
    try:
        parts.port  # noqa: B018 - reading it is the check: urlsplit raises for a port that is no number
    except ValueError:
        raise ValueError("its port must be a number up to 65535") from None
    if parts.scheme not in ("smtp", "smtps") or not parts.hostname or parts.path.strip("/"):
        raise ValueError("it must look like smtps://user:password@mail.example.com, or be @FILE with that")
    return url


def mail_address(value: str) -> str:
    """Return a mail address in ASCII. Raises ValueError."""
    if not re.fullmatch(r"[^@\s<>,;:\"\\]{1,64}@[^@\s<>,;:\"\\]{1,255}", value.strip()) or not value.isascii():
        raise ValueError("it must look like name@example.com")
    return value.strip()


def _pin(value: str) -> str:
    if not re.fullmatch(r"([0-9A-Fa-f]{2}:?){32}", value.strip()):
        raise ValueError("it must be the 32 bytes of a SHA-256 fingerprint, as in 3A:9F:…")
    return value.strip()


def _names(value: str) -> tuple[str, ...]:
    names = _list(value)
    for name in names:
        if not name.replace("_", "a").isalnum() or name[0].isdigit() or name.startswith("OCC_"):
            raise ValueError("it must list names of variables, and none of OCC's own")
    return names


def _yes_or_no(value: str) -> bool:
    if value.lower() not in ("true", "false", "1", "0", "yes", "no"):
        raise ValueError("it must be true or false")
    return value.lower() in ("true", "1", "yes")


def secret(value: str) -> str:
    """Return a secret; of @FILE, the file's first line."""
    if value.startswith("@"):
        try:
            value = _expanded(value[1:]).read_text(encoding="utf-8").partition("\n")[0]
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"its file cannot be read ({type(error).__name__})") from None
    value = value.strip()
    if not value or not value.isascii() or not value.isprintable() or " " in value:
        raise ValueError("it must be printable ASCII without spaces")
    return value


PERMISSIONS = ("plan", "edit", "ask", "full")
"""The permissions of a request, each above the one before: docs/protocol.md."""
CAPABILITIES = ("permissions",)
"""The capabilities of an agent beyond version 1 of the protocol, which it lists at registration."""
SHARES_LOCAL = "local-executions"
"""The capability of an agent that shares its local executions with the hub."""


@dataclass(frozen=True)
class Setting:
    """One setting; its variable is the prefix and its name in capitals."""

    name: str
    parse: Callable[[str], Any]
    meaning: str
    prefix: str = "OCC_"

    @property
    def variable(self) -> str:
        return self.prefix + self.name.upper()


MAX_APPROVAL_SECONDS = 21 * 86400.0
"""Claude Code removes sessions that were not used for 30 days."""


def _approval_seconds(value: str) -> float:
    if (seconds := _number(value)) > MAX_APPROVAL_SECONDS:
        raise ValueError(f"it must be at most {MAX_APPROVAL_SECONDS:.0f}")
    return seconds


_SIZE = _whole(1, 1 << 40)

SETTINGS = (
    Setting("api_key", secret, "key to register with at the hub, or @FILE"),
    Setting("remote_url", http_urls, "address of the hub, or several of one hub; without one the agent is standalone"),
    Setting("remote_pin", _pin, "SHA-256 fingerprint of the hub's certificate, when that is self-signed"),
    Setting("workers", _whole(1, 256), "executions at once"),
    Setting("http_port", _whole(0, 65535), "port of the API; 0 takes a free one"),
    Setting("public_url", http_url, "address under which the hub can reach this agent"),
    Setting("bind_address", _text, "address to listen on"),
    Setting("tls", _only("self-signed"), "self-signed: serve with a certificate of the agent's own"),
    Setting("tls_cert", _file, "certificate to serve with, PEM"),
    Setting("tls_key", _file, "its key, PEM"),
    Setting("name", _text, "name of this agent; the machine's name"),
    Setting("labels", _list, "comma-separated labels for placement"),
    Setting("share_local", _yes_or_no, "show the hub the executions that are started on this machine itself"),
    Setting("allowed_hosts", _list, "comma-separated further Host names to answer to"),
    Setting("trusted_proxies", _networks, "comma-separated addresses or networks of proxies to believe"),
    Setting("claude_bin", _text, "path of the Claude Code CLI; `claude` on PATH"),
    Setting("tools", _list, "comma-separated tools Claude may use"),
    Setting("permissions", _one_of(*PERMISSIONS), "the most a request may do: plan, edit, ask or full"),
    Setting("ask_tools", _list, "comma-separated tools that a person is asked about"),
    Setting("allow", _rules("allow"), "comma-separated rules on calls that run unasked, as in Bash(pytest *)"),
    Setting("deny", _rules("deny"), "comma-separated rules on calls that never run, as in Bash(git push *)"),
    Setting("hold_seconds", _number, "how long a tool call waits for a person"),
    Setting("approval_seconds", _approval_seconds, "how long a parked execution waits for a person, at most 21 days"),
    Setting("warm_processes", _whole(0, 64), "Claude Code processes that start ahead or wait for a turn; 0 for none"),
    Setting("keep_seconds", _whole(0, 86400), "how long a process waits for its next turn; 0 for none"),
    Setting("env_pass", _names, "comma-separated further variables that reach the CLI"),
    Setting("trust_workspaces", _yes_or_no, "let uploads bring settings, hooks and MCP servers"),
    Setting("sandbox", _only("bwrap"), "bwrap: the CLI sees its workspace, its state, and the system read-only"),
    Setting("timeout_seconds", _number, "an execution's time limit"),
    Setting("idle_timeout_seconds", _number, "an execution's limit on silence"),
    Setting("max_timeout_seconds", _number, "highest limit a request may ask for"),
    Setting("max_queue", _whole(1, 1_000_000), "executions that may wait"),
    Setting("max_streams", _whole(1, 10_000), "event streams open at once"),
    Setting("max_prompt_bytes", _SIZE, "size of a prompt"),
    Setting("max_upload_bytes", _SIZE, "size of an uploaded zip"),
    Setting("max_unpacked_bytes", _SIZE, "size of a workspace when unpacked"),
    Setting("max_files", _whole(1, 10_000_000), "entries in an uploaded zip"),
    Setting(
        "max_output_bytes",
        _SIZE,
        "stored output of one execution, 100 bytes an event included; an agent and a hub count alike",
    ),
    Setting("retention_days", _number, "days for which output and prompts are kept"),
    Setting("retention_bytes", _SIZE, "size of occ.db above which the oldest output goes"),
    Setting("snapshot_max_files", _whole(1, 10_000_000), "files of a workspace whose changes are recorded"),
    Setting("snapshot_max_bytes", _SIZE, "size of a workspace whose changes are recorded"),
    Setting("snapshot_disk_bytes", _SIZE, "size of all snapshots above which the oldest go"),
    Setting("log_format", _one_of("text", "json"), "text or json: the lines of the logs"),
)

_OF_BOTH = (
    *("http_port", "public_url", "bind_address", "tls", "tls_cert", "tls_key", "allowed_hosts", "trusted_proxies"),
    *("max_timeout_seconds", "max_queue", "max_streams", "max_prompt_bytes", "max_upload_bytes"),
    *("max_unpacked_bytes", "max_files", "max_output_bytes", "retention_days", "retention_bytes", "log_format"),
)

_HUB_PARSERS: dict[str, Callable[[str], Any]] = {"public_url": http_origin}  # where a hub's differ

HUB_SETTINGS = (
    *(
        replace(setting, prefix="OCC_HUB_", parse=_HUB_PARSERS.get(setting.name, setting.parse))
        for setting in SETTINGS
        if setting.name in _OF_BOTH
    ),
    Setting("relays", _whole(1, 1000), "executions that run on agents at once", "OCC_HUB_"),
    Setting("heartbeat_seconds", _whole(1, 300), "how often agents are to say that they live", "OCC_HUB_"),
    Setting("wait_seconds", _number, "how long an execution waits for an agent that can take it", "OCC_HUB_"),
    Setting("reconnect_seconds", _number, "how long a running execution's agent may be away", "OCC_HUB_"),
    Setting("forget_agents_days", _number, "days after which a machine that is gone leaves the lists", "OCC_HUB_"),
    Setting("max_diff_bytes", _SIZE, "size of a diff that is kept for when its machine is off", "OCC_HUB_"),
    Setting("api_approval_seconds", _approval_seconds, "time to answer a run from the API or a command", "OCC_HUB_"),
    Setting("pages_approval_seconds", _approval_seconds, "time to answer a run from the pages", "OCC_HUB_"),
    Setting("slack_approval_seconds", _approval_seconds, "time to answer a run from Slack", "OCC_HUB_"),
    Setting("smtp_url", smtp_url, "server for mail, smtps://user:password@host, or @FILE", "OCC_HUB_"),
    Setting("mail_from", mail_address, "sender of mail", "OCC_HUB_"),
    Setting("push_hosts", _list, "comma-separated push services of browsers that the hub may call", "OCC_HUB_"),
)
