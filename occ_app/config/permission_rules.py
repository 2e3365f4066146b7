"""Rules on tool calls: their text, and the calls that they match.

`Bash(pytest *)` is a rule for commands, `WebFetch(domain:example.com)` one for a site, `WebSearch` one for all calls of
a tool, and `mcp__tickets` one for all tools of an MCP server.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from occ_app.config import shell_words

DECISIONS = ("deny", "ask", "allow")  # in this order they are looked at
MAX_CHARACTERS = 1000  # of a rule
MOST_IN_REQUEST = 50  # rules of one decision

_RULE = re.compile(r"(?P<tool>[A-Za-z][A-Za-z0-9_-]*)(?:\((?P<pattern>[^()\n]*)\))?")
_DOMAIN = re.compile(r"domain:(\*\.)?[a-z0-9-]+(\.[a-z0-9-]+)*")
# Of Bash: others could change where and how a command runs.
_BASH_INPUT = frozenset(("command", "description", "timeout"))
_RENAMED = {"Task": "Agent"}  # older releases of the CLI
_MOST_REMEMBERED = 10  # commands of one line
_REMEMBERED = ("Agent", "WebSearch")  # tools of which all calls are alike


@dataclass(frozen=True)
class Rule:
    """A decision on the calls of a tool; `pattern` None means all of them."""

    decision: str
    tool: str
    pattern: str | None = None

    @property
    def text(self) -> str:
        return self.tool if self.pattern is None else f"{self.tool}({self.pattern})"

    def matches(self, tool: str, given: Mapping[str, Any]) -> bool:
        """Return whether a call matches this rule.

        For `allow` it certainly does, for `deny` and `ask` it may.
        """
        if not _is_tool(tool, self.tool, broadly=self.decision != "allow"):
            return False
        if self.pattern is None:
            return True
        if self.tool == "WebFetch":
            return _site_matches(given, self.pattern, broadly=self.decision != "allow")
        command, words = given.get("command"), shell_words.pattern_words(self.pattern) or []
        if self.decision != "allow":
            return not isinstance(command, str) or shell_words.may_run(command, words)
        return False


def parsed(text: str, decision: str) -> Rule:
    """Read a rule such as `Bash(pytest *)`. Raises ValueError with the accepted form."""
    match = _RULE.fullmatch(text.strip())
    if match is None or len(text) > MAX_CHARACTERS:
        raise ValueError("a rule must look like Bash(pytest *), WebFetch(domain:example.com) or WebSearch")
    tool, pattern = _RENAMED.get(match["tool"], match["tool"]), match["pattern"]
    if pattern is None or pattern.strip() == "*":
        return Rule(decision, tool)
    pattern = pattern.strip()
    if tool == "Bash":
        return Rule(decision, tool, _checked_command(pattern, decision))
    if tool == "WebFetch" and _DOMAIN.fullmatch(pattern.casefold()):
        return Rule(decision, tool, pattern.casefold())
    raise ValueError(
        "only Bash takes a pattern of words, and WebFetch one such as domain:example.com; other tools have none"
    )


def split(text: str) -> list[str]:
    """Return the rules of a comma-separated list; commas in parentheses do not count."""
    return [each.strip() for each in re.split(r",(?![^(]*\))", text) if each.strip()]


def decide(rules: Iterable[Rule], tool: str, given: Mapping[str, Any]) -> Rule | None:
    """Return the rule that decides on a call; None when no rule matches.

    A denying rule comes first, then one that asks, then one that allows. Each command of a Bash line must have a rule
    that allows it.
    """
    rules = list(rules)
    for decision in ("deny", "ask"):
        for rule in rules:
            if rule.decision == decision and rule.matches(tool, given):
                return rule
    allowing = [rule for rule in rules if rule.decision == "allow"]
    for rule in allowing:
        if rule.matches(tool, given):
            return rule
    return _allowed_line(allowing, given) if tool == "Bash" else None


def remembered(tool: str, given: Any) -> list[Rule]:
    """Return the rules that "always" stores for a call.

    There are none for a call that must be asked about each time.
    """
    tool = _RENAMED.get(tool, tool)
    if not isinstance(given, Mapping):
        return []
    if tool == "Bash":
        rules = _remembered_commands(given)
    elif tool == "WebFetch":
        site = _site(given)
        rules = [] if site is None else [Rule("allow", tool, f"domain:{site}")]
    else:
        rules = [Rule("allow", tool)] if tool in _REMEMBERED or tool.startswith("mcp__") else []
    return rules if all(_reads_back(rule) for rule in rules) else []


def _is_tool(tool: str, wanted: str, *, broadly: bool) -> bool:
    tool = _RENAMED.get(tool, tool)
    if broadly:
        tool, wanted = tool.casefold(), wanted.casefold()
    return tool == wanted or (wanted.startswith("mcp__") and tool.startswith(f"{wanted}__"))


def _checked_command(pattern: str, decision: str) -> str:
    """Return the pattern of a command in one spelling. Raises ValueError."""
    pattern = re.sub(r":\*$", " *", pattern)  # as Claude Code writes it
    words = shell_words.pattern_words(pattern)
    if not words or not words[0].strip("*"):
        raise ValueError("a pattern of Bash is one command of plain words, as in Bash(pytest *), without ; & | $ < >")
    if decision == "allow" and not shell_words.is_plain(words):
        raise ValueError(
            f"{words[0]} runs other commands or changes the shell, so a person is always asked; allow the command that"
            " it runs"
        )
    return pattern


def _allowed_line(rules: Sequence[Rule], given: Mapping[str, Any]) -> Rule | None:
    """Return a rule that allows a Bash call, if every command of its line has one."""
    patterns = [(rule, shell_words.pattern_words(rule.pattern or "") or []) for rule in rules if rule.tool == "Bash"]
    found = None
    for words in _commands(given):
        found = next((rule for rule, pattern in patterns if shell_words.matches(words, pattern)), None)
        if found is None:
            return None
    return found


def _commands(given: Mapping[str, Any]) -> list[list[str]]:
    """Return the commands of a Bash call that consists of plain words; else none."""
    command = given.get("command")
    if not isinstance(command, str) or not given.keys() <= _BASH_INPUT:
        return []
    return shell_words.plain_commands(command) or []


def _remembered_commands(given: Mapping[str, Any]) -> list[Rule]:
    commands = [(words, shell_words.joined(words)) for words in _commands(given)]
    if any("*" in text or shell_words.pattern_words(text) != words for words, text in commands):
        return []
    rules = list(dict.fromkeys(Rule("allow", "Bash", text) for _, text in commands))
    return rules if len(rules) <= _MOST_REMEMBERED else []


def _reads_back(rule: Rule) -> bool:
    try:
        return parsed(rule.text, rule.decision) == rule
    except ValueError:
        return False


def _site(given: Mapping[str, Any]) -> str | None:
    """Return the host that a call of WebFetch requests.

    None for an address that clients may read differently.
    """
    url = given.get("url")
    if not isinstance(url, str) or not re.fullmatch(r"[A-Za-z0-9:/?#@!$&'()*+,;=._~%-]+", url):
        return None
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return None
    plain = parts.scheme in ("http", "https") and "@" not in parts.netloc and port in (None, 80, 443)
    return host.casefold() if plain and _DOMAIN.fullmatch(f"domain:{host.casefold()}") else None


def _site_matches(given: Mapping[str, Any], pattern: str, *, broadly: bool) -> bool:
    site, wanted = _site(given), pattern.removeprefix("domain:")
    if site is None:
        return broadly
    parent = wanted.removeprefix("*.")
    below = site.endswith(f".{parent}")
    if broadly:
        return below or site == parent
    return below if wanted.startswith("*.") else site == wanted
