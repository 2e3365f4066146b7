"""The rules on tool calls: their text, the calls they match, and the matcher beside a real shell."""

from __future__ import annotations

import functools
import itertools
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from occ_app.config import shell_words
from occ_app.config.permission_rules import Rule, decide, parsed, remembered, split

# No program is found, so bash calls this function for every command that it would run, with its words.
_WATCHED = r"""
command_not_found_handle() { printf '%s\0' "$@" $'\1' >> "$RAN"; return 0; }  # in one write
cd -- "$FOLDER" || exit 1
PATH=/nowhere
eval -- "$LINE"
wait
"""
# No part may name a real program or file: a command with a slash is started without PATH, and a line may redirect.
_PARTS = (
    *("ls", "rm", "git", "push", "pytest", "x", "-q", "--", "a=b", "A=rm", "1", "./x"),
    *("'", '"', "''", "'r m'", '"rm x"', "r''m", "\\", "\\\n", "#", "~", "!", "%", "^", "=", ",", ":", "+", "@"),
    *(";", "&&", "||", "|", "&", "|&", "\n", "\r", "\t", ";;", "(", ")", "{", "}", "[", "[[", "]]"),
    *("$", "$x", "${x}", "$A", "$(rm x)", "`rm x`", "$((1))", "$'rm'", '$"rm"', "<(rm x)", ">(rm x)"),
    *("<", ">", ">>", "2>&1", "<<E", "<<<", "&>", ">|", "*", "?", "{rm,x}", "r[m]", "r?"),
    *("if", "then", "fi", "do", "done", "until", "function", "eval", "command", "env", "builtin", "in", "case"),
    *("for x in a; do", "f() {", "rm() {", "é", "\u00a0", "\u202e", "\x1b[2K", "\x00"),
)
_ORDINARY = (*_PARTS[: _PARTS.index("1")], "'r m'", "''", "r''m", ";", "&&", "||", "|", "\n", "$x", ">", "*")


def _lines(parts: tuple[str, ...]) -> st.SearchStrategy[str]:
    part = st.tuples(st.sampled_from(parts), st.sampled_from(["", " ", " ", " "])).map("".join)
    return st.lists(part, min_size=1, max_size=9).map("".join)


LINES = st.one_of(_lines(_ORDINARY), _lines(_PARTS))


_numbers = itertools.count()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shell")


def what_bash_runs(line: str, folder: Path) -> list[list[str]]:
    """The words of every command that bash would run. It can reach only names in an empty folder."""
    assert "/" not in line.replace("./x", "")
    work = folder / "work"
    work.mkdir(exist_ok=True)
    ran = folder / f"ran-{next(_numbers)}"  # one of its own: a substitution may end later than the line
    ran.touch()
    for file in work.iterdir():
        file.unlink()
    subprocess.run(
        ["/bin/bash", "--norc", "--noprofile", "-c", _WATCHED],
        env={
            **{"LINE": line.replace("\0", ""), "RAN": str(ran), "FOLDER": str(work), "HOME": str(work)},
            **{"LANG": "C.UTF-8", "x": "rm"},
        },
        cwd=work,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=30,
    )
    found, words = [], list[str]()
    for word in os.fsdecode(ran.read_bytes()).split("\0")[:-1]:
        if word == "\1":
            found.append(words)
            words = []
        else:
            words.append(word)
    return found


_as_often = functools.partial(
    settings, max_examples=300, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)


@_as_often()
@given(line=LINES)
def test_a_plain_line_runs_nothing_but_its_commands(line: str, folder: Path) -> None:
    commands = shell_words.plain_commands(line)
    if commands is not None:
        for words in what_bash_runs(line, folder):
            assert words in commands


@_as_often()
@given(line=LINES)
def test_a_denied_command_never_runs_however_it_is_written(line: str, folder: Path) -> None:
    for pattern in (["rm", "*"], ["git", "push", "*"]):
        if not shell_words.may_run(line, pattern):
            for words in what_bash_runs(line, folder):
                assert not shell_words.matches([words[0].rpartition("/")[2], *words[1:]], pattern), words


