"""How the pages put values into words: times, durations, money, sizes, beginnings. The templates' filters."""

from __future__ import annotations

from datetime import UTC, datetime

from occ_app.hub.pages.terminal import plain


def ago(moment: str) -> str:
    """How long ago a time on the wire is: now, 12 s, 5 min, 3 h, 2 d."""
    seconds = (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds()
    if seconds < 5:
        return "just now"
    for size, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size:.0f} {name} ago"
    return f"{seconds:.0f} s ago"


def moment(moment: str) -> str:
    """A time on the wire for a person: to the second, in UTC."""
    return f"{datetime.fromisoformat(moment):%Y-%m-%d %H:%M:%S} UTC"


def duration(seconds: float) -> str:
    """4.2 s, 12 min 5 s, 1 h 2 min: never like the time of a day. talk.js counts on in the same way."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds + 0.05), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def money(dollars: float) -> str:
    """$0.25, and more digits where there is little."""
    return f"${dollars:.2f}" if dollars >= 0.1 or dollars == 0 else f"${dollars:.4f}"


def size(count: int) -> str:
    """850 bytes, 12 KB, 3.4 MB."""
    if count < 1000:
        return f"{count} bytes"
    return f"{count / 1000:.0f} KB" if count < 1_000_000 else f"{count / 1_000_000:.1f} MB"


def amount(count: float) -> str:
    """850, 12.3k, 4.5M."""
    if count < 1000:
        return f"{count:.0f}"
    return f"{count / 1000:.1f}k" if count < 999_950 else f"{count / 1_000_000:.1f}M"


def beginning(text: str, limit: int = 160) -> str:
    """The beginning of a text as one line."""
    line = " ".join(plain(text[: limit * 4]).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def since(start: str | None, end: str | None) -> float | None:
    """Seconds between two times on the wire, until now without an end; None without a start."""
    if start is None:
        return None
    until = datetime.fromisoformat(end) if end else datetime.now(UTC)
    return max(0.0, (until - datetime.fromisoformat(start)).total_seconds())
