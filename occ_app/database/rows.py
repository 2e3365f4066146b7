"""Rows as dataclasses, including rows that an earlier version stored unchecked.

SQLite stores any value in any column, and earlier versions stored words of machines and CLIs unchecked. One unreadable
row must not break a list, a page or a queue: each wrong value is replaced, and the row is counted for `/health`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Hashable, Iterable
from dataclasses import fields
from functools import cache
from typing import Any, cast

from occ_app.system.foreign_text import whole_characters

_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)")
_EPOCH = "1970-01-01T00:00:00.000Z"
_MAX_COUNTED = 1000
_unreadable = set[tuple[str, str]]()


def unreadable() -> int:
    """Return how many rows with a wrong value this process has read.

    At most 1,000 are counted.
    """
    return len(_unreadable)


def sound(kind: type[Any], values: dict[str, Any], key: object) -> dict[str, Any]:
    """Return the values of a row for a dataclass, with wrong ones replaced.

    `key` names the row. Bytes and numbers become texts; a value that is no number becomes null or 0; one that is no
    time, the epoch.
    """
    replaced = False
    found = {}
    for name, check in _checks(cast("Hashable", kind)):
        value = values[name]
        right = check(value)
        found[name] = right
        replaced = replaced or (right is not value and right != value)
    if replaced:
        count(kind.__name__, key)
    return found


def count(kind: str, key: object) -> None:
    """Count a row that holds a value that cannot be read."""
    if len(_unreadable) < _MAX_COUNTED:
        _unreadable.add((kind, str(key)))


def texts(value: Any) -> tuple[str, ...]:
    """Return the texts of a JSON list; none for anything else."""
    try:
        content = json.loads(value) if isinstance(value, (str, bytes)) else ()
    except (ValueError, RecursionError):
        content = ()
    return tuple(whole_characters(item) for item in content if isinstance(item, str)) if _is_list(content) else ()


def objects(value: Any, names: Collection[str]) -> list[dict[str, str]]:
    """Return the objects of a JSON list, each with these names as texts.

    Empty for anything else.
    """
    try:
        content = json.loads(value) if isinstance(value, (str, bytes)) else ()
    except (ValueError, RecursionError):
        content = ()
    items: Iterable[Any] = content if _is_list(content) else ()
    return [{name: text(item.get(name)) for name in names} for item in items if isinstance(item, dict)]


def text(value: Any) -> str:
    """Return any value of a row as a text."""
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return "" if value is None else str(value)


def whole(value: Any) -> int:
    """Return a whole number of a row; 0 for anything else."""
    if isinstance(value, float):
        return int(value) if math.isfinite(value) and abs(value) < 1 << 63 else 0
    return value if isinstance(value, int) else 0


def _is_list(content: Any) -> bool:
    return isinstance(content, (list, tuple))


def _number(value: Any) -> float:
    return value if isinstance(value, (int, float)) and math.isfinite(value) else 0


def _flag(value: Any) -> bool:
    return value is True or (isinstance(value, int) and value == 1)


def _moment(value: Any) -> str:
    return value if isinstance(value, str) and _MOMENT.fullmatch(value) else _EPOCH


@cache
def _checks(kind: Hashable) -> tuple[tuple[str, Callable[[Any], Any]], ...]:
    """Return the field names of a dataclass, each with its converter.

    The converter makes a value of the field's type.
    """
    return tuple((field.name, _check(field.name, str(field.type))) for field in fields(cast("Any", kind)))


def _check(name: str, annotation: str) -> Callable[[Any], Any]:
    base, _, rest = annotation.partition(" | ")
    makers: dict[str, Callable[[Any], Any]] = {"str": text, "int": whole, "float": _number, "bool": _flag}
    make = _moment if base == "str" and name.endswith("_at") else makers.get(base)
    if make is None:
        return lambda value: value
    if rest != "None":
        return make
    default = _EPOCH if make is _moment else 0

    def optional(value: Any) -> Any:
        if value is None:
            return None
        made = make(value)
        return None if made == default and made != value else made

    return optional
