"""Reading a Bash line: exactly for rules that allow, broadly for deny and ask.

`plain_commands` understands only lines whose words mean the same in every shell, and returns None for all others, so
that nothing runs that it did not list. `may_run` errs the other way: it returns True where a part of the line could be
the command. Neither reads the programs and scripts that a line starts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

MAX_CHARACTERS = 20_000  # of a line that is read

SHELLS = frozenset(re.findall(r"\S+", "sh bash zsh dash ksh ash mksh fish csh tcsh busybox"))
# They run other commands, named in their arguments, in a variable or in a file.
RUNNERS = frozenset(
    re.findall(
        r"\S+",
        """
    env xargs timeout nohup nice ionice chrt taskset setsid stdbuf unbuffer sudo doas su runuser pkexec exec eval
    command builtin source . time watch parallel script chroot unshare nsenter setpriv flock strace ltrace gdb
    systemd-run ssh trap alias unalias function coproc noglob nocorrect - repeat autoload emulate entr rlwrap
    """,
    )
)
# They change the meaning of later words of the line, or are words of the shell's grammar.
_STATEFUL = frozenset(
    re.findall(
        r"\S+",
        """
    export declare typeset local readonly set setopt unsetopt shopt unset enable hash rehash read printf mapfile
    readarray getopts let zmodload bind complete disable functions if then elif else fi for foreach while until do done
    case esac select in end always return break continue
    """,
    )
)
_TAKES_INPUT = frozenset(("xargs", "parallel"))
_KEYWORDS = frozenset(re.findall(r"\S+", "if then elif else while until do !"))  # a command follows
_FIND_ACTIONS = ("-exec", "-ok", "-delete", "-fprint", "-fls")

_PLAIN_WORD = re.compile(r"""(?:[A-Za-z0-9_@%+=:,./-]|'[^'\n]*'|"[^"$`\\!\n]*")+""")
_QUOTED = re.compile(r"""'([^']*)'|"([^"]*)\"""")
_PLAIN_UNQUOTED = re.compile(r"[A-Za-z0-9_@%+=:,./-]+")
_PATTERN_WORD = re.compile(_PLAIN_WORD.pattern.replace("[A-Z", "[*A-Z"))
_SEPARATOR = re.compile(r"[ \t]*(?:&&|\|\||[;|\n])[ \t]*")
_BLANK = re.compile(r"[ \t]+")
# The same with parts that are known only when the line runs: variables, globs, a home folder.
_VARIABLE = r"\$(?:\w+|\{\w+\}|[?@*#$!-])"
_WORD = re.compile(rf"""(?:[\w@%+=:,./!^\]*?\[~-]|{_VARIABLE}|'[^']*'|"(?:[^"$`\\]|{_VARIABLE})*")+""")
_PIECE = re.compile(rf"""(?P<unknown>{_VARIABLE}|[*?\[~])|'(?P<single>[^']*)'|"(?P<double>[^"]*)"|(?P<plain>.)""")
_REDIRECTION = re.compile(r"(?:\d+|&)?(?:>>|>\||[<>]&|>|<)(?![<(])[ \t]*")
_BROAD_SEPARATOR = re.compile(r"[ \t]*(?:&&|\|\||\|&|[;|&\n])\s*")
_UNKNOWN = "\0"


def plain_commands(line: str) -> list[list[str]] | None:
    """Return the words of each command of a line of plain words; None for others.

    Plain are letters, digits, `_@%+=:,./-` and quoted printable text without `$`, backticks or backslashes. Commands
    may be joined by `;`, `&&`, `||`, `|` and newlines. Everything else returns None: redirections, `&`, substitutions,
    globs, assignments, comments, and the commands that run other commands or change the shell (`env`, `xargs`, `bash
    -c`, `find -exec`, `git -c`, `export` and their kind).
    """
    commands = _scanned(line, _PLAIN_WORD)
    return commands if commands and all(map(is_plain, commands)) else None


def pattern_words(pattern: str) -> list[str] | None:
    """Return the words of a pattern; None unless it is one command.

    `*` may be anywhere in it.
    """
    commands = _scanned(pattern, _PATTERN_WORD)
    return commands[0] if commands and len(commands) == 1 and all(word.isprintable() for word in commands[0]) else None


def joined(words: Sequence[str]) -> str:
    """Return the words as a pattern that reads back as them."""
    return " ".join(word if _PLAIN_UNQUOTED.fullmatch(word) else _quoted(word) for word in words)


def is_plain(words: Sequence[str]) -> bool:
    """Return whether a command of plain words runs nothing but itself, in every shell."""
    if not words or not all(word.isprintable() and not word.startswith("=") for word in words):
        return False
    name = _name(words[0])
    if not name or "=" in words[0] or words[0].startswith("%") or name in RUNNERS or name in _STATEFUL:
        return False
    options = [word for word in words[1:] if word.startswith(("-", "+"))]
    if name in SHELLS:
        return len(words) > 1 and not options
    if name == "git":
        return len(words) > 1 and not words[1].startswith("-")
    return not (name == "find" and any(word.startswith(_FIND_ACTIONS) for word in options))


def matches(words: Sequence[str], pattern: Sequence[str]) -> bool:
    """Return whether a command has the words of a pattern.

    A last word `*` matches any further words, or none.
    """
    if pattern and pattern[-1] == "*":
        pattern = pattern[:-1]
        words = words[: len(pattern)]
    return len(words) == len(pattern) and all(map(_is_like, words, pattern))


