"""JSON without spaces, as it is stored and sent."""

from __future__ import annotations

import json
import re
from typing import Any

_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode

# Legal in JSON, but a line break or a command to some readers of a stream: DEL, C1 and the two Unicode separators.
_RAW = re.compile("[\x7f-\x9f\u2028\u2029]")


def to_json(value: Any) -> str:
    """Return the value as JSON without spaces and raw control characters.

    Raises ValueError, RecursionError.
    """
    return escape_controls(_encode(value))


def escape_controls(text: str) -> str:
    """Escape DEL, C1 and the Unicode line separators in JSON text.

    In JSON they occur inside strings only.
    """
    if text.isascii() and "\x7f" not in text:
        return text
    return _RAW.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def object_of(text: str | bytes) -> dict[str, Any]:
    """Return the object that a JSON text holds.

    Raises ValueError for anything else: another type, NaN and Infinity, nesting too deep to read.
    """
    try:
        value = _decode(text) if isinstance(text, str) else json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON value")


# One decoder for all: `json.loads` with such an option makes one for each text, which takes longer than reading it.
_decode = json.JSONDecoder(parse_constant=_refuse_constant).decode
