"""Texts of the CLI's as they can be stored and sent: whole characters, and no more of them than an event may hold."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from occ_app.system.compact_json import to_json
from occ_app.system.foreign_text import storable, whole_characters

__all__ = ["CHUNK_BYTES", "NAME_CHARACTERS", "cut", "pieces", "storable", "text_of", "whole_characters"]

CHUNK_BYTES = 64 * 1024
NAME_CHARACTERS = 256  # of a name or an id that the CLI gives


def text_of(value: object) -> str | None:
    """Return a name or an id that can be stored; None for anything else, whatever a newer CLI may say there."""
    return whole_characters(value)[:NAME_CHARACTERS] if isinstance(value, str) else None


def cut(value: Any) -> tuple[Any, bool]:
    """A value of at most 64 KiB, and whether it was cut: long texts keep their beginning, and the shape stays."""
    value = storable(value)
    if len(to_json(value).encode()) <= CHUNK_BYTES:
        return value, False
    if isinstance(value, str):
        return next(pieces(value)), True
    if isinstance(value, dict):
        texts = sum(isinstance(item, str) for item in value.values()) or 1
        room = CHUNK_BYTES // texts
        kept = {k: next(pieces(v, room), "") if isinstance(v, str) else v for k, v in value.items()}
        if len(to_json(kept).encode()) <= 2 * CHUNK_BYTES:
            return kept, True
    return next(pieces(to_json(value))), True


def pieces(text: str, room: int = CHUNK_BYTES) -> Iterator[str]:
    """The text in pieces of at most `room` bytes of UTF-8, cut between characters."""
    if len(text) * 4 <= room:
        yield text
        return
    encoded = text.encode()
    start = 0
    while start < len(encoded):
        end = min(start + room, len(encoded))
        while end < len(encoded) and encoded[end] & 0xC0 == 0x80:
            end -= 1
        yield encoded[start:end].decode()
        start = end
