"""Text from elsewhere, made storable and safe to show.

A machine, a hub, a client, a model and a file name may all contain characters that a terminal obeys. Every such text
passes through `visible` on its way to a terminal or a log; stored output keeps the characters.
"""

from __future__ import annotations

import re
from typing import Any

# ESC and the rest of C0 but tab and newline, DEL, C1, line separators, and overrides of the text direction.
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_BREAKS = re.compile("[\t\n]")
# Letters and marks without a shape: fillers, the blank Braille cell, selectors of variants.
_BLANK = frozenset(map(chr, (0x34F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0, *range(0xFE00, 0xFE10))))
_LONE = re.compile("[\ud800-\udfff]")
MAX_DEPTH = 200


def visible(text: object) -> str:
    r"""Return text with each character that a terminal obeys escaped.

    Examples are \x1b and \u202e. Tabs and newlines stay.
    """
    return _OBEYED.sub(_escape, str(text))


def visible_line(text: object) -> str:
    r"""Return text as `visible` does, with tabs and newlines escaped.

    The result is one line.
    """
    return _BREAKS.sub(_escape, visible(text))


def revealed(text: object) -> str:
    r"""Return text as `visible` does, with invisible characters escaped.

    Examples are \u200b, \xa0 and \u3164. For text that a person decides on: it must not look like another one.
    """
    shown = visible(text)
    if shown.isascii():
        return shown
    return "".join(
        char if (char.isprintable() or char in "\t\n") and char not in _BLANK else _escape_one(char) for char in shown
    )


def revealed_line(text: object) -> str:
    r"""Return text as `revealed` does, with tabs and newlines escaped.

    The result is one line.
    """
    return _BREAKS.sub(_escape, revealed(text))


def _escape_one(char: str) -> str:
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    names = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}
    return names.get(match[0]) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")


def whole_characters(text: str) -> str:
    """Return text with surrogate pairs joined and lone surrogates as U+FFFD."""
    if text.isascii() or not _LONE.search(text):
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def storable(value: Any, depth: int = MAX_DEPTH) -> Any:
    """Return the same JSON value without lone surrogates in its texts.

    No database and no strict client accepts one. Raises ValueError for a value nested deeper than `depth`.
    """
    if isinstance(value, str):
        return whole_characters(value)
    if not isinstance(value, (dict, list)):
        return value
    if depth <= 0:
        raise ValueError("nested too deeply")
    if isinstance(value, dict):
        return {whole_characters(str(key)): storable(item, depth - 1) for key, item in value.items()}
    return [storable(item, depth - 1) for item in value]
