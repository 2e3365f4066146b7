"""Texts of the CLI for storing and sending.

They have whole characters, and no more of them than an event may hold.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from occ_app.system.compact_json import to_json
from occ_app.system.foreign_text import storable, whole_characters

__all__ = [
    "CHUNK_BYTES",
    "LINE_BYTES",
    "NAME_CHARACTERS",
    "VALUE_BYTES",
    "cut",
    "json_size",
    "pieces",
    "storable",
    "text_of",
    "whole_characters",
]

LINE_BYTES = 64 * 1024  # of a server-sent event, the line break included: many clients read no longer lines
# In bytes of the JSON text, escapes included, so that the rest of the line and of its event fits beside it:
CHUNK_BYTES = LINE_BYTES - 256  # a piece of output
VALUE_BYTES = LINE_BYTES - 4096  # a value of a tool, beside a name and an id
NAME_CHARACTERS = 256  # of a name or an id that the CLI gives


def text_of(value: object) -> str | None:
    """Return a name or an id that can be stored.

    None for any other value of a newer CLI.
    """
    return whole_characters(value)[:NAME_CHARACTERS] if isinstance(value, str) else None


def cut(value: Any, room: int = VALUE_BYTES) -> tuple[Any, bool]:
    """Return a value that is at most `room` bytes of JSON, and whether it was cut.

    Long texts keep their beginning; of an object whose texts are too long only those are cut.
    """
    value = storable(value)
    size = json_size(value)
    if size <= room:
        return value, False
    if isinstance(value, str):
        return next(pieces(value, room - 2)), True
    if isinstance(value, dict):
        texts = [item for item in value.values() if isinstance(item, str)]
        spare = room - size + sum(map(json_size, texts))  # for the texts, with their quotation marks
        if texts and spare // len(texts) >= 64:
            each = spare // len(texts) - 2
            return {k: next(pieces(v, each), "") if isinstance(v, str) else v for k, v in value.items()}, True
    return next(pieces(to_json(value), room - 2)), True


def json_size(value: Any) -> int:
    """Return the bytes that a value takes as JSON."""
    return len(to_json(value).encode())


def pieces(text: str, room: int = CHUNK_BYTES) -> Iterator[str]:
    """Yield the text in pieces of at most `room` bytes of JSON, at least 6.

    It is cut between characters.
    """
    start = 0
    while len(text) - start > room // 6:  # no character takes more than six bytes
        length = min(room, len(text) - start)
        while (size := json_size(text[start : start + length]) - 2) > room:
            length = max(room // 6, length * room // size - 1)
        yield text[start : start + length]
        start += length
    if start < len(text) or not text:
        yield text[start:]
