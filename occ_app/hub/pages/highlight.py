"""Syntax colours for code on the pages, made on the server.

Code is marked with five classes; the stylesheet defines their colours.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import PurePosixPath

from markupsafe import Markup, escape
from pygments.lexer import Lexer
from pygments.lexers import get_lexer_by_name
from pygments.token import Comment, Keyword, Name, Number, Operator, String, Token, _TokenType
from pygments.util import ClassNotFound

_MAX_CHARACTERS = 20_000  # a lexer takes about 2 ms for each 1,000
_LONGEST_LINE = 2_000  # some lexers take quadratic time

# The lexers for the language names of fences and for file extensions. Others get no colours: a lexer runs regular
# expressions, and the name is untrusted.
_LANGUAGES = {
    **dict.fromkeys(("py", "python", "pyi", "python3"), "python"),
    **dict.fromkeys(("js", "javascript", "mjs", "cjs", "jsx"), "javascript"),
    **dict.fromkeys(("ts", "typescript", "tsx"), "typescript"),
    **dict.fromkeys(("sh", "bash", "shell", "zsh"), "bash"),
    **dict.fromkeys(("console", "shell-session"), "console"),
    **dict.fromkeys(("yml", "yaml"), "yaml"),
    **dict.fromkeys(("html", "htm", "svg", "vue"), "html"),
    **dict.fromkeys(("c", "h"), "c"),
    **dict.fromkeys(("cpp", "cc", "hpp", "c++", "cxx"), "cpp"),
    **dict.fromkeys(("rb", "ruby"), "ruby"),
    **dict.fromkeys(("rs", "rust"), "rust"),
    **dict.fromkeys(("kt", "kotlin"), "kotlin"),
    **dict.fromkeys(("cs", "csharp", "c#"), "csharp"),
    **dict.fromkeys(("dockerfile", "docker"), "docker"),
    **dict.fromkeys(("makefile", "make", "mk"), "make"),
    **dict.fromkeys(("ini", "cfg", "conf"), "ini"),
    **dict.fromkeys(("jinja", "j2"), "jinja"),
    **{
        name: name
        for name in (
            *("json", "toml", "css", "scss", "xml", "sql", "go", "java", "swift", "php", "lua", "perl", "r"),
            *("diff", "scala", "dart", "elixir", "haskell", "graphql", "nginx"),
        )
    },
}
_CLASSES: tuple[tuple[_TokenType, str], ...] = (
    (Comment, "hc"),
    (Keyword, "hk"),
    (Operator.Word, "hk"),
    (String, "hs"),
    (Number, "hn"),
    (Name.Function, "hf"),
    (Name.Class, "hf"),
    (Name.Tag, "hk"),
    (Name.Attribute, "hf"),
    (Token.Generic.Inserted, "hs"),
    (Token.Generic.Deleted, "hx"),
    (Token.Generic.Heading, "hf"),
)


def language_of(path: str) -> str:
    """Return the language of a file by its name; empty when it is not known."""
    name = PurePosixPath(path).name.lower()
    found = name if name in _LANGUAGES else name.rpartition(".")[2]
    return found if found in _LANGUAGES else ""


def code(text: str, language: str) -> Markup:
    """Return code as HTML, with the colours of its language if that is known."""
    return Markup("\n").join(lines(text, language))


def lines(text: str, language: str) -> list[Markup]:
    """Return the lines of code as HTML.

    Each line is complete HTML, so that a diff can put the lines in any order.
    """
    lexer = _lexer(_LANGUAGES.get(language.lower(), ""))
    if lexer is None or len(text) > _MAX_CHARACTERS or re.search(rf"[^\n]{{{_LONGEST_LINE}}}", text):
        return [escape(line) for line in text.split("\n")]
    return _coloured(text, lexer)


def _coloured(text: str, lexer: Lexer) -> list[Markup]:
    made: list[list[str]] = [[]]
    for kind, value in lexer.get_tokens(text):
        name = _class_of(kind)
        for number, piece in enumerate(value.split("\n")):
            if number:
                made.append([])
            if piece:
                escaped = str(escape(piece))
                made[-1].append(f'<span class="{name}">{escaped}</span>' if name else escaped)
    return [Markup("".join(line)) for line in made]  # noqa: S704 - each piece is escaped above


@lru_cache(maxsize=512)
def _class_of(kind: _TokenType) -> str:
    return next((name for parent, name in _CLASSES if parent in kind.split()), "")


@lru_cache(maxsize=64)
def _lexer(name: str) -> Lexer | None:
    try:
        return get_lexer_by_name(name, stripnl=False, ensurenl=False) if name else None
    except ClassNotFound:  # a release of Pygments without it
        return None