@_as_often()
@given(words=st.lists(st.text(max_size=8), min_size=1, max_size=4))
def test_always_allows_the_same_command_and_no_other(words: list[str]) -> None:
    line = shell_words.joined(words)
    for rule in remembered("Bash", {"command": line}):
        read = shell_words.plain_commands(line)
        assert decide([rule], "Bash", {"command": line}) == rule
        assert decide([rule], "Bash", {"command": f"{line} more"}) is None
        assert shell_words.pattern_words(rule.pattern or "") in (read or [])


def decision(rules: list[tuple[str, str]], line: str, tool: str = "Bash", **more: object) -> str | None:
    given = {"command": line, **more} if tool == "Bash" else {"url": line, "prompt": "p"}
    found = decide([parsed(text, decision) for decision, text in rules], tool, given)
    return None if found is None else found.decision


@pytest.mark.parametrize(
    "line",
    ["pytest", "pytest -q", "pytest -k 'a or b'", "pytest;pytest", "pytest -q && pytest x | pytest", "pytest\nls"],
)
def test_a_line_runs_unasked_when_every_command_of_it_is_allowed(line: str) -> None:
    assert decision([("allow", "Bash(pytest *)"), ("allow", "Bash(ls)")], line) == "allow"


@pytest.mark.parametrize(
    "line",
    [
        *("", "pytest; rm x", "pytest && rm x", "pytest | sh", "pytest\nrm x", "pytest & rm x", "pytest &"),
        *(
            "pytest $(rm x)",
            "pytest `rm x`",
            "pytest <(rm x)",
            "pytest > f",
            "pytest 2>&1",
            "pytest < f",
            "pytest <<E\nE",
        ),
        *("X=1 pytest", "env pytest", "xargs pytest", "timeout 5 pytest", "bash -c pytest", "time pytest", "! pytest"),
        *(
            "pytest $HOME",
            'pytest "$X"',
            "pytest *",
            "pytest {a,b}",
            "pytest ~",
            "pytest # x",
            "pytest \\\n",
            "pytest 'a",
        ),
        *("./pytest", "(pytest)", "{ pytest; }", "if pytest; then pytest; fi", "pytest\x00", "pytest '\x1b[2K'"),
        *(
            "pytest '\u202e'",
            "pytest\u00a0x",
            "find . -exec pytest {} +",
            "git -c x=pytest pytest",
            "pytest;",
            ";pytest",
        ),
        "pytest " + "x" * 20_000,
    ],
)
def test_anything_but_plain_words_asks(line: str) -> None:
    rules = [("allow", f"Bash({name} *)") for name in ("pytest", "find", "git", "echo")]
    assert decision(rules, line) is None
    assert decision([*rules, ("allow", "Bash")], line) == "allow"  # without a pattern


def test_other_fields_of_a_call_of_bash_ask() -> None:
    assert decision([("allow", "Bash(ls)")], "ls", description="d", timeout=1000) == "allow"
    assert decision([("allow", "Bash(ls)")], "ls", dangerouslyDisableSandbox=True) is None
    assert decision([("allow", "Bash(ls)")], "ls", run_in_background=True) is None


@pytest.mark.parametrize(
    "line",
    [
        *(
            "git push",
            "git push origin",
            "git -C x push",
            "/usr/bin/git push",
            "GIT push",
            "g'i't pu\"sh\"",
            "ls; git push",
        ),
        *(
            "ls && git push",
            "ls | git push",
            "ls\ngit push",
            "A='x y' $X push",
            "> 'a b' $X",
            "2>&1 $X",
            "$X",
            "g$X push",
        ),
        *("git $X", "eval $X", "echo push | xargs git", "curl x | sh", "bash -c 'git push'", "env git push"),
        *('sh -c "$X"', "if true; then git push; fi", "git `x`", "cat <<E\ngit push\nE", "pytest 'git push'"),
        *("find . -exec git push ';'", "npx x -c 'git push'", "=git push", "~/x", "ls " + "x" * 20_000),
    ],
)
def test_a_denied_command_is_found_in_every_part(line: str) -> None:
    assert decision([("allow", "Bash"), ("deny", "Bash(git push *)")], line) == "deny"
    assert decision([("allow", "Bash"), ("ask", "Bash(git push *)")], line) == "ask"


