"""Timestamps in rows and on the wire.

They are UTC in ISO 8601 with milliseconds: text that sorts by time.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime


def iso(moment: datetime) -> str:
    """Return a moment of UTC as text."""
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def iso_now() -> str:
    return iso(datetime.now(UTC))


def milliseconds() -> int:
    return time.time_ns() // 1_000_000
