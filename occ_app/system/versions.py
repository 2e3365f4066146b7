"""Versions of OCC: which of them work together."""

from __future__ import annotations

import re


def compatible(one: str, other: str) -> bool:
    """Return whether a hub and an agent are at most one minor version apart.

    A version that cannot be read is compatible with every other.
    """
    first, second = _release(one), _release(other)
    if first is None or second is None:
        return True
    return first[0] == second[0] and abs(first[1] - second[1]) <= 1


def _release(version: str) -> tuple[int, int] | None:
    match = re.match(r"(\d{1,6})\.(\d{1,6})", version)
    return None if match is None else (int(match[1]), int(match[2]))