def may_run(line: str, pattern: Sequence[str]) -> bool:
    """Return whether any part of a line may be the command with these words.

    A longer command counts, too. The words of a pattern count wherever they are in a command, quoted ones too, with
    others between them. A line that cannot be read for certain, or whose commands are known only when it runs, may run
    anything.
    """
    wanted = [word for word in pattern if word.strip("*")]
    commands = None if len(line) > MAX_CHARACTERS else _broad_commands(line)
    if commands is None or not wanted:
        return True
    names = {_name(word.text) for words in commands for word in words}
    if names & _TAKES_INPUT:
        wanted = wanted[:1]
    if names & (RUNNERS | SHELLS | {"find"}):
        if re.search(r"[$`*?\[{~\\]", line) or any(map(_reads_a_script, commands)):
            return True
        commands = [[word for words in commands for word in words]]
    return any(_may_be(words, wanted) for words in commands)


@dataclass(frozen=True)
class _Word:
    """A word of a line, with a NUL for each part that is known only at run time.

    It may become several words when such a part `splits`.
    """

    text: str
    splits: bool = False


def _quoted(word: str) -> str:
    return f'"{word}"' if "'" in word else f"'{word}'"


def _scanned(line: str, form: re.Pattern[str]) -> list[list[str]] | None:
    """Return the words of each command of a line, unquoted.

    None unless all words have the form.
    """
    if len(line) > MAX_CHARACTERS:
        return None
    commands, words, position = list[list[str]](), list[str](), 0
    line = line.strip(" \t\n")
    while position < len(line):
        word = form.match(line, position)
        if word is None:
            return None
        words.append(_QUOTED.sub(lambda match: match[1] if match[1] is not None else match[2], word[0]))
        position = word.end()
        separator, blank = _SEPARATOR.match(line, position), _BLANK.match(line, position)
        if separator is not None:
            commands.append(words)
            words, position = [], separator.end()
        elif blank is not None:
            position = blank.end()
        elif position < len(line):
            return None
    return [*commands, words]


def _read(word: str) -> _Word:
    if word in ("[", "[["):
        return _Word(word)
    text, splits = "", False
    for piece in _PIECE.finditer(word):
        if piece["unknown"] is not None:
            text, splits = text + _UNKNOWN, True
        elif piece["double"] is not None:
            text += re.sub(_VARIABLE, _UNKNOWN, piece["double"])
            splits = splits or "$@" in piece["double"]
        else:
            text += piece["single"] if piece["single"] is not None else piece["plain"]
    return _Word(text, splits)


def _is_like(word: str, pattern: str) -> bool:
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), word, re.DOTALL) is not None


def _name(word: str) -> str:
    return word.rpartition("/")[2].casefold()


def _broad_commands(line: str) -> list[list[_Word]] | None:
    """Return the words of each command, without redirections.

    None for a line that cannot be read for certain: one with substitutions, here-documents, groups, functions,
    comments or backslashes, or with a command whose name is known only when it runs.
    """
    commands, words, position = list[list[_Word]](), list[_Word](), 0
    line = line.strip(" \t\n")
    while position < len(line):
        separator = _BROAD_SEPARATOR.match(line, position)
        redirection = _REDIRECTION.match(line, position)
        if redirection is None and separator is not None:
            commands.append(words)
            words, position = [], separator.end()
            continue
        word = _WORD.match(line, position if redirection is None else redirection.end())
        if word is None:
            return None
        if redirection is None:
            words.append(_read(word[0]))
        blank = _BLANK.match(line, word.end())
        position = word.end() if blank is None else blank.end()
    commands = [list(_without_prefix(each)) for each in [*commands, words]]
    return None if any(each and _UNKNOWN in each[0].text for each in commands) else commands


def _without_prefix(words: Sequence[_Word]) -> Iterator[_Word]:
    """Yield the words from a command's name on.

    Keywords and assignments before it are skipped.
    """
    rest = iter(words)
    for word in rest:
        if word.text not in _KEYWORDS and not re.match(r"\w+\+?=", word.text):
            yield word
            yield from rest


def _reads_a_script(words: Sequence[_Word]) -> bool:
    """Return whether a command is a shell that gets its commands from its input."""
    names = [_name(word.text) for word in words]
    shells = [place for place, name in enumerate(names) if name in SHELLS]
    return any(all(name.startswith(("-", "+")) for name in names[place + 1 :]) for place in shells)


def _may_be(words: Sequence[_Word], wanted: Sequence[str]) -> bool:
    pieces = [piece for word in words for piece in _pieces(word)]
    return any(
        _UNKNOWN not in piece.text and _may_match(piece, wanted[0]) and _follow(pieces[place + 1 :], wanted[1:])
        for place, piece in enumerate(pieces)
    )


def _pieces(word: _Word) -> Iterator[_Word]:
    """Yield a word and the words in it.

    These are in a quoted script, or after an option's `=`.
    """
    yield word
    inner = re.split(r"[^\w@%+:./\0-]+", word.text)
    if len(inner) > 1:
        yield from (_Word(text) for text in inner if text and _UNKNOWN not in text)


def _may_match(word: _Word, wanted: str) -> bool:
    """Return whether a word, or its part after the last slash, may be the wanted one.

    The wanted word may contain `*`.
    """
    if word.splits:
        return True
    known = re.compile(".*".join(map(re.escape, word.text.casefold().split(_UNKNOWN))), re.DOTALL)
    names = {word.text.casefold(), _name(word.text)}
    return known.fullmatch(wanted.casefold()) is not None or any(_is_like(name, wanted.casefold()) for name in names)


def _follow(words: Sequence[_Word], wanted: Sequence[str]) -> bool:
    """Return whether all wanted words may be among the words, in their order."""
    rest = iter(words)
    return all(any(_may_match(word, each) for word in rest) for each in wanted)
