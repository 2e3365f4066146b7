"""The templates' filters: times, durations, money and sizes for people."""

from __future__ import annotations

from datetime import UTC, datetime

from occ_app.hub.pages.terminal import plain


def ago(moment: str) -> str:
    """Return how long ago a time was: just now, 12 s ago, 5 min ago, 3 h ago, 2 d ago.

    `moment` has the form of the API.
    """
    seconds = (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds()
    if seconds < 5:
        return "just now"
    for size, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size:.0f} {name} ago"
    return f"{seconds:.0f} s ago"


def moment(moment: str) -> str:
    """Return a time of the API for a person: to the second, in UTC."""
    return f"{datetime.fromisoformat(moment):%Y-%m-%d %H:%M:%S} UTC"


def duration(seconds: float) -> str:
    """Return seconds as a duration: 4.2 s, 12 min 5 s, 1 h 2 min.

    The form cannot be read as a time of day. talk.js continues counting in the same form.
    """
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds + 0.05), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def money(dollars: float) -> str:
    """Return an amount in dollars: $0.25, or four decimals below $0.10."""
    return f"${dollars:.2f}" if dollars >= 0.1 or dollars == 0 else f"${dollars:.4f}"


def size(count: int) -> str:
    """Return a number of bytes: 850 bytes, 12 KB, 3.4 MB."""
    if count < 1000:
        return f"{count} bytes"
    return f"{count / 1000:.0f} KB" if count < 1_000_000 else f"{count / 1_000_000:.1f} MB"


def amount(count: float) -> str:
    """Return a number in short form: 850, 12.3k, 4.5M."""
    if count < 1000:
        return f"{count:.0f}"
    return f"{count / 1000:.1f}k" if count < 999_950 else f"{count / 1_000_000:.1f}M"


def beginning(text: str, limit: int = 160) -> str:
    """Return the beginning of a text as one line."""
    line = " ".join(plain(text[: limit * 4]).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def since(start: str | None, end: str | None) -> float | None:
    """Return the seconds between two times of the API.

    Without an end, count until now. Returns None without a start.
    """
    if start is None:
        return None
    until = datetime.fromisoformat(end) if end else datetime.now(UTC)
    return max(0.0, (until - datetime.fromisoformat(start)).total_seconds())