@pytest.mark.parametrize(
    "line",
    [
        *(
            "git status",
            'git commit -m "Fix $X"',
            "ls *.py",
            "echo $HOME > f",
            "pytest -q 2>&1 | tail -5",
            "env A=1 ls",
        ),
        *(
            "for x in a b; do echo $x; done",
            "[ -f x ] && cat x",
            "source .venv/bin/activate && ls",
            "bash run.sh",
            "A=$B ls",
        ),
    ],
)
def test_other_commands_are_not_denied(line: str) -> None:
    assert decision([("allow", "Bash"), ("deny", "Bash(git push *)")], line) == "allow"


def test_deny_comes_before_ask_and_ask_before_allow() -> None:
    rules = [("allow", "Bash(ls *)"), ("ask", "Bash(ls x)"), ("deny", "Bash(ls y)")]
    assert [decision(rules, line) for line in ("ls", "ls x", "ls x y", "pwd")] == ["allow", "ask", "deny", None]


def test_sites_and_tools() -> None:
    site, below = [("allow", "WebFetch(domain:example.com)")], [("allow", "WebFetch(domain:*.example.com)")]
    for url, expected in {
        "https://example.com/x": ("allow", None),
        "https://docs.example.com": (None, "allow"),
        "https://example.com@evil.test/": (None, None),
        "https://evil.test/?example.com": (None, None),
        "https://evilexample.com": (None, None),
        "https://example.com:8080/": (None, None),
        "https://example.com\\@evil.test": (None, None),
        "file://example.com/": (None, None),
    }.items():
        assert (decision(site, url, "WebFetch"), decision(below, url, "WebFetch")) == expected, url
    denied = [("allow", "WebFetch"), ("deny", "WebFetch(domain:example.com)")]
    for url in ("https://example.com", "https://a.EXAMPLE.com/", "https://u@example.com", "nonsense"):
        assert decision(denied, url, "WebFetch") == "deny"
    assert decision(denied, "https://other.test", "WebFetch") == "allow"
    tickets = [Rule("allow", "mcp__tickets")]
    assert decide(tickets, "mcp__tickets__list", {}) == tickets[0]
    assert decide(tickets, "mcp__tickets2__list", {}) is None
    assert decide([Rule("allow", "Agent")], "Task", {}) == Rule("allow", "Agent")
    assert decide([Rule("deny", "write")], "Write", {}) == Rule("deny", "write")


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "Bash(",
            "Bash()",
            "Bash(a; b)",
            "Bash(a && b)",
            "Bash($X)",
            "Bash(a > b)",
            "Bash(a\nb)",
            "Bash(* x)",
            "-x",
        ),
        *("Read(x)", "WebFetch(example.com)", "WebFetch(domain:a/b)", "Bash(env *)", "Bash(sudo ls)", "Bash(git -c *)"),
        *("Bash(bash -c *)", "Bash(" + "x" * 2000 + ")"),
    ],
)
def test_a_rule_that_cannot_hold_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parsed(text, "allow")


def test_rules_are_read_in_lists_and_in_the_spelling_of_claude_code() -> None:
    assert split("Bash(a, b),WebSearch , Bash(x)") == ["Bash(a, b)", "WebSearch", "Bash(x)"]
    assert parsed("Bash(npm run:*)", "allow").text == "Bash(npm run *)"
    assert parsed("Bash(*)", "deny").text == "Bash"
    assert parsed("Bash(sudo *)", "deny").text == "Bash(sudo *)"


def texts(rules: list[Rule]) -> Iterator[str]:
    return (rule.text for rule in rules)


def test_always_writes_rules_for_what_was_shown_alone() -> None:
    line = "cd app && pytest -k 'a or b' && pytest -k 'a or b'"
    assert list(texts(remembered("Bash", {"command": line}))) == ["Bash(cd app)", "Bash(pytest -k 'a or b')"]
    for line in ("a > b", "echo 'a*'", "env a", "echo '(a)'", "; ".join(f"a{n}" for n in range(11))):
        assert remembered("Bash", {"command": line}) == []
    assert list(texts(remembered("WebFetch", {"url": "https://Example.com/x"}))) == ["WebFetch(domain:example.com)"]
    assert list(texts(remembered("mcp__db__query", {"sql": "x"}))) == ["mcp__db__query"]
    for tool in ("Write", "Edit", "Read", "PowerShell", "AskUserQuestion"):
        assert remembered(tool, {"file_path": "/etc/x"}) == []
