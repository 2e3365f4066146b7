"""The words of a query and of texts as the full-text index has them."""

from __future__ import annotations

import re
from collections.abc import Iterator

from occ_app.system.foreign_text import whole_characters

# Around each hit in what SQLite gives back. They mean nothing in Unicode, and no indexed text has them.
BEGIN, END = "\ufdd0", "\ufdd1"
# Around each letter of a script without spaces, in the index and in a query, so that it is a word by itself.
APART = "\x1f"
_CLEANED = {0: " ", ord(BEGIN): None, ord(END): None, ord(APART): " "}  # SQLite ends a text at a zero
# Thai, Lao, Tibetan, Burmese, Khmer, kana, bopomofo, hangul, Chinese characters.
_UNSPACED = re.compile(
    "[\u0e00-\u109f\u1100-\u11ff\u1780-\u17ff\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3041-\u318f\u31a0-\u31bf"
    "\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\uff66-\uffdc\U00020000-\U0003ffff]+"
)
_TERM = re.compile(r'"([^"]*)(?:"|$)(\*?)|([^\s"]+)')


def expression(query: str) -> str:
    """Return a person's query for FTS5.

    It has words and "phrases" that must all occur, and `*` after a beginning. All else is text to search for, so no
    query is invalid.
    """
    return " ".join(terms(query)) or '""'


def terms(query: str) -> Iterator[str]:
    """Yield the words and phrases of a query, quoted for FTS5."""
    typed = cleaned(query.encode(errors="replace").decode())
    for phrase, phrase_star, word in _TERM.findall(typed):
        yield f'"{letters_apart(phrase or word)}"' + (" *" if phrase_star or word.endswith("*") else "")


def letters_apart(text: str) -> str:
    """Return text with spaces between letters of scripts without word spaces.

    The index has it in this form.
    """
    if text.isascii():
        return text
    return _UNSPACED.sub(lambda run: APART + APART.join(run[0]) + APART, text)


def cleaned(text: str) -> str:
    """Return text without characters that FTS5 cannot take.

    These are NUL, the marks of hits, and lone surrogates.
    """
    return whole_characters(text.translate(_CLEANED))
